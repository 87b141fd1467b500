"""What a table says of the host's knowledge: python -m benchmarks.pathbench.control PAIR; writes control.csv, control_plans.csv, control.png.

Paths that were trained through the host and through its random-weight control, one seed each, on validation images. The control has the
learning rate that suits it best.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import pandas as pd
from matplotlib import pyplot as plt

from benchmarks.pathbench.pairs import PAIRS
from benchmarks.pathbench.replay import SETTINGS, Table, load_table
from benchmarks.pathbench.rows import randomised
from benchmarks.pathbench.tables import read_tables
from code_ray.path import InferencePath

WHERE = ("probe", "cross, lout 0", "cross, lout >= 1")
COLOURS = dict(zip(WHERE, ("#7fb8a4", "#b5530c", "#0d6e4f"), strict=True))


def main() -> None:
    """Read the command line, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=sorted(PAIRS))
    parser.add_argument("--tables", type=Path, default=Path(__file__).parent / "tables")
    options = parser.parse_args()
    table, folder = load_table(options.pair, options.tables), options.tables / options.pair
    found = randomly(table, folder)
    paths, values = compared(table, found), plans(table, found)
    paths.to_csv(folder / "control.csv", index=False, float_format="%.5g")
    values.to_csv(folder / "control_plans.csv", index=False, float_format="%.5g")
    draw(paths, f"{options.pair}: {len(paths)} paths", folder / "control.png")
    print(summary(paths).round(2).to_string())
    print(values.round(2).to_string(index=False))


def randomly(table: Table, folder: Path) -> dict[InferencePath, float]:
    """Validation accuracy of each path that borrows with random weights in the host, where that was trained."""
    rows = pd.DataFrame([record for record in read_tables(folder) if record["record"] == "training"])
    controls = {str(randomised(path)): path for path in table.rows if path.hosts}
    rows = rows[rows.path.isin(controls) & (rows.seed == 0)]
    # A few paths were trained at every rate, to choose it; all of them at the one that was chosen.
    chosen = rows.scale.mode().max()
    return {controls[row.path]: row.accuracy_validation for row in rows[rows.scale == chosen].itertuples()}


def compared(table: Table, found: dict[InferencePath, float]) -> pd.DataFrame:
    """A path a row: where it leaves, and its accuracy with the trained host and with the random one."""
    rows = [
        {
            "path": str(path),
            "where": path.kind if path.kind == "probe" else "cross, lout 0" if path.lout == 0 else "cross, lout >= 1",
            "trained": _trained(table, path),
            "random": accuracy,
        }
        for path, accuracy in found.items()
    ]
    return pd.DataFrame(rows, columns=["path", "where", "trained", "random"])


def _trained(table: Table, path: InferencePath) -> float:
    """Of the seed that the random host was trained with."""
    return float(next(row["accuracy_validation"] for row in table.rows[path] if row["seed"] == 0))


def summary(paths: pd.DataFrame) -> pd.DataFrame:
    """Points that the trained host is better by, mean and standard error over paths, and in how many paths it is better."""
    groups = paths.assign(points=100 * (paths.trained - paths.random)).groupby("where").points
    columns = {"paths": groups.size(), "points": groups.mean(), "error": groups.sem(), "better": groups.apply(lambda p: (p > 0).mean())}
    return pd.DataFrame(columns).reindex([where for where in WHERE if where in groups.groups])


def plans(table: Table, found: dict[InferencePath, float]) -> pd.DataFrame:
    """What is best in each setting: with the trained host, with the random one, without any, out of the same paths; then out of those
    that send a host no raw images.
    """
    rows = []
    for min_lout, setting in product((0, 1), SETTINGS):
        objective, faster = table.objective(setting), table.faster(setting)
        alone = {c.path: (c.cost, _trained(table, c.path)) for c in faster if not c.path.hosts}
        borrowing = [c for c in faster if c.path in found and c.path.lout >= min_lout]
        trained = {c.path: (c.cost, _trained(table, c.path)) for c in borrowing}
        random = {c.path: (c.cost, found[c.path]) for c in borrowing}
        values = {"trained": alone | trained, "random": alone | random, "no_host": alone}
        rows.append({"setting": setting.name, "min_lout": min_lout} | {name: objective.value(known) for name, known in values.items()})
    return pd.DataFrame(rows)


def draw(paths: pd.DataFrame, title: str, file: Path) -> None:
    """Each path's accuracy with the random host and with the trained one."""
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    for where, rows in paths.groupby("where"):
        axes.scatter(100 * rows.random, 100 * rows.trained, s=14, color=COLOURS[str(where)], label=where)
    ends = [100 * min(paths.random.min(), paths.trained.min()), 100 * max(paths.random.max(), paths.trained.max())]
    axes.plot(ends, ends, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="% right with random weights in the host", ylabel="% right with the trained host", title=title)
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
