"""The paper's figures 5 to 8 in the same form from what was measured here, the paper's own numbers as stars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.experiments import paper
from benchmarks.experiments.readings import Readings
from benchmarks.experiments.selection import Selection
from code_ray.controls import RANDOM_SUFFIX
from code_ray.path import InferencePath

COLOURS = ("#0b6e4f", "#2b6cb0", "#b45309", "#8b5cf6", "#333333")
PAPER_STYLE = {"marker": "*", "s": 110, "zorder": 3, "edgecolor": "white"}


def draw_all(readings: Readings, selection: Selection | None, folder: Path) -> None:
    """Write ``experiment_1.png`` and so on; experiment 4's where there is a table to select from."""
    folder.mkdir(parents=True, exist_ok=True)
    cross_figure(readings, folder / "experiment_1.png")
    links_figure(readings, folder / "experiment_1_links.png")
    skip_figure(readings, folder / "experiment_2_3.png")
    if selection is not None:
        selection_figure(selection, folder / "experiment_4.png")


def series(axes: Axes, readings: Readings, label: str, paths: Mapping[int, InferencePath], colour: str, style: str = "-") -> None:
    """Test accuracy over the keys of ``paths``, bars are the spread over seeds; paths without any training are left out."""
    found = {x: readings.of(path) for x, path in paths.items()}
    shown = {x: reading for x, reading in found.items() if reading.count}
    if shown:
        fewest = min(reading.count for reading in shown.values())
        note = "" if fewest == len(readings.seeds) else f", from {fewest} seed{'s' * (fewest > 1)}"
        axes.errorbar(
            list(shown),
            [reading.mean for reading in shown.values()],
            [reading.spread for reading in shown.values()],
            label=label + note,
            color=colour,
            linestyle=style,
            marker="o",
            markersize=4,
            capsize=3,
        )


def cross_figure(readings: Readings, file: Path) -> None:
    """Figure 5: accuracy over hout for every lin, and parameters."""
    sample, config = readings.sample, readings.sample.config
    lins = sorted(config.lin)
    figure, panels = plt.subplots(1, len(lins) + 1, figsize=(3.9 * (len(lins) + 1), 3.9), layout="constrained")
    first = panels[0]
    for axes, lin in zip(panels, lins, strict=False):
        for host, colour in zip(config.hosts, COLOURS, strict=False):
            series(axes, readings, host, {h: sample.cross(host, h, lin) for h in sample.hout(host)}, colour)
        random = {h: sample.random(config.random, h, lin) for h in sample.hout(config.random)}
        series(axes, readings, "random weights", random, COLOURS[2], "--")
        if lin == config.rank_lin:
            for (name, value), colour in zip(paper.CROSS_HOUT_2.items(), (*COLOURS[:2], COLOURS[2]), strict=True):
                axes.scatter(2, value, color=colour, label=f"paper: {name}", **PAPER_STYLE)
        axes.axhline(readings.original["test"], color="#999999", linewidth=1)
        axes.set(title=f"lin = {lin} (the paper's {lin + 1})", xlabel="hout", ylabel="test accuracy, %" if axes is first else "")
        axes.sharey(first)
        legend(axes)
    parameters(panels[-1], readings, {h: sample.cross(config.random, h, config.rank_lin) for h in sample.hout(config.random)}, "hout")
    save(figure, file)


def parameters(axes: Axes, readings: Readings, paths: Mapping[int, InferencePath], over: str) -> None:
    """Parameters of links, of skipped local blocks and of links and host blocks together, in millions."""
    counts = {x: readings.parameters_of(path) for x, path in paths.items()}
    kinds = {"links": ("links",), "local blocks skipped": ("skipped",), "links and host blocks": ("links", "host")}
    for (label, parts), colour in zip(kinds.items(), COLOURS, strict=False):
        axes.plot(
            list(counts), [sum(c[p] for p in parts) / 1e6 for c in counts.values()], marker="o", markersize=4, color=colour, label=label
        )
    axes.set(title="parameters, millions", xlabel=over, ylim=(0, None))
    legend(axes)


def links_figure(readings: Readings, file: Path) -> None:
    """Figure 6: accuracy over hout by size of the links."""
    sample, config = readings.sample, readings.sample.config
    figure, panels = plt.subplots(1, len(config.hosts), figsize=(4.6 * len(config.hosts), 4), layout="constrained", squeeze=False)
    for axes, host in zip(panels[0], config.hosts, strict=True):
        for rank, colour in zip((None, *config.ranks), COLOURS, strict=False):
            label = "normal links" if rank is None else f"rank {rank}"
            series(axes, readings, label, {h: sample.cross(host, h, config.rank_lin, rank) for h in sample.hout(host)}, colour)
        alone = readings.of(sample.links_only(config.random, config.rank_lin))
        if alone.count:
            axes.axhline(alone.mean, color=COLOURS[4], linestyle="--", label="links only")
        for (name, value), colour in zip(paper.LINKS.items(), (*COLOURS[:3], COLOURS[4]), strict=True):
            axes.scatter(4, value, color=colour, label=f"paper: {name}", **PAPER_STYLE)
        axes.set(title=f"{host}, lin = {config.rank_lin}", xlabel="hout", ylabel="test accuracy, %")
        legend(axes)
    save(figure, file)


