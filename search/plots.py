"""Pictures of a search, as PNG: Pareto, trace, forecasts against what was measured, and paths as blocks and links."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from code_ray.path import InferencePath
from code_ray.service import Service
from search.problem import Problem

# A dollar in the name of a service is a dollar.
matplotlib.rcParams["text.parse_math"] = False

COLOURS = {"cross": "#0b6e4f", "skip": "#c05621", "exit": "#8b5cf6", "probe": "#2b6cb0", "original": "#333333"}
ARM_COLOURS = {"host_free": "#c05621", "mixture": "#0b6e4f", "mixture_lout_1": "#7fb8a0", "probe": "#2b6cb0"}
CONTROL_MARKS = {"random_host": "x", "links_only": "+", "skip": "s"}
RED = "#b91c1c"


def draw_pareto(
    problem: Problem,
    table: pd.DataFrame,
    arms: Mapping[str, Mapping[str, Any]],
    frontiers: Mapping[str, tuple[list[float], list[float]]],
) -> bytes:
    """Throughput ratio against average-accuracy loss. Lines: each arm as the loss limit grows; circles: at the run's limit;
    dots and marks: the original with one path, or one control, at maximum offload.
    """
    figure, axes = plt.subplots(figsize=(7.5, 6.4), layout="constrained")
    for name, (ratios, losses) in frontiers.items():
        style = "--" if name == "mixture_lout_1" else "-"
        axes.plot(ratios, losses, style, color=ARM_COLOURS[name], linewidth=1.6, label=f"arm: {_readable(name)}")
    trained = table[table.fidelity == "trained"]
    for kind, group in trained[trained.role == "search"].groupby("kind"):
        axes.scatter(group.pair_throughput_ratio, group.pair_loss_points, s=24, color=COLOURS[str(kind)], label=f"original + one {kind}")
    limit = problem.config.loss_points
    axes.axhline(limit, color="grey", linestyle=":", linewidth=1, label=f"loss limit of this run: {limit:g}")
    highest = max(losses[-1] for _, losses in frontiers.values())
    top = max(highest, 2 * limit, 1.0) * 1.6
    # Far beyond the plan, an exit after the first block serves dozens of times as much at a loss nobody wants: it stays outside.
    most = max(arm["throughput_ratio"] for arm in arms.values())
    right = 1 + 1.15 * (max(min(1.5 * most, *(ratios[-1] for ratios, _ in frontiers.values())), most) - 1) + 0.1
    axes.set(xlim=(1 - 0.04 * (right - 1), right), ylim=(-0.08 * top, top))
    _label_arms(axes, arms)
    for role, mark in CONTROL_MARKS.items():
        for _, row in trained[trained.role == role].iterrows():
            # Controls often lose far more than any plan: what lies outside the picture stands at its edge, with its loss.
            x, y = min(row.pair_throughput_ratio, 1 + 0.97 * (right - 1)), min(row.pair_loss_points, 0.96 * top)
            label = f"control: {_readable(role)}, {row.pair_loss_points:.1f} points"
            axes.scatter(x, y, s=70, marker=mark, color=RED, label=label, zorder=4)
    axes.set(xlabel="throughput / original alone (by the linear programme)", ylabel="average-accuracy loss, points (validation)")
    figure.legend(fontsize=9, loc="outside lower center", ncols=2)
    return _png(figure)


def _label_arms(axes: Axes, arms: Mapping[str, Mapping[str, Any]]) -> None:
    """A circle for each arm, with its name; arms that stand at the same place share one."""
    places: dict[tuple[float, float], list[str]] = {}
    for name, arm in arms.items():
        places.setdefault((round(arm["throughput_ratio"], 2), round(arm["average_accuracy_loss_points"], 2)), []).append(_readable(name))
    for place, names in places.items():
        axes.scatter(*place, s=80, facecolors="none", edgecolors="black", zorder=4)
        # Most arms use up the loss limit, so they stand in one line: slanted names leave each other room.
        axes.annotate(" = ".join(names), place, xytext=(4, 7), textcoords="offset points", fontsize=9, rotation=35)


def _readable(name: str) -> str:
    return "mixture without raw inputs" if name == "mixture_lout_1" else name.replace("_", " ")


def draw_trace(table: pd.DataFrame) -> bytes:
    """Each training of the sampler in order: accuracy, least-squares start to end, coloured by kind; hollow where it was stopped."""
    trace = table[(table.role == "search") & table.fidelity.isin(["trained", "stopped"])].reset_index(drop=True)
    crowded = len(trace) > 12
    figure, axes = plt.subplots(figsize=(min(max(7.5, 0.3 * len(trace)), 20), 4.5), layout="constrained")
    for kind, group in trace.groupby("kind"):
        axes.vlines(group.index + 1, 100 * group.accuracy_fit, 100 * group.accuracy, color=COLOURS[str(kind)], linewidth=2)
        for fidelity, part in group.groupby("fidelity"):
            name, inside = (str(kind), COLOURS[str(kind)]) if fidelity == "trained" else (f"{kind}, stopped at a rung", "white")
            axes.scatter(part.index + 1, 100 * part.accuracy, facecolors=inside, edgecolors=COLOURS[str(kind)], label=name, zorder=3)
    for index, row in trace.iterrows():
        # Away from the line that leads to the dot.
        side = 1 if row.accuracy >= row.accuracy_fit else -1
        axes.annotate(
            row.vector,
            (float(str(index)) + 1, 100 * row.accuracy),
            xytext=(0, 7 * side),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="bottom" if side > 0 else "top",
            rotation=90 if crowded else 0,
        )
    axes.margins(x=0.08, y=0.25 if crowded else 0.15)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="training, in order", ylabel="validation accuracy, %\n(from least squares to trained)")
    if len(trace):
        figure.legend(fontsize=9, loc="outside lower center", ncols=4)
    return _png(figure)


def draw_forecasts(table: pd.DataFrame) -> bytes:
    """The interval that was forecast for each training, in order from above, and where the training came out."""
    told = table[(table.fidelity == "trained") & table.expected_low.notna()].reset_index(drop=True)
    figure, axes = plt.subplots(figsize=(7.5, min(0.28 * len(told) + 1.5, 24)), layout="constrained")
    low, high, measured = (100 * told[name].astype(float) for name in ("expected_low", "expected_high", "accuracy"))
    axes.hlines(told.index, low, high, color="#9db4c8", linewidth=7, label="forecast: 95 % of trainings come out in here")
    hit = (low <= measured) & (measured <= high)
    axes.scatter(measured[hit], told.index[hit], color=COLOURS["cross"], s=36, zorder=3, label="measured, inside")
    axes.scatter(measured[~hit], told.index[~hit], color=RED, s=50, marker="X", zorder=3, label="measured, outside")
    names = [f"{row.kind} {row.vector}" for row in told.itertuples()]
    axes.set_yticks(range(len(told)), names, fontsize=9)
    axes.set(xlabel="validation accuracy, %", ylim=(len(told) - 0.4, -0.6))
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    figure.legend(fontsize=9, loc="outside upper center", ncols=2)
    return _png(figure)


def draw_paths(shares: Mapping[InferencePath, float], services: Mapping[str, Service]) -> bytes:
    """Paths, one below the other, with the share of the samples that takes each: over every block of the services it touches;
    links are the arrows between rows.
    """
    rows = [1 + len(path.hosts) for path in shares]
    width = max(services[name].num_blocks for path in shares for name in (path.local, *path.hosts))
    figure, grid = plt.subplots(
        len(rows), figsize=(0.8 * width + 1.8, sum(rows) + 0.5 * len(rows)), height_ratios=rows, layout="constrained", squeeze=False
    )
    for axes, (path, share) in zip(grid[:, 0], shares.items(), strict=True):
        _path_on(axes, path, services, width)
        axes.set_title(f"{100 * share:.1f} % of the samples, {path.kind}\n{path}", fontsize=10)
    return _png(figure)


def _path_on(axes: Axes, path: InferencePath, services: Mapping[str, Service], width: int) -> None:
    names = [path.local, *path.hosts]
    used = {(s.service, block) for s in path.segments for block in range(s.start, s.stop)}
    for row, name in enumerate(names):
        axes.text(-0.2, -row, name, ha="right", va="center", fontsize=10)
        for block in range(services[name].num_blocks):
            text = "head" if block == services[name].num_blocks - 1 else str(block + 1)
            _block_on(axes, block, row, text, on=(name, block) in used)
    for slot in path.link_slots:
        (source, out), (target, into) = slot.source, slot.target
        start = (out - 0.15 if out else 0.0, -names.index(source))
        end = (into + 0.1, -names.index(target))
        curve = "arc3,rad=-0.35" if source == target else "arc3,rad=0.0"
        axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color="#c05621", connectionstyle=curve, linewidth=1.8)
        )
    axes.set(xlim=(-0.3, width + 0.3), ylim=(-len(names) + 0.5, 0.6))
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
