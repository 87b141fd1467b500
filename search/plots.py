"""Pictures of a search: Pareto, trace, and the winning path as blocks and links."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from code_ray.path import InferencePath
from code_ray.service import Service
from search.problem import Problem

COLOURS = {"cross": "#0b6e4f", "skip": "#c05621", "exit": "#8b5cf6", "probe": "#2b6cb0", "original": "#333333"}
ARM_COLOURS = {"host_free": "#c05621", "mixture": "#0b6e4f", "mixture_lout_1": "#7fb8a0", "probe": "#2b6cb0"}
CONTROL_MARKS = {"random_host": "x", "links_only": "+", "skip": "s"}


def draw_pareto(
    problem: Problem,
    table: pd.DataFrame,
    arms: Mapping[str, Mapping[str, Any]],
    frontiers: Mapping[str, tuple[list[float], list[float]]],
    file: Path,
) -> None:
    """Throughput ratio against average-accuracy loss. Lines: each arm as the loss limit grows; circles: at the run's limit;
    dots and marks: the original with one path, or one control, at maximum offload.
    """
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for name, (ratios, losses) in frontiers.items():
        style = "--" if name == "mixture_lout_1" else "-"
        axes.plot(ratios, losses, style, color=ARM_COLOURS[name], linewidth=1.6, label=f"arm: {_readable(name)}")
    trained = table[table.fidelity == "trained"]
    for kind, group in trained[trained.role == "search"].groupby("kind"):
        axes.scatter(group.pair_throughput_ratio, group.pair_loss_points, s=24, color=COLOURS[str(kind)], label=f"original + one {kind}")
    for name in ("original", "host_free", "mixture", "replica"):
        point = arms[name]["throughput_ratio"], arms[name]["average_accuracy_loss_points"]
        axes.scatter(*point, s=90, facecolors="none", edgecolors="black", zorder=4)
        axes.annotate(_readable(name), point, xytext=(7, 5), textcoords="offset points", fontsize=8)
    limit = problem.config.loss_points
    axes.axhline(limit, color="grey", linestyle=":", linewidth=1, label=f"loss limit of this run, {limit:g} points")
    # An exit after the first block serves dozens of times as much at a loss nobody wants: it stays outside.
    fastest = max([arms["replica"]["throughput_ratio"], *(ratios[-1] for ratios, _ in frontiers.values())])
    axes.set_xlim(0.9, 1.1 * fastest)
    highest = max(losses[-1] for _, losses in frontiers.values())
    top = max(highest, 2 * limit, 1.0) * 1.6
    axes.set_ylim(-0.05 * top, top)
    for role, mark in CONTROL_MARKS.items():
        for _, row in trained[trained.role == role].iterrows():
            # Controls often lose far more than any plan: what lies above the picture stands at its edge, with its loss.
            y = min(row.pair_loss_points, 0.96 * top)
            label = f"control: {_readable(role)}, {row.pair_loss_points:.1f} points"
            axes.scatter(row.pair_throughput_ratio, y, s=70, marker=mark, color="#b91c1c", label=label, zorder=4)
    axes.set(xlabel="throughput / original alone (by the linear programme)", ylabel="average-accuracy loss, points (validation)")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(file, dpi=120)
    plt.close(figure)


def _readable(name: str) -> str:
    return "mixture without raw inputs" if name == "mixture_lout_1" else name.replace("_", " ")


def draw_trace(table: pd.DataFrame, file: Path) -> None:
    """Each full training of the sampler in order: accuracy, least-squares start to end, coloured by kind."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    trace = table[(table.role == "search") & (table.fidelity == "trained")].reset_index(drop=True)
    for kind, group in trace.groupby("kind"):
        axes.vlines(group.index + 1, 100 * group.accuracy_fit, 100 * group.accuracy, color=COLOURS[str(kind)], linewidth=2)
        axes.scatter(group.index + 1, 100 * group.accuracy, color=COLOURS[str(kind)], label=str(kind), zorder=3)
    for index, row in trace.iterrows():
        axes.annotate(
            row.vector, (float(str(index)) + 1, 100 * row.accuracy), xytext=(0, 8), textcoords="offset points", fontsize=7, ha="center"
        )
    axes.margins(x=0.08, y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="full training", ylabel="validation accuracy, %\n(from least squares to trained)")
    if len(trace):
        axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_path(path: InferencePath, services: Mapping[str, Service], file: Path) -> None:
    """The path over every block of the services it touches; links are the arrows between rows."""
    names = [path.local, *path.hosts]
    width = max(services[name].num_blocks for name in names)
    figure, axes = plt.subplots(figsize=(1.1 * width + 1.5, 1.5 * len(names) + 0.8), layout="constrained")
    used = {(s.service, block) for s in path.segments for block in range(s.start, s.stop)}
    for row, name in enumerate(names):
        axes.text(-0.2, -row, name, ha="right", va="center", fontsize=9)
        for block in range(services[name].num_blocks):
            on = (name, block) in used
            box = FancyBboxPatch(
                (block + 0.12, -row - 0.25),
                0.7,
                0.5,
                boxstyle="round,pad=0.02",
                facecolor="#cfe8dd" if on else "#f2f2f2",
                edgecolor="#0b6e4f" if on else "#bbbbbb",
            )
            axes.add_patch(box)
            last = block == services[name].num_blocks - 1
            axes.text(
                block + 0.47,
                -row,
                "head" if last else str(block + 1),
                ha="center",
                va="center",
                fontsize=8,
                color="black" if on else "#999999",
            )
    for slot in path.link_slots:
        (source, out), (target, into) = slot.source, slot.target
        start = (out - 0.15 if out else 0.0, -names.index(source))
        end = (into + 0.1, -names.index(target))
        curve = "arc3,rad=0.35" if source == target else "arc3,rad=0.0"
        axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color="#c05621", connectionstyle=curve, linewidth=1.6)
        )
    axes.set(xlim=(-0.3, width + 0.1), ylim=(-len(names) + 0.3, 0.7), title=f"{path.kind}: {path}")
    axes.title.set_fontsize(9)
    axes.axis("off")
    figure.savefig(file, dpi=120)
    plt.close(figure)
