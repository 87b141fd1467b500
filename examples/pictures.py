"""The demo's picture and its table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

NAMES = {"original": "original", "host_free": "best plan without a host", "pair": "pair"}
COLOURS = {"original": "#8a8a8a", "host_free": "#c05621", "pair": "#0b6e4f"}


def draw_demo(summary: Mapping[str, Any], file: Path) -> None:
    """Images a second of each arm as measured over HTTP, with its accuracy; what bare torch does alone as a line."""
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    speeds = [summary[arm]["images_per_second"] for arm in NAMES]
    bars = axes.barh(list(NAMES.values()), speeds, color=[COLOURS[arm] for arm in NAMES])
    for arm, bar in zip(NAMES, bars, strict=True):
        text = f"{bar.get_width():.0f} images/s, {100 * summary[arm]['accuracy']:.2f} %"
        axes.annotate(
            text, (bar.get_width(), bar.get_y() + bar.get_height() / 2), xytext=(-6, 0), textcoords="offset points", ha="right", va="center"
        ).set_color("white")
    bare = summary["bare_torch_images_per_second"]
    axes.axvline(bare, color="black", linestyle=":", linewidth=1, label=f"original in bare torch, no server: {bare:.0f} images/s")
    axes.invert_yaxis()
    axes.set(
        xlabel=f"images a second over HTTP, {summary['request_images']} images a request, median of {summary['rounds']} rounds",
        title=f"The pair serves {summary['measured_ratio']:.2f} times the original, "
        f"{summary['host_value']:.2f} times the best plan without a host",
    )
    axes.title.set_fontsize(11)
    figure.legend(fontsize=8, loc="outside lower center")
    figure.savefig(file, dpi=120)
    plt.close(figure)


def print_table(summary: Mapping[str, Any]) -> None:
    """The measured arms, and below them the arms that stand beside by the model alone."""
    base, model = summary["original"], summary["arms_by_model"]
    print(f"\n{'measured over HTTP':28}{'images/s':>10}{'ratio':>8}{'accuracy':>11}{'p50 ms':>9}{'p99 ms':>9}")
    for arm, name in NAMES.items():
        row = summary[arm]
        ratio = row["images_per_second"] / base["images_per_second"]
        print(
            f"{name:28}{row['images_per_second']:10.0f}{ratio:8.2f}{100 * row['accuracy']:10.2f}%{row['p50_ms']:9.0f}{row['p99_ms']:9.0f}"
        )
    print(f"{'bare torch, one thread':28}{summary['bare_torch_images_per_second']:10.0f}")
    print(f"\n{'by the throughput model':28}{'ratio':>10}{'loss, points (validation)':>29}")
    for name, arm in model.items():
        print(f"{name.replace('_', ' '):28}{arm['throughput_ratio']:10.2f}{arm['average_accuracy_loss_points']:29.2f}")
    print("\nthe pair's images took:")
    for path in summary["pair_paths"]:
        print(f"  {100 * path['share_of_images']:5.1f} %  {path['kind']} {path['vector'] or ''}")
    print(
        f"\npair / original {summary['measured_ratio']:.2f} measured, {summary['predicted_ratio']:.2f} by the programme; "
        f"pair / best plan without a host {summary['host_value']:.2f}; "
        f"loss {summary['average_accuracy_loss_points']:.2f} +- {summary['half_interval_95_points']:.2f} points on test images; {summary['failed']} of "
        f"{summary['failed'] + summary['requests']} requests failed; {summary['trainings']} trainings among "
        f"{summary['candidates']} paths; {summary['seconds']:.0f} s"
    )
