"""The claims of the paper in a table, each with what was found here and whether that agrees."""

from __future__ import annotations

from benchmarks.experiments import paper
from benchmarks.experiments.readings import Reading, Readings, compensation
from benchmarks.experiments.selection import Selection
from code_ray.path import InferencePath, original_path

AGREES, MORE, LESS, PART, NOT = "agrees", "more so here", "less so here", "in part", "does not agree"
UNKNOWN, NOTHING_SHOWN = "not measured", "no effect shown"
FEW_POINTS, POINTS = 3.0, 10.0
"""So far apart may what reduced links cost, and other effects, lie from the paper's and still count as agreeing; set by us when first
figures had been seen."""


LEGEND = (
    f"*Agrees*: an effect within {POINTS:g} points, or per cent, of the paper's ({FEW_POINTS:g} points for reduced links): limits that we set, when first figures had been seen. "
    "*More so*, *less so*: the same direction. *No effect shown*: within two standard errors of none. Where a claim names no hout, it is the best on validation images."
)


def verdicts_table(readings: Readings, selection: Selection | None) -> list[str]:
    """A line a claim."""
    lines = ["| claim | paper | here | |", "| --- | --- | --- | --- |"]
    rows = [*_compensations(readings), *_links(readings), *_order(readings), *_skips(readings), *_computation(readings)]
    rows += [] if selection is None else _selected(selection)
    return lines + [f"| {claim} | {said} | {found} | {verdict} |" for claim, said, found, verdict in [*rows, _exits(readings)]]


def _grade(here: Reading, said: float, tolerance: float = POINTS) -> str:
    """In one word; an effect within two standard errors of nothing is none."""
    if not here.count:
        return UNKNOWN
    if here.count > 1 and abs(here.mean) < 2 * here.spread / here.count**0.5:
        return NOTHING_SHOWN
    if abs(here.mean - said) <= tolerance:
        return AGREES
    return NOT if here.mean * said < 0 else MORE if abs(here.mean) > abs(said) else LESS


def _compensations(readings: Readings) -> list[tuple[str, str, str, str]]:
    config, sample, original = readings.sample.config, readings.sample, readings.original["test"]
    lin, rows = config.rank_lin, []
    groups = {host: (config.random, [sample.cross(host, h, lin) for h in sample.hout(host)]) for host in config.hosts}
    if config.other:
        groups[config.other.host] = config.other.host, [sample.cross(config.other.host, h, lin) for h in config.other.hout]
    for host, (control, paths) in groups.items():
        best = _best(readings, paths)
        if best is None:
            continue
        hout, reached = best.segments[1].stop, readings.of(best)
        random = compensation(reached, readings.of(sample.random(control, hout, lin)), original)
        skip = compensation(reached, readings.of(sample.skip(0, lin)), original)
        verdict = _grade(random, paper.COMPENSATION_OVER_RANDOM)
        rows.append((f"{host} makes up for the drop over random weights, hout = {hout}", "58 %", f"{random.text(0)} %", verdict))
        verdict = _grade(skip, paper.COMPENSATION_OVER_SKIP)
        rows.append((f"the same over the skip [0, {lin}]", "78 %", f"{skip.text(0)} %", verdict))
    return rows


def _links(readings: Readings) -> list[tuple[str, str, str, str]]:
    """At the paper's hout, where a host has as many blocks."""
    config, sample, rows = readings.sample.config, readings.sample, []
    for host in config.hosts:
        hout = min(paper.LINKS_HOUT, max(sample.hout(host)))
        normal = readings.of(sample.cross(host, hout, config.rank_lin))
        for rank in config.ranks:
            lost = _less(normal, readings.of(sample.cross(host, hout, config.rank_lin, rank)))
            said = paper.LINKS["normal"] - paper.LINKS.get(f"rank {rank}", float("nan"))
            claim = f"links of rank {rank} cost, {host}, hout = {hout}"
            rows.append((claim, f"{said:.1f} points", f"{lost.text()} points", _grade(lost, said, FEW_POINTS)))
        lost = _less(normal, readings.of(sample.links_only(config.random, config.rank_lin)))
        said = paper.LINKS["normal"] - paper.LINKS["links only"]
        claim = f"without any host block (links only) is lost, of {host}, hout = {hout}"
        rows.append((claim, f"{said:.1f} points", f"{lost.text()} points", _grade(lost, said)))
    return rows


def _order(readings: Readings) -> list[tuple[str, str, str, str]]:
    config, sample, rows = readings.sample.config, readings.sample, []
    groups = [
        (
            "AlexNet as host",
            "falls at the end",
            False,
            [sample.cross(config.hosts[-1], h, config.rank_lin) for h in sample.hout(config.hosts[-1])],
        )
    ]
    if config.other:
        paths = [sample.cross(config.other.host, h, config.other.lin) for h in sorted(config.other.hout)]
        groups.append(("another architecture as host", "rises with hout", True, paths))
    for name, said, rises, paths in groups:
        means = [readings.of(path).mean for path in paths if readings.of(path).count]
        found = bool(means) and means[-1] == max(means)
        here = f"{'rises with hout' if found else 'falls at the end'}: {', '.join(f'{mean:.1f}' for mean in means)} %"
        rows.append((f"more blocks of the host: {name}", said, here, (AGREES if found == rises else NOT) if means else UNKNOWN))
    return rows


