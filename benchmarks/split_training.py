"""What it costs to train links with the host as a party of its own, and what crosses: one process, then a host in an actor of Ray.

python -m benchmarks.split_training [--out runs/bench]      writes split_training.csv; ten minutes

Local service ``alexnet-digits``, host ``alexnet-fashion``, both in float32, entry links at random: no image is shown to the host.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import torch
from safetensors.torch import load_file
from torch import Tensor

from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet, load_data
from code_ray.party import Party
from code_ray.path import InferencePath, path_from_vector
from code_ray.recipe import Recipe
from code_ray.service import Service
from code_ray.training import LinkTraining, Trainer
from code_ray.zoo import get_service
from search.config import SearchConfig
from search.parties import RemoteParty

LOCAL, HOST, MODE = "alexnet-digits", "alexnet-fashion", ExecutionMode(channels_last=True)
KINDS: dict[str, tuple[tuple[int, ...], int, int]] = {
    "cross, last link": ((1, 2, 4, 5), 200, 0),
    "cross, all links": ((2, 2, 4, 5), 0, 100),
    "cross, late": ((3, 3, 4, 5), 0, 100),
    "cross of raw images": ((0, 1, 3, 4), 0, 100),
    "probe": ((1, 2, 4), 0, 100),
}
"""Paths and how many batches train their last link alone, then all of them. Each leaves the local service elsewhere than the one before: what
the host has received is of no use."""

ROUNDS = 3


def main() -> None:
    """Train every kind of path both ways and write a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    config = SearchConfig.model_validate(
        {"local": LOCAL, "data": "digits", "hosts": {HOST: {}}, "trust": "split", "recipe": {"joint_steps": 1}}
    )
    services, data = {name: get_service(name) for name in (LOCAL, HOST)}, load_data("digits")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    party = RemoteParty(config, HOST, MODE)
    party.verify([HOST])  # it has started
    rows = []
    for kind, (vector, steps, joint_steps) in KINDS.items():
        path = path_from_vector(vector, LOCAL, services[LOCAL].num_blocks, HOST, services[HOST].num_blocks)
        recipe = Recipe(samples=640, fit_samples=300, steps=steps, joint_steps=joint_steps, fit_entry=False)
        rows.append({"kind": kind, "path": str(path), **_compared(services, data, path, recipe, party)})
        print(pd.DataFrame(rows[-1:]).to_string(index=False, header=len(rows) == 1, float_format="%.3g"), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(out / "split_training.csv", index=False)


def _compared(services: Mapping[str, Service], data: DataSet, path: InferencePath, recipe: Recipe, party: Party) -> dict[str, Any]:
    """Medians of ``ROUNDS`` trainings each way, in turn; bytes of the first, since the host keeps what it has received."""
    seconds: dict[str, list[float]] = {"shared": [], "split": []}
    found: dict[str, tuple[dict[str, Tensor], float]] = {}
    crossed: dict[str, float] = {}
    for _ in range(ROUNDS):
        for side, parties in (("shared", {}), ("split", {HOST: party})):
            here = {name: service for name, service in services.items() if name not in parties}
            trainer = Trainer(here, LOCAL, data, {name: name for name in services}, lambda _: MODE, recipe, parties=parties)
            trainer.teacher(torch.arange(recipe.samples))  # both ways the same, and a search has it already
            started = time.perf_counter()
            training = LinkTraining(trainer, path, seed=0)
            training.fit()
            training.advance(1)
            before = training.traffic.sent, training.traffic.received
            training.advance(recipe.total_steps)
            per_sample = [(after - b) for after, b in zip((training.traffic.sent, training.traffic.received), before, strict=True)]
            accuracy = training.accuracy("validation")
            seconds[side].append(time.perf_counter() - started)
            print(f"  {path}, {side}: {seconds[side][-1]:.1f} s", flush=True)
            samples = (recipe.total_steps - 1) * recipe.batch_size
            if parties and not crossed:
                crossed = {
                    "bytes_to_host_a_sample": per_sample[0] / samples,
                    "bytes_from_host_a_sample": per_sample[1] / samples,
                    "bytes_to_host": training.traffic.sent,
                    "bytes_from_host": training.traffic.received,
                }
            with tempfile.TemporaryDirectory() as folder:
                training.save("links", folder)
                tensors = {key: tensor for file in Path(folder).rglob("*.safetensors") for key, tensor in load_file(file).items()}
            found[side] = tensors, accuracy
    (shared, accuracy), (split, accuracy_split) = found["shared"], found["split"]
    median = {side: float(pd.Series(times).median()) for side, times in seconds.items()}
    return {
        "seconds_shared": median["shared"],
        "seconds_split": median["split"],
        "cost_ratio": median["split"] / median["shared"],
        **crossed,
        "max_relative_difference": max(float((shared[key] - split[key]).abs().max() / shared[key].abs().max()) for key in shared),
        "accuracy_shared": accuracy,
        "accuracy_split": accuracy_split,
    }


if __name__ == "__main__":
    main()
