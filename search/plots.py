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

from code_ray.path import InferencePath
from code_ray.service import Service
from search.problem import Problem

COLOURS = {"cross": "#0b6e4f", "skip": "#c05621", "exit": "#8b5cf6", "probe": "#2b6cb0", "original": "#333333"}
CONTROL_MARKS = {"random_host": "x", "links_only": "+", "skip": "s"}


def draw_pareto(problem: Problem, table: pd.DataFrame, arms: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Throughput ratio against average-accuracy loss: every trained path beside the original, arms and controls marked."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    trained = table[table.fidelity == "trained"]
    for kind, group in trained[trained.role == "search"].groupby("kind"):
        axes.scatter(group.pair_throughput_ratio, group.pair_loss_points, s=28, color=COLOURS[str(kind)], label=f"original + one {kind}")
    for role, mark in CONTROL_MARKS.items():
        group = trained[(trained.role == role) & trained.pair_throughput_ratio.notna()]
        if len(group):
            axes.scatter(group.pair_throughput_ratio, group.pair_loss_points, s=70, marker=mark, color="#b91c1c", label=f"control: {role}")
    for name, arm in arms.items():
        axes.scatter(arm["throughput_ratio"], arm["average_accuracy_loss_points"], s=90, facecolors="none", edgecolors="black")
        axes.annotate(
            name.replace("_", " "),
            (arm["throughput_ratio"], arm["average_accuracy_loss_points"]),
            xytext=(6, 6),
            textcoords="offset points",
            fontsize=8,
        )
    axes.axhline(problem.config.loss_points, color="grey", linestyle=":", linewidth=1)
    axes.annotate("loss limit", (axes.get_xlim()[0], problem.config.loss_points), fontsize=8, va="bottom")
    axes.set(xlabel="throughput / original alone (by the linear programme)", ylabel="average-accuracy loss, points (validation)")
    if len(trained):
        axes.legend(fontsize=8, loc="upper left")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def draw_trace(table: pd.DataFrame, file: Path) -> None:
    """Each full training of the sampler in order: accuracy, least-squares start to end, coloured by kind."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    trace = table[(table.role == "search") & (table.fidelity == "trained")].reset_index(drop=True)
    for kind, group in trace.groupby("kind"):
        axes.vlines(group.index + 1, 100 * group.accuracy_fit, 100 * group.accuracy, color=COLOURS[str(kind)], linewidth=2)
        axes.scatter(group.index + 1, 100 * group.accuracy, color=COLOURS[str(kind)], label=str(kind), zorder=3)
    for index, row in trace.iterrows():
        axes.annotate(
            row.vector, (float(str(index)) + 1, 100 * row.accuracy), xytext=(0, 6), textcoords="offset points", fontsize=7, ha="center"
        )
    axes.set(xlabel="full training", ylabel="validation accuracy, % (from least squares to trained)")
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
