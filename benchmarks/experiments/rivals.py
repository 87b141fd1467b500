"""What a user would do instead of borrowing, each with what it costs."""

from __future__ import annotations

from benchmarks.experiments.readings import Reading, Readings
from code_ray.distillation import CHANNELS
from code_ray.path import InferencePath, original_path
from code_ray.throughput import pair_throughput

HEAD = (
    "| | accuracy, % | throughput by the model | live, times the original | memory added, local / host, thousand parameters | training, s "
    "| what the other owner sees |"
)
GATE = 10
"""Per cent that a gate sends over the original again."""

GATED = "-gated"
"""What the name of a live arm ends with whose answers of low confidence are made again by the original."""

HOUTS = 3
"""Of how many blocks of the other host a probe may be made."""


def live_paths(readings: Readings) -> dict[str, InferencePath]:
    """The paths of the table, by arm; probe and cross are the best on validation images, of those that were trained."""
    config, sample = readings.sample.config, readings.sample
    paths = {f"exit-{lout}": sample.exit(lout) for lout in config.exits}
    if (other := config.other) is not None:
        probes = [sample.probe(other.host, hout) for hout in other.hout[:HOUTS]]
        crosses = [sample.cross(other.host, hout, other.lin) for hout in other.hout]
        for name, some in (("probe", probes), ("pair", crosses)):
            if any(readings.of(path).count for path in some):
                paths[name] = readings.best(some)
    return paths


def rivals_table(readings: Readings) -> list[str]:
    """Lines of a table; the original is 1.00."""
    config, sample = readings.sample.config, readings.sample
    t0 = readings.time(original_path(config.local, sample.blocks))
    own = round(int(readings.services.parameters[config.local]) / 1e3)
    a0, one, double = (Reading({0: value}, 1) for value in (readings.original["test"], 1.0, 2.0))  # the network is one, whatever the seed
    mode = next((str(row["mode"]) for row in readings.results.times.values()), "unknown")

    def line(arm: str, name: str, accuracy: Reading, ratio: Reading, memory: str, seconds: Reading | None, seen: str) -> str:
        trained, live = "-" if seconds is None else seconds.text(0), readings.lives.get(arm)
        measured = "-" if live is None else live.text(2)
        return f"| {name} | {accuracy.text()} | {ratio.text(2)} | {measured} | {memory} | {trained} | {seen} |"

    def both(arm: str, name: str, path: InferencePath, memory: str, seen: str) -> list[str]:
        """A path of the owner's own, plain and gated, or one through a host with the original beside."""
        lines, seconds = [], readings.of(path, "seconds", 1.0)
        for ending, title, column, share in (
            ("", name, "accuracy_test", 0),
            (GATED, f"the same, gated at {GATE} %", f"gated_{GATE}", GATE),
        ):
            time, accuracy = _plus(readings.time(path), t0, share), readings.of(path, column)
            ratio = _ratio(t0, time)
            if path.hosts:
                accuracy, ratio = _mixed(readings, t0, time, readings.time(path, "host"), accuracy)
            lines.append(line(arm + ending, title, accuracy, ratio, memory, seconds, seen))
        return lines

    float32 = _ratio(t0, readings.rival("float32", "tau_local_ms"))
    int8 = readings.rival("int8", "accuracy_test", 100), _ratio(t0, readings.rival("int8", "tau_local_ms"))
    lines = [
        HEAD,
        "| --- " * HEAD.count("|", 1) + "|",
        line("original", f"the original in its fastest mode, {mode}", a0, one, "0 / 0", None, "nothing"),
        line("plain", "the same, by plain Ray Serve", a0, one, "0 / 0", None, "nothing"),
        line("float32", "the original in float32", a0, float32, "0 / 0", None, "nothing"),
        line("int8", "int8, static, a range from 256 images", *int8, f"{own} at a byte / 0", readings.rival("int8", "seconds"), "nothing"),
        line("replica", "the second core for the original", a0, double, f"{own} / 0", None, "nothing; needs a core of one's own"),
        line("replica", "a full replica on the host, kappa = 1", a0, double, f"0 / {own}", None, "weights and images"),
    ]
    paths = live_paths(readings)
    for lout in config.exits:
        path = paths[f"exit-{lout}"]
        lines += both(f"exit-{lout}", f"exit behind block {lout}", path, f"{_links(readings, path)} / 0", "nothing")
    for channels in CHANNELS:
        arm = f"distilled-{channels}"
        size, seconds, time = (readings.rival(arm, *what) for what in (("parameters", 1e-3), ("seconds",), ("tau_local_ms",)))
        memory = f"{size.mean:.0f} / 0" if size.count else "missing"
        plain, gated = readings.rival(arm, "accuracy_test", 100), readings.rival(arm, f"gated_{GATE}", 100)
        lines.append(line(arm, f"distilled, {channels} channels", plain, _ratio(t0, time), memory, seconds, "nothing"))
        ratio = _ratio(t0, _plus(time, t0, GATE))
        lines.append(line(arm + GATED, f"the same, gated at {GATE} %", gated, ratio, memory, seconds, "nothing"))
    for arm, name in (("probe", "probe on the host with the original"), ("pair", "**the pair**: a cross with the original")):
        if arm in paths:
            seen, memory = "images (lout = 0), what leaves its blocks", f"0 / {_links(readings, paths[arm])}"
            lines += both(arm, f"{name}, `{paths[arm]}`", paths[arm], memory, seen)
    return lines


def _mixed(readings: Readings, t0: Reading, tau_l: Reading, tau_h: Reading, reached: Reading) -> tuple[Reading, Reading]:
    """Average accuracy and relative throughput of a path at maximum offload with the original beside, as ``pair_throughput`` says."""
    accuracies: dict[int, float] = {}
    ratios: dict[int, float] = {}
    for seed in set(t0.by_seed) & set(tau_l.by_seed) & set(reached.by_seed):
        th_l, th_h = pair_throughput(t0.by_seed[seed], tau_l.by_seed[seed], tau_h.by_seed[seed], 1.0)
        ratios[seed] = float(th_l + th_h) * t0.by_seed[seed]
        accuracies[seed] = float((th_l * readings.original["test"] + th_h * reached.by_seed[seed]) / (th_l + th_h))
    return Reading(accuracies, t0.wanted), Reading(ratios, t0.wanted)


def _links(readings: Readings, path: InferencePath) -> str:
    return f"{readings.parameters_of(path)['links'] / 1e3:.0f}"


def _plus(time: Reading, original: Reading, percent: int) -> Reading:
    """A time with the original's for so many per cent of the images."""
    return Reading({s: time.by_seed[s] + percent / 100 * original.by_seed[s] for s in time.by_seed if s in original.by_seed}, time.wanted)


def _ratio(original: Reading, time: Reading) -> Reading:
    return Reading({s: original.by_seed[s] / time.by_seed[s] for s in time.by_seed if s in original.by_seed}, original.wanted)
