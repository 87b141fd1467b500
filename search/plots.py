"""Pictures of a search, as PNG: Pareto, trace, forecasts against what was measured, and paths as blocks and links."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from code_ray.party import PublicService
from code_ray.path import InferencePath
from code_ray.service import Service
from search.campaign import FINISHED
from search.problem import Problem

# A dollar in the name of a service is a dollar.
matplotlib.rcParams["text.parse_math"] = False

COLOURS = {"cross": "#0b6e4f", "skip": "#c05621", "exit": "#8b5cf6", "probe": "#2b6cb0", "original": "#333333"}
ARM_COLOURS = {"host_free": "#c05621", "mixture": "#0b6e4f", "mixture_lout_1": "#7fb8a0", "probe": "#2b6cb0"}
CONTROL_MARKS = {"random_host": "x", "links_only": "+", "skip": "s"}
RED = "#b91c1c"

LOG_FROM = 5.0
"""Ratios up to here stand on a linear axis; further ones, from very early exits, would push all others into a corner of it."""

WINDOW = 0.2
"""Accuracies further than this below the best stand at the edge of their picture, with their figure."""


def draw_pareto(
    problem: Problem,
    table: pd.DataFrame,
    arms: Mapping[str, Mapping[str, Any]],
    frontiers: Mapping[str, tuple[list[float], list[float]]],
) -> bytes:
    """Throughput ratio against average-accuracy loss. Lines: each arm as the loss limit grows; rings: at the run's limit;
    dots and marks: the original with one path, or one control, at maximum offload. What lies outside stands at the edge.
    """
    figure, axes = plt.subplots(figsize=(7.5, 7.6), layout="constrained")
    lines: dict[tuple[tuple[float, ...], ...], list[str]] = {}
    for name, (ratios, losses) in frontiers.items():
        lines.setdefault((tuple(round(r, 3) for r in ratios), tuple(round(loss, 3) for loss in losses)), []).append(name)
    for (along, lost), names in lines.items():
        if max(along) > 1:
            style = "--" if names[0] == "mixture_lout_1" else "-"
            label = f"arm: {' = '.join(map(readable, names))}"
            axes.plot(along, lost, style, color=ARM_COLOURS[names[0]], linewidth=1.6, label=label)
    limit = problem.config.loss_points
    axes.axhline(limit, color="grey", linestyle=":", linewidth=1, label=f"loss limit of this run: {limit:g} points")
    highest = max(*(losses[-1] for _, losses in frontiers.values()), *(arm["average_accuracy_loss_points"] for arm in arms.values()))
    top = max(highest, 2 * limit, 1.0) * 1.1
    # Far beyond the plan, an exit after the first block serves dozens of times as much at a loss nobody wants.
    most = max(arm["throughput_ratio"] for arm in arms.values())
    right = 1 + 1.15 * (max(min(1.5 * most, *(ratios[-1] for ratios, _ in frontiers.values())), most) - 1) + 0.1
    _ratio_axis(axes, right)
    axes.set(ylim=(-0.08 * top, top))
    edge = right**0.985 if right > LOG_FROM else 1 + 0.98 * (right - 1)
    trained = table[table.fidelity.isin(FINISHED)]
    for kind, group in trained[trained.role.isin(["search", "rival", "refine"])].groupby("kind"):
        x, y = group.pair_throughput_ratio.clip(upper=edge), group.pair_loss_points.clip(upper=0.98 * top)
        axes.scatter(x, y, s=24, color=COLOURS[str(kind)], label=f"original + one {kind}", zorder=3, clip_on=False)
    for role, mark in CONTROL_MARKS.items():
        for _, row in trained[trained.role == role].iterrows():
            place = min(row.pair_throughput_ratio, edge), min(row.pair_loss_points, 0.98 * top)
            label = f"control: {readable(role)}, {row.pair_loss_points:.1f} points"
            axes.scatter(*place, s=70, marker=mark, color=RED, label=label, zorder=4, clip_on=False)
    rings = _ring_arms(axes, arms)
    axes.set(xlabel="throughput / original alone (by the linear programme)", ylabel="average-accuracy loss, points (validation)")
    figure.legend(handles=[*rings, *axes.get_legend_handles_labels()[0]], fontsize=9, loc="outside lower center", ncols=2)
    return _png(figure)


def _ratio_axis(axes: Axes, right: float) -> None:
    if right <= LOG_FROM:
        axes.set(xlim=(1 - 0.04 * (right - 1), right))
        return
    axes.set(xscale="log", xlim=(right**-0.04, right))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _ring_arms(axes: Axes, arms: Mapping[str, Mapping[str, Any]]) -> list[Line2D]:
    """A ring with a letter for each arm, and what the letters mean; arms that stand at the same place share one."""
    places: dict[tuple[float, float], list[str]] = {}
    for name, arm in arms.items():
        places.setdefault((round(arm["throughput_ratio"], 2), round(arm["average_accuracy_loss_points"], 2)), []).append(readable(name))
    to_axes = axes.transData + axes.transAxes.inverted()
    taken: list[tuple[tuple[float, float], tuple[int, int]]] = []
    handles = []
    for letter, (place, names) in zip("ABCDEFGHIJ", sorted(places.items()), strict=False):
        x, y = to_axes.transform(place)
        # Rings that nearly touch have their letters on different sides.
        near = {side for spot, side in taken if math.dist(spot, (x, y)) < 0.06}
        side = next((side for side in ((0, 11), (0, -11), (11, 0), (-11, 0)) if side not in near), (0, 11))
        taken.append(((x, y), side))
        axes.scatter(*place, s=80, facecolors="none", edgecolors="black", zorder=5, clip_on=False)
        axes.annotate(
            letter, place, xytext=side, textcoords="offset points", ha="center", va="center", fontsize=9, fontweight="bold", zorder=6
        )
        ring = Line2D([], [], linestyle="", marker="o", markersize=9, markerfacecolor="none", markeredgecolor="black")
        ring.set_label(textwrap.fill(f"{letter}: {' = '.join(names)}", 45))
        handles.append(ring)
    return handles


def readable(name: str) -> str:
    """An arm or a control as people call it."""
    return "mixture without raw inputs" if name == "mixture_lout_1" else name.replace("_", " ")


def draw_trace(table: pd.DataFrame) -> bytes:
    """Each training of the sampler, in order from above: accuracy, least-squares start to end, coloured by kind; hollow where it
    was stopped.
    """
    trace = table[table.role.isin(["search", "rival"]) & table.fidelity.isin(["trained", "stopped"])].reset_index(drop=True)
    figure, axes = _rows(_names(trace), list(trace.fidelity == "trained"))
    if len(trace):
        original = (trace.accuracy + trace.loss_points / 100).mean()
        low = _window(axes, trace.accuracy, trace.accuracy_fit, pd.Series([original]))
        axes.axvline(100 * original, color="grey", linestyle=":", linewidth=1, label=f"original: {100 * original:.2f} %")
        for kind, group in trace.groupby("kind"):
            start, end = (100 * group[name].clip(lower=low) for name in ("accuracy_fit", "accuracy"))
            axes.hlines(group.index, start, end, color=COLOURS[str(kind)], linewidth=2)
            for fidelity, part in group.groupby("fidelity"):
                name, inside = (str(kind), COLOURS[str(kind)]) if fidelity == "trained" else (f"{kind}, stopped at a rung", "white")
                axes.scatter(end[part.index], part.index, facecolors=inside, edgecolors=COLOURS[str(kind)], label=name, zorder=3)
        _name_outside(axes, trace.accuracy, low)
        figure.legend(fontsize=9, loc="outside upper center", ncols=3)
    axes.set(xlabel="validation accuracy, % (line: from least squares, dot: as trained)")
    return _png(figure)


def draw_forecasts(table: pd.DataFrame) -> bytes:
    """The interval that was forecast for each training, in order from above, and where the training came out."""
    told = table[(table.fidelity == "trained") & table.expected_low.notna()].reset_index(drop=True)
    figure, axes = _rows(_names(told), [True] * len(told))
    low, high, measured = (told[name].astype(float) for name in ("expected_low", "expected_high", "accuracy"))
    if len(told):
        edge = _window(axes, measured, low, high)
        label = "forecast: 95 % of trainings come out in here"
        axes.hlines(told.index, 100 * low, 100 * high, color="#9db4c8", linewidth=7, label=label)
        hit, shown = (low <= measured) & (measured <= high), 100 * measured.clip(lower=edge)
        axes.scatter(shown[hit], told.index[hit], color=COLOURS["cross"], s=36, zorder=3, label="measured, inside")
        axes.scatter(shown[~hit], told.index[~hit], color=RED, s=50, marker="X", zorder=3, label="measured, outside")
        _name_outside(axes, measured, edge)
        figure.legend(fontsize=9, loc="outside upper center", ncols=2)
    axes.set(xlabel="validation accuracy, %")
    return _png(figure)


def _names(table: pd.DataFrame) -> list[str]:
    """What rows are called: kind and vector, with host and rank where that does not say which path it is."""
    services = table.path.map(lambda text: [Path(part.split("[")[0]).name for part in str(text).split(" > ") if "[" in part])
    hosts = services.map(lambda names: " > ".join(dict.fromkeys(name for name in names if name != names[0])))
    several = hosts[hosts != ""].nunique() > 1
    rows = zip(table["kind"], table["vector"], table["rank"].astype(float), hosts, strict=True)
    return [
        f"{kind} {vector}{f' {host}' * (several and host != '')}{'' if math.isnan(rank) else f' rank {rank:g}'}"
        for kind, vector, rank, host in rows
    ]


def _rows(names: Sequence[str], important: Sequence[bool]) -> tuple[Figure, Axes]:
    """A picture with one row a name, from above. Where they are too many to read, only important ones are named."""
    figure, axes = plt.subplots(figsize=(7.5, min(0.26 * len(names) + 1.7, 24)), layout="constrained")
    crowded = len(names) > 90
    axes.set_yticks(range(len(names)), [name if shown or not crowded else "" for name, shown in zip(names, important, strict=True)])
    axes.tick_params(axis="y", labelsize=6 if crowded else 9, length=0)
    axes.set(ylim=(max(len(names), 1) - 0.4, -0.6))
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    return figure, axes


def _window(axes: Axes, measured: pd.Series[float], *others: pd.Series[float]) -> float:
    """Set the horizontal axis to accuracies near the best; returns the least one that is shown."""
    least = min(series.min() for series in (measured, *others))
    most = max(series.max() for series in (measured, *others))
    low = float(max(least, measured.max() - WINDOW))
    margin = 0.04 * (most - low) + 0.002
    axes.set(xlim=(100 * (low - margin), 100 * (most + margin)))
    return low


def _name_outside(axes: Axes, measured: pd.Series[float], low: float) -> None:
    for row, value in measured[measured < low].items():
        axes.annotate(
            f"{100 * value:.1f} %", (100 * low, float(str(row))), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8
        )


def draw_paths(shares: Mapping[InferencePath, float], services: Mapping[str, Service | PublicService]) -> bytes:
    """Paths, one below the other, with the share of the samples that takes each: over every block of the services it touches;
    links are the arrows between rows.
    """
    rows = [1 + len(path.hosts) for path in shares]
    width = max(services[name].num_blocks for path in shares for name in (path.local, *path.hosts)) + 0.8
    heights = [row - 0.6 + _headroom(path) for row, path in zip(rows, shares, strict=True)]
    size = (0.8 * width + 1.8, 0.9 * sum(heights) + 0.55 * len(rows))
    figure, grid = plt.subplots(len(rows), figsize=size, height_ratios=heights, layout="constrained", squeeze=False)
    for axes, (path, share) in zip(grid[:, 0], shares.items(), strict=True):
        _path_on(axes, path, services, width)
        name = textwrap.fill(str(path), int(9 * width), break_on_hyphens=False)
        axes.set_title(f"{100 * share:.1f} % of the samples, {'gated ' if path.rerun else ''}{path.kind}\n{name}", fontsize=10, loc="left")
    return _png(figure)


def _headroom(path: InferencePath) -> float:
    """Room above the first row: a link from a service to itself goes over its blocks."""
    return 0.85 if any(slot.source[0] == slot.target[0] for slot in path.link_slots) else 0.4


def _path_on(axes: Axes, path: InferencePath, services: Mapping[str, Service | PublicService], width: float) -> None:
    names = [path.local, *path.hosts]
    used = {(s.service, block) for s in path.segments for block in range(s.start, s.stop)}
    for row, name in enumerate(names):
        # A service folder goes by its last part.
        axes.text(-0.2, -row, Path(name).name, ha="right", va="center", fontsize=10)
        for block in range(services[name].num_blocks):
            text = "head" if block == services[name].num_blocks - 1 else str(block + 1)
            _block_on(axes, block, row, text, on=(name, block) in used)
    if not path.ends_in_head:
        axes.text(path.num_blocks + 0.12, 0, "logits", ha="left", va="center", fontsize=10)
    for slot in path.link_slots:
        (source, out), (target, into) = slot.source, slot.target
        down = names.index(target) - names.index(source)
        # Links leave by the right part of a block and enter by the left one, on the side that faces where they go.
        leave, enter = (-0.3, 0.3) if down > 0 else (0.3, -0.3 if down else 0.3)
        start = (out - 0.3 if out else 0.05, -names.index(source) + leave)
        end = (into + 0.32, -names.index(target) + enter)
        curve = "arc3,rad=0.0" if down else f"arc3,rad={-min(0.35, 0.9 / max(end[0] - start[0], 1)):.3f}"
        axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color="#c05621", connectionstyle=curve, linewidth=1.8)
        )
    axes.set(xlim=(-0.3, width + 0.3), ylim=(-len(names) + 0.6, _headroom(path)))
    axes.axis("off")


def _block_on(axes: Axes, block: int, row: int, text: str, *, on: bool) -> None:
    face, edge = ("#cfe8dd", "#0b6e4f") if on else ("#f2f2f2", "#bbbbbb")
    axes.add_patch(FancyBboxPatch((block + 0.12, -row - 0.25), 0.7, 0.5, boxstyle="round,pad=0.02", facecolor=face, edgecolor=edge))
    axes.text(block + 0.47, -row, text, ha="center", va="center", fontsize=10, color="black" if on else "#777777")


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    plt.close(figure)
    return stream.getvalue()
