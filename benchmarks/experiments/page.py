"""``experiments.md``: tables and pictures out of the CSVs, in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.experiments import points
from benchmarks.experiments.config import Experiments
from benchmarks.experiments.figures import draw_all
from benchmarks.experiments.readings import Readings, read_readings
from benchmarks.experiments.rivals import rivals_table
from benchmarks.experiments.selection import Selection, select
from benchmarks.experiments.verdicts import LEGEND, verdicts_table
from benchmarks.jobs import Record

COMMAND = "python -m benchmarks.experiments"


def write_page(config: Experiments, tables: Path, docs: Path, known: Sequence[Record]) -> None:
    """Write ``experiments.md`` and its pictures into ``docs``; what is missing is said to be."""
    readings = read_readings(config, tables, known)
    selection = select(config.known, len(config.seeds), readings.results, config.rank_lin) if config.known else None
    docs.mkdir(parents=True, exist_ok=True)
    draw_all(readings, selection, docs / "pictures")
    (docs / "experiments.md").write_text("\n".join(_lines(readings, selection, config)) + "\n")


def _lines(readings: Readings, selection: Selection | None, config: Experiments) -> list[str]:
    lines = [*_head(readings), "", "## What agrees with the paper", "", *verdicts_table(readings, selection), "", LEGEND, ""]
    lines += [*config.reasons.splitlines(), ""] if config.reasons else []
    lines += ["## 1. AlexNet and AlexNet", "", "![Accuracy over hout, and parameters](pictures/experiment_1.png)", ""]
    lines += ["lout = 0, hin = 1, as in the paper's figure 5. What a trained host makes up for, (A_p - A_base) / (A_0 - A_base):", ""]
    lines += [
        *points.compensation_table(readings),
        "",
        "### Size of the links",
        "",
        "![Accuracy by size of the links](pictures/experiment_1_links.png)",
        "",
    ]
    lines += [*points.links_table(readings), "", "### More blocks of the host", "", *points.order_table(readings), ""]
    lines += ["### Link rank as a choice of the search", "", "Best plan by the programme, original and paths through "]
    lines[-1] += f"`{config.hosts[-1]}`, chosen and judged on validation images, throughput relative to the original's:"
    lines += ["", *points.ranks_table(readings), ""]
    lines += ["## 2. Skips, 3. another architecture", "", "![Skips, and another host](pictures/experiment_2_3.png)", ""]
    lines += [*points.skips_table(readings), "", "### Less local computation", "", *points.computation_table(readings), ""]
    if selection is not None:
        lines += ["## 4. Which path is taken", "", "![Accuracy, throughput and reward](pictures/experiment_4.png)", ""]
        lines += [
            f"All {len(selection.paths)} crosses of `benchmarks/pathbench/tables/{config.known}/trainings.csv`, which has one seed of most"
        ]
        lines[-1] += (
            " and three of the best, with what experiment 1 trained of the same paths; nothing is trained for this. Samplers are replayed"
        )
        lines[-1] += " on the table alone. s = 8, A_min = A_0 - 0.7 points, kappa = 1, c_stop = 3, epsilon = 0.01."
        lines += ["", *points.selection_table(selection), "", *points.iterations_table(selection), ""]
    lines += ["## Early exits at equal local computation", ""]
    lines += ["Borrowing paths of the sample, which all send the raw image (lout = 0):", "", *points.exits_table(readings), ""]
    if selection is not None:
        lines += [
            "Every cross of the AlexNet pair, lout >= 1 among them, from the same table as experiment 4 (float32, another machine's times):"
        ]
        lines += ["", *points.table_exits(selection), ""]
    lines += ["## What a user would do instead", "", _rivals_words(readings)]
    return [*lines, "", *rivals_table(readings)]


def _rivals_words(readings: Readings) -> str:
    words = (
        f"For `{readings.sample.config.local}`. *By the model*: throughput relative to the original's on one core, the pair with kappa = 1 and"
        " the best path of the sample. *Live*: "
    )
    if not (live := readings.lives.get("original")):
        return f"{words}not measured yet (`{COMMAND}.live`)."
    return (
        f"{words}through HTTP (`{COMMAND}.live`), in {live.count} rounds, each relative to the original in the same round; the original and its"
        " paths by this project, what is no path by plain Ray Serve, one core a server. The pair's two cores are those of the clients and of"
        " HTTP too, which bounds what takes next to no time."
    )


def _head(readings: Readings) -> list[str]:
    config, sample = readings.sample.config, readings.sample
    paths = list(dict.fromkeys(path for early in (True, False) for path in sample.trainings(early=early)))
    have = sum(readings.of(path).count for path in paths)
    elsewhere = sum(1 for p in paths for s in readings.seeds if "source" in readings.results.trained.get((str(p), s, 1.0), {}))
    recipe = config.recipe
    return [
        "# The paper's experiments",
        "",
        f"Generated by `{COMMAND}` (`make experiments`; `--page` writes it again from the CSVs); do not edit.",
        "",
        f"The local service is `{config.local}` ({config.data}): {readings.original['test']:.2f} % on the first {config.test_images:,} test "
        f"images, on which every accuracy below is reported. Nothing is chosen by them: paths and learning rates are chosen on "
        f"{config.validation_images:,} validation images. A number is a mean over {len(readings.seeds)} seeds ± their standard deviation, or says"
        " how many seeds it has. Seeds draw batches, and the weights of random hosts. Of an accuracy alone, so many images leave a standard"
        f" error of about {_standard_error(readings):.1f} points, which all paths share.",
        "",
        f"Links are trained on {recipe.steps} batches of {recipe.batch_size} after least squares, the same for every path, host and control;"
        " random hosts have the learning rate of three that suits them on validation images. A stated sample of the paths is trained:"
        f" {have} of {len(paths) * len(readings.seeds)} trainings are there, {elsewhere} of them taken from the tables of benchmarks/pathbench"
        " (same recipe; `--alone` trains those too).",
    ]


def _standard_error(readings: Readings) -> float:
    share = readings.original["test"] / 100
    return float(100 * (share * (1 - share) / readings.sample.config.test_images) ** 0.5)
