"""What a user would do instead of borrowing, each with what it costs."""

from __future__ import annotations

from benchmarks.experiments.readings import Reading, Readings
from code_ray.path import InferencePath, original_path
from code_ray.throughput import pair_throughput

HEAD = "| | accuracy, % | throughput by the model | memory added, local / host, thousand parameters | training, s | what the other owner sees |"
GATE = 10
"""Per cent that a gate sends over the original again."""


def rivals_table(readings: Readings) -> list[str]:
    """Lines of a table; the original is 1.00."""
    config, sample = readings.sample.config, readings.sample
    original = original_path(config.local, sample.blocks)
    t0 = readings.time(original)
    own = round(int(readings.services.parameters[config.local]) / 1e3)
    a0, one, double = (Reading({0: value}, 1) for value in (readings.original["test"], 1.0, 2.0))  # the network is one, whatever the seed
    mode = next((str(row["mode"]) for row in readings.results.times.values()), "unknown")
    lines = [
        HEAD,
        "| --- | --- | --- | --- | --- | --- |",
        _line(f"the original in its fastest mode, {mode}", a0, one, "0 / 0", None, "nothing"),
    ]
    lines.append(_line("the original in float32", a0, _ratio(t0, readings.rival("float32", "tau_local_ms")), "0 / 0", None, "nothing"))
    int8 = readings.rival("int8", "accuracy_test", 100), _ratio(t0, readings.rival("int8", "tau_local_ms"))
    lines.append(
        _line("int8, static, a range from 256 images", *int8, f"{own} at a byte / 0", readings.rival("int8", "seconds"), "nothing")
    )
    lines.append(_line("the second core for the original", a0, double, f"{own} / 0", None, "nothing; needs a core of one's own"))
    lines.append(_line("a full replica on the host, kappa = 1", a0, double, f"0 / {own}", None, "weights and images"))
    for lout in config.exits:
        path = sample.exit(lout)
        lines += _both(readings, f"exit behind block {lout}", path, t0, f"{_links(readings, path)} / 0", "nothing")
    for channels in (16, 32):
        name = f"distilled-{channels}"
        size = readings.rival(name, "parameters", 1e-3)
        time, seconds = readings.rival(name, "tau_local_ms"), readings.rival(name, "seconds")
        plain, gated = readings.rival(name, "accuracy_test", 100), readings.rival(name, f"gated_{GATE}", 100)
        memory = f"{size.mean:.0f} / 0" if size.count else "missing"
        lines.append(_line(f"distilled, {channels} channels", plain, _ratio(t0, time), memory, seconds, "nothing"))
        lines.append(_line(f"the same, gated at {GATE} %", gated, _ratio(t0, _plus(time, t0)), memory, seconds, "nothing"))
    if config.other:
        probes = [sample.probe(config.other.host, hout) for hout in config.other.hout[:3]]
        crosses = [sample.cross(config.other.host, hout, config.other.lin) for hout in config.other.hout]
        for name, paths in (("probe on the host with the original", probes), ("**the pair**: a cross with the original", crosses)):
            if any(readings.of(path).count for path in paths):
                lines += _pair(readings, name, readings.best(paths), t0)
    return lines


def _both(readings: Readings, name: str, path: InferencePath, t0: Reading, memory: str, seen: str) -> list[str]:
    time, seconds = readings.time(path), readings.of(path, "seconds", 1.0)
    return [
        _line(name, readings.of(path), _ratio(t0, time), memory, seconds, seen),
        _line(f"the same, gated at {GATE} %", readings.of(path, f"gated_{GATE}"), _ratio(t0, _plus(time, t0)), memory, seconds, seen),
    ]


def _pair(readings: Readings, name: str, path: InferencePath, t0: Reading) -> list[str]:
    """The original and one path at maximum offload, as ``pair_throughput`` says: the accuracy is that of the mixture. A gate sends a part
    of what was offloaded over the original again.
    """
    tau_l, memory, seconds = readings.time(path), f"0 / {_links(readings, path)}", readings.of(path, "seconds", 1.0)
    lines = []
    for title, column, time in (
        (f"{name}, `{path}`", "accuracy_test", tau_l),
        (f"the same, gated at {GATE} %", f"gated_{GATE}", _plus(tau_l, t0)),
    ):
        accuracy, ratio = _mixed(readings, t0, time, readings.time(path, "host"), readings.of(path, column))
        lines.append(_line(title, accuracy, ratio, memory, seconds, "images (lout = 0), what leaves its blocks"))
    return lines


def _mixed(readings: Readings, t0: Reading, tau_l: Reading, tau_h: Reading, reached: Reading) -> tuple[Reading, Reading]:
    """Average accuracy and relative throughput with the original beside."""
    accuracies: dict[int, float] = {}
    ratios: dict[int, float] = {}
    for seed in set(t0.by_seed) & set(tau_l.by_seed) & set(reached.by_seed):
        th_l, th_h = pair_throughput(t0.by_seed[seed], tau_l.by_seed[seed], tau_h.by_seed[seed], 1.0)
        ratios[seed] = float(th_l + th_h) * t0.by_seed[seed]
        accuracies[seed] = float((th_l * readings.original["test"] + th_h * reached.by_seed[seed]) / (th_l + th_h))
    return Reading(accuracies, t0.wanted), Reading(ratios, t0.wanted)


def _links(readings: Readings, path: InferencePath) -> str:
    return f"{readings.parameters_of(path)['links'] / 1e3:.0f}"


def _plus(time: Reading, original: Reading) -> Reading:
    return Reading({s: time.by_seed[s] + GATE / 100 * original.by_seed[s] for s in time.by_seed if s in original.by_seed}, time.wanted)


def _ratio(original: Reading, time: Reading) -> Reading:
    return Reading({s: original.by_seed[s] / time.by_seed[s] for s in time.by_seed if s in original.by_seed}, original.wanted)


def _line(name: str, accuracy: Reading, ratio: Reading, memory: str, seconds: Reading | None, seen: str) -> str:
    trained = "-" if seconds is None else seconds.text(0)
    return f"| {name} | {accuracy.text()} | {ratio.text(2)} | {memory} | {trained} | {seen} |"
