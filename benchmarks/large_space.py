"""How long ten million candidates take to score, and a new plan from 200 known paths.

python -m benchmarks.large_space
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from code_ray.acquisition import NODES, expected_improvement
from code_ray.cost_table import CostTable, HostCosts
from code_ray.forecast import from_z, to_z
from code_ray.gated_objective import GatedPlanObjective
from code_ray.gating import RERUN_SHARES
from code_ray.objective import PlanObjective
from code_ray.path import InferencePath, original_path
from code_ray.path_space import KINDS, LIN, LOUT, PathSpace, class_columns
from code_ray.predictor import GaussianProcessPredictor, Measured
from code_ray.space import Candidate
from code_ray.throughput import FloatArray, Limits, PathCost
from code_ray.wide_space import WideSpace

BLOCKS, HOSTS = 48, 8
SCORED, TRAINED, KNOWN = 64, 12, 200
SIZE = 2_000


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    threadpool_limits(limits=1, user_api="blas")
    rng = np.random.default_rng(0)
    hosts = {f"host{i}": BLOCKS for i in range(HOSTS)}
    space = PathSpace("local", BLOCKS, hosts, KINDS)
    costs = synthetic_costs(rng, list(hosts))
    t0 = float(costs.blocks[-1])
    original = Candidate(original_path("local", BLOCKS), PathCost({"local": t0}))
    objective = GatedPlanObjective(original, 0.9, Limits({"local": 1.0, **dict.fromkeys(hosts, 1.0)}, 1.0), "local", RERUN_SHARES)
    sample = np.concatenate([chunk[:: max(1, len(chunk) // 40)] for chunk in space.chunks()])
    sample = sample[rng.choice(len(sample), max(SCORED, KNOWN), replace=False)]
    # Skipping costs accuracy, whatever stands in.
    z = to_z(20.0 * (sample[:, LIN] - sample[:, LOUT]) / BLOCKS + rng.normal(0, 0.3, len(sample)))
    seconds = costs.seconds(sample)
    entries = [
        (space.path(row), (PathCost(dict(zip(costs.providers, s, strict=True))), float(objective.accuracies(from_z(v)))))
        for row, s, v in zip(sample, seconds, z, strict=True)
    ]
    predictor = GaussianProcessPredictor(space.features(sample), class_columns(space.hosts), seed=0)
    measured = Measured({i: float(z[i]) for i in range(SCORED)}, {i: float(z[i]) for i in range(TRAINED)})
    known = dict(entries[:TRAINED])

    def cost(path: InferencePath) -> PathCost:
        return PathCost(dict(zip(costs.providers, costs.seconds(space.rows([path]))[0].tolist(), strict=True)))

    wide = WideSpace(space, costs, objective, cost, SIZE)
    print(f"{len(space):,} candidate paths, {SCORED} scored, {TRAINED} trained")
    for _ in range(3):
        started, worked = time.perf_counter(), time.process_time()
        best = wide.promising(known, *predictor.rough(measured))
        looked = time.perf_counter()
        near = GaussianProcessPredictor(
            np.vstack([space.features(sample), space.features(space.rows(c.path for c in best))]), class_columns(space.hosts), seed=0
        )
        mean, std = near.predict(measured, list(range(len(sample), len(sample) + len(best))))
        accuracies = objective.accuracies(from_z(mean + NODES[:, None] * std))
        gains = expected_improvement(objective.values_with(known, best, accuracies), objective.value(known))
        print(
            f"the {len(best):,} most promising in {looked - started:.1f} s, with their expected improvement in "
            f"{time.perf_counter() - started:.1f} s ({time.process_time() - worked:.1f} s of one core); the best is expected to add {gains.max():.2f} x"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory {peak / (1 if sys.platform == 'darwin' else 1024):,.0f} MB, the libraries' included")
    times = []
    for kappa in np.linspace(0.3, 1.0, 15):
        started = time.perf_counter()
        limits = replace(objective.limits, budgets={"local": 1.0, **dict.fromkeys(hosts, float(kappa))})
        PlanObjective(original, 0.9, limits, "local").mixture(dict(entries[:KNOWN]))
        times.append(time.perf_counter() - started)
    print(f"a new plan from {KNOWN} known paths: median {1e3 * statistics.median(times):.1f} ms, slowest {1e3 * max(times):.1f} ms")


def synthetic_costs(rng: np.random.Generator, hosts: list[str]) -> CostTable:
    """Blocks and links of about the same cost everywhere."""

    def summed(count: int) -> FloatArray:
        return np.concatenate([[0.0], np.cumsum(rng.uniform(0.5, 1.5, count))]) * 1e-3

    def links(*shape: int) -> FloatArray:
        return rng.uniform(0.1, 1.0, shape) * 1e-3

    lent = [
        HostCosts(
            name,
            summed(BLOCKS),
            links(2, BLOCKS, BLOCKS - 1),
            links(1, BLOCKS, BLOCKS),
            links(BLOCKS),
            links(BLOCKS + 1) / 10,
            links(BLOCKS + 1) / 10,
        )
        for name in hosts
    ]
    return CostTable("local", ("local", *hosts), summed(BLOCKS), links(1, BLOCKS, BLOCKS), links(BLOCKS), tuple(lent), 1.0)


if __name__ == "__main__":
    main()
