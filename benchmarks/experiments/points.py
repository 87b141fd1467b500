"""Point by point: what the paper claims, what was measured here, whether they agree."""

from __future__ import annotations

from benchmarks.experiments import paper
from benchmarks.experiments.readings import Reading, Readings, compensation
from benchmarks.experiments.selection import Selection
from code_ray.objective import PlanObjective
from code_ray.path import InferencePath, original_path
from code_ray.space import Candidate
from code_ray.throughput import Limits, PathCost


def compensation_table(readings: Readings) -> list[str]:
    """How much of the drop a trained host makes up for, over the random host and over the skip."""
    config, sample, original = readings.sample.config, readings.sample, readings.original["test"]
    lin = config.rank_lin
    lines = [
        "| host | hout | trained, % | random weights, % | over random, % | over the skip, % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    skip = readings.of(sample.skip(0, lin))
    rows = [(host, hout, sample.random(config.random, hout, lin)) for host in config.hosts for hout in sample.hout(host)]
    if config.other:
        rows += [(config.other.host, hout, sample.random(config.other.host, hout, lin)) for hout in sorted(config.other.hout)]
    for host, hout, control in rows:
        reached, base = readings.of(sample.cross(host, hout, lin)), readings.of(control)
        over = [compensation(reached, b, original).text(0) for b in (base, skip)]
        lines.append(f"| {host} | {hout} | {reached.text()} | {base.text()} | {over[0]} | {over[1]} |")
    lines.append(
        f"| paper, ImageNet or Food-101 | 2 | 80.0, 80.2 | 71.3 | {paper.COMPENSATION_OVER_RANDOM:g} | {paper.COMPENSATION_OVER_SKIP:g} |"
    )
    return lines


def links_table(readings: Readings) -> list[str]:
    """Accuracy by size of links."""
    config, sample = readings.sample.config, readings.sample
    lines = [
        "| host | hout | " + " | ".join(["normal", *(f"rank {rank}" for rank in config.ranks)]) + " |",
        "| --- | --- |" + " --- |" * (1 + len(config.ranks)),
    ]
    for host in config.hosts:
        for hout in sample.hout(host):
            cells = (readings.of(sample.cross(host, hout, config.rank_lin, rank)).text() for rank in (None, *config.ranks))
            lines.append(f"| {host} | {hout} | " + " | ".join(cells) + " |")
    lines.append(f"| links only | - | {readings.of(sample.links_only(config.random, config.rank_lin)).text()} |" + " |" * len(config.ranks))
    lines.append(f"| paper | 4 | {paper.LINKS['normal']} | {paper.LINKS['rank 25']} | {paper.LINKS['rank 5']} |")
    lines.append(f"| paper, links only | - | {paper.LINKS['links only']} | | |")
    return lines


def order_table(readings: Readings) -> list[str]:
    """Accuracy over hout, and where it falls again."""
    sample, config = readings.sample, readings.sample.config
    lines = ["| host | best hout | there, % | at the last hout, % | rises all the way |", "| --- | --- | --- | --- | --- |"]
    rows = {host: [sample.cross(host, hout, config.rank_lin) for hout in sample.hout(host)] for host in config.hosts}
    if config.other:
        rows[config.other.host] = [sample.cross(config.other.host, hout, config.other.lin) for hout in sorted(config.other.hout)]
    for host, paths in rows.items():
        found = {path.segments[1].stop: readings.of(path) for path in paths if readings.of(path).count}
        if found:
            means, best = [reading.mean for reading in found.values()], max(found, key=lambda hout: found[hout].mean)
            rises = "yes" if means == sorted(means) else "no"
            lines.append(f"| {host} | {best} | {found[best].text()} | {found[max(found)].text()} | {rises} |")
    lines.append(f"| paper, AlexNet | 4 | {paper.HOUT_4} | {paper.HOUT_5} | no |")
    lines.append(f"| paper, MobileNet | 5 | {paper.MOBILENET} | {paper.MOBILENET} | yes |")
    return lines


def skips_table(readings: Readings) -> list[str]:
    """Skips, normal and reduced, with their times."""
    config, sample = readings.sample.config, readings.sample
    t0 = readings.time(original_path(config.local, sample.blocks))
    lines = ["| skip | normal, % | reduced, % | ms an image | of the original's |", "| --- | --- | --- | --- | --- |"]
    for skip in sorted(config.skips):
        path = sample.skip(*skip)
        time = readings.time(path)
        share = Reading({s: time.by_seed[s] / t0.by_seed[s] for s in time.by_seed if s in t0.by_seed}, t0.wanted)
        accuracy = [readings.of(sample.skip(*skip, rank)).text() for rank in (None, config.skip_rank)]
        lines.append(f"| [{skip[0]}, {skip[1]}] | {accuracy[0]} | {accuracy[1]} | {time.text(2)} | {share.text(2)} |")
    lines.append(f"| the original | {readings.original['test']:.1f} | | {t0.text(2)} | 1 |")
    lines.append(f"| paper [1, 5] | {paper.SKIP_1_5['normal']} | {paper.SKIP_1_5['reduced']} | | |")
    lines.append(f"| paper [0, 5] | {paper.SKIP_0_5:g} | | | |")
    lines.append(f"| paper [1, 4] | | | {paper.SKIP_MS} | {paper.SKIP_MS / paper.ORIGINAL_MS:g} |")
    return lines


def ranks_table(readings: Readings) -> list[str]:
    """The best plan with and without reduced links among what it may be made of; chosen, and judged here, on validation images."""
    config, sample = readings.sample.config, readings.sample
    host = config.hosts[-1]
    lines = [
        "| loss limit, points | normal links alone | ranks " + ", ".join(map(str, config.ranks)) + " as well | paths of the plan |",
        "| --- | --- | --- | --- |",
    ]
    original = original_path(config.local, sample.blocks)
    for limit in (0.5, 1.0, 2.3):
        cells: list[Reading] = []
        names: set[str] = set()
        for ranks in ((None,), (None, *config.ranks)):
            paths = [sample.cross(host, hout, config.rank_lin, rank) for rank in ranks for hout in sample.hout(host)]
            values: dict[int, float] = {}
            for seed in readings.seeds:
                known = _known(readings, paths, seed)
                start = readings.time(original).by_seed.get(seed)
                if known and start:
                    limits = Limits({config.local: 1.0, host: 1.0}, limit)
                    own = Candidate(original, PathCost({config.local: start}))
                    objective = PlanObjective(own, readings.original["validation"] / 100, limits, config.local)
                    values[seed] = objective.value(known)
                    if len(ranks) > 1:
                        names |= {str(path) for path, rate in objective.rates(known).items() if rate > 0}
            cells.append(Reading(values, len(readings.seeds)))
        lines.append(f"| {limit:g} | {cells[0].text(2)} | {cells[1].text(2)} | {', '.join(f'`{name}`' for name in sorted(names))} |")
    return lines


def _known(readings: Readings, paths: list[InferencePath], seed: int) -> dict[InferencePath, tuple[PathCost, float]]:
    known = {}
    for path in paths:
        found = [readings.of(path, "accuracy_validation", 1.0), readings.time(path), readings.time(path, "host")]
        if all(seed in reading.by_seed for reading in found):
            accuracy, tau_l, tau_h = (reading.by_seed[seed] for reading in found)
            known[path] = PathCost({path.local: tau_l, path.hosts[0]: tau_h}), accuracy
    return known


def exits_table(readings: Readings) -> list[str]:
    """Exits beside the best borrowing path that takes no more of the local server."""
    config, sample = readings.sample.config, readings.sample
    crosses = [sample.cross(host, hout, lin) for host in config.hosts for lin in config.lin for hout in sample.hout(host)]
    if config.other:
        crosses += [sample.cross(config.other.host, hout, config.other.lin) for hout in config.other.hout]
    lines = [
        "| exit behind block | local ms | accuracy, % | gated at 10 %, % | best borrowing path with no more local work | accuracy, % | gated at 10 %, % |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for lout in config.exits:
        path = sample.exit(lout)
        time = readings.time(path)
        allowed = [c for c in crosses if readings.of(c).count and readings.time(c).mean <= 1.02 * time.mean]
        own = f"| {lout} | {time.text(2)} | {readings.of(path).text()} | {readings.of(path, 'gated_10').text()} |"
        if not allowed:
            lines.append(f"{own} none in the sample | | |")
            continue
        best = readings.best(allowed)
        lines.append(f"{own} `{best}` | {readings.of(best).text()} | {readings.of(best, 'gated_10').text()} |")
    return lines


def selection_table(selection: Selection) -> list[str]:
    """The path with the highest reward by either reading of throughput."""
    lines = [
        "| reading | path | seeds | accuracy, % | Th_p / Th_0 | loss of the average, points | less local work, % | F |",
        "| --- |" + " --- |" * 7,
    ]
    for whole in (False, True):
        space = "all paths" if whole else f"lin up to {selection.most_lin}"
        for name, end in (("programme, at maximum offload", ""), ("cycle, b_l = b_h = 32", "_cycle")):
            row = selection.best(end, whole=whole)
            cells = (
                f"{100 * row.test:.1f} ± {100 * row.spread:.1f} | {row[f'ratio{end}']:.2f} | {row[f'loss{end}']:.1f} | {row.less_local:.0f}"
            )
            lines.append(f"| {name}, {space} | {row.vector} | {row.seeds} | {cells} | {row[f'reward{end}']:.3f} |")
    lines.append(
        f"| paper | [0, 1, 4, 5] | | 82.7 or 83.3 | {paper.SELECTED_RATIO} | {paper.ORIGINAL - paper.SELECTED_AVERAGE:.1f} | 75 | |"
    )
    return lines


def iterations_table(selection: Selection) -> list[str]:
    """What each sampler returns, and after how many trainings."""
    lines = ["| sampler | restarts | trainings until it stops | F of what it returns, of the best there is |", "| --- | --- | --- | --- |"]
    for name, rows in selection.iterations.groupby("sampler", sort=False):
        last = rows.groupby("restart").last()
        share = last.reward / last.best
        spread = f" ± {share.std():.3f}" if len(last) > 1 else ""
        lines.append(f"| {name} | {len(last)} | {last.iteration.min()} to {last.iteration.max()} | {share.mean():.3f}{spread} |")
    return lines


def computation_table(readings: Readings) -> list[str]:
    """Crosses by host with the local work that they save."""
    config, sample = readings.sample.config, readings.sample
    t0 = readings.time(original_path(config.local, sample.blocks))
    lines = [
        "| path (best hout by validation) | less local time, % | less local parameters, % | accuracy, % | loss, points |",
        "| --- | --- | --- | --- | --- |",
    ]
    groups = [[sample.cross(host, hout, config.rank_lin) for hout in sample.hout(host)] for host in config.hosts]
    if config.other:
        groups.append([sample.cross(config.other.host, hout, config.other.lin) for hout in config.other.hout])
    whole = int(readings.services.parameters[config.local])
    for paths in groups:
        if any(readings.of(path).count for path in paths):
            best = readings.best(paths)
            time, reached = readings.time(best), readings.of(best)
            less = Reading({s: 100 * (1 - time.by_seed[s] / t0.by_seed[s]) for s in time.by_seed if s in t0.by_seed}, t0.wanted)
            lost = Reading({s: readings.original["test"] - a for s, a in reached.by_seed.items()}, reached.wanted)
            skipped = 100 * readings.parameters_of(best)["skipped"] / whole
            lines.append(f"| `{best}` | {less.text(0)} | {skipped:.0f} | {reached.text()} | {lost.text()} |")
    lines.append(f"| paper, MobileNet | 75 | | {paper.MOBILENET} | {paper.ORIGINAL - paper.MOBILENET:.1f} |")
    return lines


def table_exits(selection: Selection) -> list[str]:
    """The same with every cross of the pair, lout >= 1 among them, by the times of the table."""
    lines = ["| exit behind block | local ms | accuracy, % (seeds) | best cross with no more local work | local ms | accuracy, % (seeds) |"]
    lines.append("| --- |" + " --- |" * 5)
    for row in selection.exits.to_dict("records"):
        allowed = selection.paths[selection.paths.tau_local_ms <= 1.02 * row["tau_local_ms"]]
        own = f"| {row['lout']} | {row['tau_local_ms']:.2f} | {row['test']:.1f} ({row['seeds']}) |"
        if not len(allowed):
            lines.append(f"{own} none | | |")
            continue
        best = allowed.iloc[int(allowed.validation.to_numpy().argmax())]
        lines.append(f"{own} {best.vector} | {best.tau_local_ms:.2f} | {100 * best.test:.1f} ({best.seeds}) |")
    return lines