def _skips(readings: Readings) -> list[tuple[str, str, str, str]]:
    config, sample = readings.sample.config, readings.sample
    lin = config.rank_lin
    gain = _less(readings.of(sample.skip(1, lin)), readings.of(sample.skip(0, lin)))
    said = paper.SKIP_1_5["normal"] - paper.SKIP_0_5
    rows = [(f"a skip to {lin} gains by lout = 1 over lout = 0", f"{said:.1f} points", f"{gain.text()} points", _grade(gain, said))]
    lost = _less(readings.of(sample.skip(1, lin)), readings.of(sample.skip(1, lin, config.skip_rank)))
    said = paper.SKIP_1_5["normal"] - paper.SKIP_1_5["reduced"]
    rows.append((f"a reduced link on [1, {lin}] costs", f"{said:.1f} points", f"{lost.text()} points", _grade(lost, said, FEW_POINTS)))
    t0 = readings.time(original_path(config.local, sample.blocks))
    for skip in ((1, lin - 1), (1, lin)):
        if skip in config.skips:
            time = readings.time(sample.skip(*skip))
            saved = Reading({s: 100 * (1 - time.by_seed[s] / t0.by_seed[s]) for s in time.by_seed if s in t0.by_seed}, t0.wanted)
            here = f"{time.text(2)} against {t0.text(2)} ms: {saved.text(0)} % less"
            verdict = _grade(saved, 100 * (1 - paper.SKIP_MS / paper.ORIGINAL_MS))
            rows.append((f"time of a skip, [{skip[0]}, {skip[1]}]", "1.4 against 2.0 ms: 30 % less", here, verdict))
    return rows


def _computation(readings: Readings) -> list[tuple[str, str, str, str]]:
    config, sample = readings.sample.config, readings.sample
    best = _best(readings, [sample.cross(config.other.host, h, config.other.lin) for h in config.other.hout]) if config.other else None
    if best is None:
        return []
    t0, time = readings.time(original_path(config.local, sample.blocks)), readings.time(best)
    lost = Reading({s: readings.original["test"] - a for s, a in readings.of(best).by_seed.items()}, len(readings.seeds))
    less = 100 * (1 - time.mean / t0.mean)
    verdict = AGREES if less >= 75 and lost.mean <= 2.5 else PART if less >= 75 else NOT
    here = f"{less:.0f} % less time, {lost.text()} points"
    return [(f"less local computation through another architecture, `{best}`", "75 % less, 2.2 points", here, verdict)]


def _selected(selection: Selection) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, end in (("programme", ""), ("cycle", "_cycle")):
        row = selection.best(end)
        here = f"{row.vector}: {row[f'ratio{end}']:.2f} times, {row[f'loss{end}']:.1f} points ({row.seeds} seed{'s' * int(row.seeds > 1)})"
        verdict = (
            AGREES if row[f"ratio{end}"] >= paper.SELECTED_RATIO and row[f"loss{end}"] <= paper.ORIGINAL - paper.SELECTED_AVERAGE else NOT
        )
        claim = f"the path with the highest reward, lin up to {selection.most_lin}, throughput read as {name}"
        rows.append((claim, "[0, 1, 4, 5]: 1.4 times, 2.3 points", here, verdict))
    same = "the same path" if selection.best().vector == selection.best("_cycle").vector else "another path"
    rows.append(("does the reading of throughput change the winner", "not said", same, "-"))
    return rows


def _exits(readings: Readings) -> tuple[str, str, str, str]:
    config, sample = readings.sample.config, readings.sample
    crosses = [sample.cross(host, h, lin) for host in config.hosts for lin in config.lin for h in sample.hout(host)]
    if config.other:
        crosses += [sample.cross(config.other.host, h, config.other.lin) for h in config.other.hout]
    won, compared = 0, 0
    for lout in config.exits:
        exit_time, reached = readings.time(sample.exit(lout)), readings.of(sample.exit(lout))
        best = _best(readings, [c for c in crosses if readings.time(c).mean <= 1.02 * exit_time.mean])
        if best is not None and reached.count:
            compared += 1
            won += readings.of(best).mean > reached.mean
    verdict = UNKNOWN if not compared else AGREES if won == compared else NOT if won == 0 else PART
    here = f"borrowing is more accurate at {won} of {compared} exits, the host's work not counted"
    return "against early exits, at no more local computation", "more accurate", here, verdict


def _best(readings: Readings, paths: list[InferencePath]) -> InferencePath | None:
    return readings.best(paths) if any(readings.of(path).count for path in paths) else None


def _less(more: Reading, less: Reading) -> Reading:
    return Reading({s: more.by_seed[s] - less.by_seed[s] for s in more.by_seed if s in less.by_seed}, more.wanted)