def skip_figure(readings: Readings, file: Path) -> None:
    """Figure 7: skips, normal and reduced, with their parameters; a host of another architecture."""
    sample, config = readings.sample, readings.sample.config
    figure, panels = plt.subplots(2, 2, figsize=(9.5, 7.4), layout="constrained")
    (skips, sizes), (other, _) = panels
    for lout, colour in zip(sorted({lout for lout, _ in config.skips}), COLOURS, strict=False):
        lins = sorted(lin for start, lin in config.skips if start == lout)
        series(skips, readings, f"lout = {lout}", {lin: sample.skip(lout, lin) for lin in lins}, colour)
        series(skips, readings, f"lout = {lout}, reduced", {lin: sample.skip(lout, lin, config.skip_rank) for lin in lins}, colour, "--")
    skips.scatter([4, 4], list(paper.SKIP_1_5.values()), color=COLOURS[1], label="paper: [1, 5], normal and reduced", **PAPER_STYLE)
    skips.scatter(4, paper.SKIP_0_5, color=COLOURS[0], label="paper: [0, 5]", **PAPER_STYLE)
    skips.set(title="(a) skips", xlabel="lin", ylabel="test accuracy, %", xticks=sorted({lin for _, lin in config.skips}))
    legend(skips)
    names = [f"[{lout}, {lin}]" for lout, lin in config.skips]
    for shift, (label, rank) in enumerate((("link", None), ("reduced link", config.skip_rank))):
        counts = [readings.parameters_of(sample.skip(*skip, rank))["links"] for skip in config.skips]
        sizes.bar([x + 0.25 * shift for x in range(len(names))], counts, 0.25, label=label, color=COLOURS[shift])
    skipped = [readings.parameters_of(sample.skip(*skip))["skipped"] for skip in config.skips]
    sizes.bar([x + 0.5 for x in range(len(names))], skipped, 0.25, label="skipped", color=COLOURS[2])
    sizes.set(title="(b) parameters", yscale="log")
    sizes.set_xticks([x + 0.25 for x in range(len(names))], names, fontsize=7)
    legend(sizes)
    if config.other:
        host, lin = config.other.host, config.other.lin
        paths = {h: sample.cross(host, h, lin) for h in sorted(config.other.hout)}
        series(other, readings, host, paths, COLOURS[0])
        series(other, readings, host + RANDOM_SUFFIX, {h: sample.random(host, h, lin) for h in paths}, COLOURS[2], "--")
        other.axhline(paper.MOBILENET, color=COLOURS[0], linestyle=":", label="paper: MobileNet at its best")
        other.axhline(readings.original["test"], color="#999999", linewidth=1, label="the original here")
        other.set(title="(c) another architecture as host", xlabel="hout", ylabel="test accuracy, %")
        legend(other)
        parameters(panels[1][1], readings, paths, "hout")
        panels[1][1].set_title("(d) parameters, millions")
    save(figure, file)


def selection_figure(selection: Selection, file: Path) -> None:
    """Figure 8: accuracy and relative throughput of all crosses; the reward of what would be returned after each training."""
    figure, (scatter, course) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    paths = selection.paths
    dots = scatter.scatter(paths.ratio, 100 * paths.average, c=paths.reward, cmap="viridis", norm="log", s=18)
    figure.colorbar(dots, ax=scatter, label="F")
    for best in (selection.best(), selection.best(whole=True)):
        scatter.annotate(best.vector, (best.ratio, 100 * best.average), textcoords="offset points", xytext=(-50, 8), fontsize=8)
    scatter.scatter(paper.SELECTED_RATIO, paper.SELECTED_AVERAGE, color="#b91c1c", label="paper: [0, 1, 4, 5]", **PAPER_STYLE)
    scatter.set(title="(a) every cross with the original", xlabel="Th_p / Th_0", ylabel="average accuracy, %", xscale="log")
    legend(scatter)
    for (name, rows), colour in zip(selection.iterations.groupby("sampler", sort=False), COLOURS, strict=False):
        for number, (_, run) in enumerate(rows.groupby("restart")):
            course.plot(run.iteration, run.reward, color=colour, marker="o", markersize=3, label=name if number == 0 else None)
    course.axhline(selection.iterations.best.max(), color="#999999", linewidth=1, label="the best there is")
    course.axvline(paper.REWARD_ITERATION, color="#b91c1c", linestyle=":", label="paper: best at iteration 4")
    course.set(title=f"(b) reward of what would be returned, lin up to {selection.most_lin}", xlabel="training", ylabel="F")
    legend(course)
    save(figure, file)


def legend(axes: Axes) -> None:
    """Below the picture, where it hides nothing."""
    axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def save(figure: Figure, file: Path) -> None:
    """As a PNG, small enough to be kept in a repository."""
    figure.savefig(file, dpi=90)
    plt.close(figure)
