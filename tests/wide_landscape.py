"""A space of many paths with a smooth truth, for tests of searches that cannot look at all of it."""

import numpy as np

from code_ray.cost_table import CostTable, HostCosts
from code_ray.objective import PlanObjective
from code_ray.path import InferencePath, original_path
from code_ray.path_space import PathSpace
from code_ray.sampler import Proposal, Sampler
from code_ray.scoring import Score
from code_ray.space import Candidate
from code_ray.throughput import FloatArray, Limits, PathCost
from code_ray.wide_space import WideSpace

BLOCKS = 12
HOSTS = {"near": BLOCKS, "far": BLOCKS}
SPACE = PathSpace("local", BLOCKS, HOSTS)
A0 = 0.9


def _costs() -> CostTable:
    rng = np.random.default_rng(3)

    def summed(scale: float) -> FloatArray:
        return np.concatenate([[0.0], np.cumsum(rng.uniform(0.5, 1.5, BLOCKS))]) * scale

    def links(*shape: int) -> FloatArray:
        return rng.uniform(0.02, 0.1, shape) * 1e-3

    hosts = [
        HostCosts(
            name,
            summed(scale),
            links(2, BLOCKS, BLOCKS - 1),
            links(1, BLOCKS, BLOCKS),
            links(BLOCKS),
            links(BLOCKS + 1),
            links(BLOCKS + 1),
        )
        for name, scale in (("near", 5e-4), ("far", 1e-3))
    ]
    return CostTable("local", ("local", *HOSTS), summed(1e-3), links(1, BLOCKS, BLOCKS), links(BLOCKS), tuple(hosts), 1.0)


COSTS = _costs()
ORIGINAL = Candidate(original_path("local", BLOCKS), PathCost({"local": float(COSTS.blocks[-1])}))
OBJECTIVE = PlanObjective(ORIGINAL, A0, Limits({"local": 1.0, "near": 0.5, "far": 1.0}, 1.0), "local")


def cost(path: InferencePath) -> PathCost:
    return PathCost(dict(zip(COSTS.providers, COSTS.seconds(SPACE.rows([path]))[0].tolist(), strict=True)))


def wide(size: int) -> WideSpace:
    return WideSpace(SPACE, COSTS, OBJECTIVE, cost, size)


def accuracy(path: InferencePath) -> float:
    """What is skipped costs, host blocks of the same depth make up for most of it, those of the far host for less."""
    lin = path.segments[-1].start if path.ends_in_head else BLOCKS
    lost = 0.3 * (lin - path.lout) ** 1.3
    if path.hosts:
        borrowed = path.segments[1]
        gap = abs(borrowed.start - path.lout) + abs(borrowed.stop - lin)
        lost *= (0.05 if path.hosts[0] == "near" else 0.15) + 0.08 * gap
    return float(A0 - lost / 100)


def evaluate(of: Sampler, proposal: Proposal) -> None:
    """Tell what the landscape measures: least-squares links lose twice what training leaves."""
    found = accuracy(proposal.path)
    if proposal.fidelity == "trained":
        of.tell(proposal, found)
    else:
        lost = 2 * (A0 - found)
        of.tell(proposal, A0 - lost, Score(A0 - lost, 100 * lost, divergence=0.1, explained=0.5, seconds=0.1))
