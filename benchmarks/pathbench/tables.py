"""A pair's table as small CSVs, and what was measured so far read back from them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from benchmarks.jobs import Record
from code_ray.controls import with_trained_hosts
from code_ray.path import parse_path
from code_ray.profiling import Profile
from code_ray.service import Service
from code_ray.throughput import host_efficiency

KINDS = ("original", "score", "training")
DERIVED = ("kind", "vector", "tau_local_ms", "tau_host_ms", "host_efficiency")


def write_tables(records: Iterable[Record], profile: Profile, services: dict[str, Service], local: str, folder: Path) -> None:
    """Write ``scores.csv``, ``trainings.csv``, ``originals.csv`` and ``profile.json``; every row says of its path what it costs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "profile.json").write_text(profile.model_dump_json(indent=1) + "\n")
    rows: dict[str, list[Record]] = {kind: [] for kind in KINDS}
    for record in records:
        content = {key: value for key, value in record.items() if key != "record"}
        rows[record["record"]].append(
            content if record["record"] == "original" else {**_described(record, profile, services, local), **content}
        )
    for kind, found in rows.items():
        if not found:
            continue  # an empty file would not read back
        pd.DataFrame(found).to_csv(folder / f"{kind}s.csv", index=False, float_format="%.6g")


def read_tables(folder: Path) -> list[Record]:
    """The records that ``write_tables`` wrote; none where there is no table yet."""
    records: list[Record] = []
    for kind in KINDS:
        file = folder / f"{kind}s.csv"
        if file.exists():
            rows = pd.read_csv(file).drop(columns=list(DERIVED), errors="ignore").to_dict("records")
            records += [{"record": kind, **{str(key): value for key, value in row.items()}} for row in rows]
    return records


def _described(record: Record, profile: Profile, services: dict[str, Service], local: str) -> Record:
    path = parse_path(record["path"], services[local].num_blocks)
    cost = profile.cost(with_trained_hosts(path), services)
    tau_l, tau_h = cost.at(local), cost.elsewhere(local)
    efficiency = host_efficiency(profile.original_seconds(local), tau_l, tau_h)
    return {"kind": path.kind, "vector": str(list(path.vector)), "tau_local_ms": 1e3 * tau_l, "tau_host_ms": 1e3 * tau_h} | {
        "host_efficiency": efficiency
    }
