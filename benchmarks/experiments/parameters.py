"""How many parameters a path adds, and how many it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from benchmarks.experiments.sample import Sample
from code_ray.links import Link
from code_ray.path import InferencePath
from code_ray.runner import slot_spec
from code_ray.service import Service


def write_parameters(sample: Sample, services: Mapping[str, Service], folder: Path) -> None:
    """``parameters.csv``: a row for each path of the sample; ``services.csv``: how many each service has, and how many blocks."""
    rows = [{"path": str(path), **_counted(path, services)} for path in sample.timed()]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "parameters.csv", index=False)
    whole = [
        {"name": name, "blocks": s.num_blocks, "parameters": sum(p.numel() for p in s.blocks.parameters())} for name, s in services.items()
    ]
    pd.DataFrame(whole).to_csv(folder / "services.csv", index=False)


def _counted(path: InferencePath, services: Mapping[str, Service]) -> dict[str, int]:
    def blocks(name: str, start: int, stop: int) -> int:
        return sum(p.numel() for block in services[name].blocks[start:stop] for p in block.parameters())

    links = sum(p.numel() for slot in path.link_slots for p in Link(slot_spec(slot, path, services)).parameters())
    run = sum(blocks(s.service, s.start, s.stop) for s in path.segments if s.service == path.local)
    host = sum(blocks(s.service, s.start, s.stop) for s in path.segments if s.service != path.local)
    return {"links": links, "skipped": blocks(path.local, 0, path.num_blocks) - run, "host": host}
