"""A smooth landscape of paths whose best plan is known, for tests of samplers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Literal

import numpy as np

from code_ray.greedy_sampler import GreedySampler
from code_ray.objective import Objective, PaperObjective, PlanObjective
from code_ray.path import InferencePath, original_path
from code_ray.printed_sampler import PrintedSampler
from code_ray.reward import Reward
from code_ray.sampler import Proposal, Sampler, Stopping
from code_ray.scoring import Score
from code_ray.space import Candidate, enumerate_paths
from code_ray.throughput import Limits, PathCost

Name = Literal["gp", "ridge", "constant", "random", "printed"]
NAMES: tuple[Name, ...] = ("gp", "ridge", "constant", "random", "printed")
HOSTS = {"host": 6}
POOR = {"poor": 6}
"""A second host, whose blocks take as long and make up for less."""
A0 = 0.9
BLOCK_SECONDS = 0.001 * np.array([0.6, 1.4, 1.1, 1.0, 0.7, 0.2])
LIMITS = Limits({"local": 1.0, "host": 0.8}, 2.3)
ORIGINAL = Candidate(original_path("local", 6), PathCost({"local": float(BLOCK_SECONDS.sum())}))
PLAN = PlanObjective(ORIGINAL, A0, LIMITS, "local")
PAPER = PaperObjective(ORIGINAL, A0, LIMITS, "local", Reward(A0 - 0.007))


def cost(path: InferencePath) -> PathCost:
    """Blocks and a little for each link, where it lives."""
    seconds = {"local": 0.0}
    for segment in path.segments:
        seconds[segment.service] = seconds.get(segment.service, 0.0) + float(BLOCK_SECONDS[segment.start : segment.stop].sum())
    home = path.hosts[0] if path.hosts else "local"
    seconds[home] += 0.0001 * len(path.link_slots)
    return PathCost(seconds)


def accuracy(path: InferencePath) -> float:
    """Smooth in the path's positions: what is skipped costs, host blocks of the same depth make up for most of it."""
    lin = path.segments[-1].start if path.ends_in_head else 6
    lost = 0.018 * (lin - path.lout) ** 1.2 + 0.01 * path.lout * (6 - lin) / 9
    if path.hosts:
        borrowed = path.segments[1]
        gap = abs(borrowed.start - path.lout) + abs(borrowed.stop - lin)
        lost *= (0.25 if path.hosts[0] == "host" else 0.6) + 0.12 * gap
    return float(A0 - lost)


def accuracy_fit(path: InferencePath) -> float:
    """Least-squares links lose more, the more they have to bridge; those that make the logits are as good as trained ones."""
    return A0 - 1.6 * (A0 - accuracy(path)) - 0.02 if path.ends_in_head else accuracy(path)


def faster(hosts: Mapping[str, int]) -> list[Candidate]:
    """Every path of a space that takes less of the local server than the original."""
    found = (Candidate(path, cost(path)) for path in enumerate_paths("local", 6, hosts))
    return [candidate for candidate in found if candidate.cost.at("local") < ORIGINAL.cost.at("local")]


def best_value(objective: Objective, candidates: Iterable[Candidate]) -> float:
    """Value of the best plan there is."""
    return objective.value({c.path: (c.cost, accuracy(c.path)) for c in candidates})


CANDIDATES = faster(HOSTS)
BEST = best_value(PLAN, CANDIDATES)
PATIENT = Stopping(max_trainings=40, patience=40, epsilon=0.01)
UNDAUNTED = Stopping(max_trainings=400, patience=400, epsilon=0.0)
"""Ends when there is nothing left."""


def sampler(
    name: Name,
    stopping: Stopping = PATIENT,
    *,
    candidates: Sequence[Candidate] = CANDIDATES,
    objective: Objective = PLAN,
    hosts: Mapping[str, int] = HOSTS,
    screen: int = 6,
    reduction: int = 2,
    seed: int = 0,
) -> Sampler:
    if name == "printed":
        return PrintedSampler(candidates, objective, stopping, hosts, seed=seed)
    return GreedySampler(candidates, objective, stopping, hosts, predictor=name, screen=screen, reduction=reduction, seed=seed)


def score(path: InferencePath) -> Score:
    """What least-squares links say of a path."""
    found = accuracy_fit(path)
    return Score(found, 100 * (A0 - found), divergence=0.1, explained=0.5, seconds=0.1)


def evaluate(of: Sampler, proposal: Proposal) -> None:
    """Tell what the landscape measures."""
    if proposal.fidelity == "fit":
        of.tell(proposal, accuracy_fit(proposal.path), score(proposal.path))
    else:
        of.tell(proposal, accuracy(proposal.path))


def ask(of: Sampler) -> Proposal:
    """The one path that a sampler wants evaluated next."""
    (proposal,) = of.ask()
    return proposal


def run(of: Sampler) -> Iterator[Proposal]:
    """Every proposal until the sampler stops, one at a time."""
    while proposals := of.ask():
        for proposal in proposals:
            yield proposal
            evaluate(of, proposal)
    assert of.stopped_because is not None


def trainings_until(of: Sampler, value: float) -> int:
    """How many trainings a search takes to a plan of such value."""
    for _ in chain(run(of), [None]):  # once more when the last was told
        if of.objective.value(of.known) >= value:
            return len(of.trained)
    raise AssertionError(f"{of.stopped_because} before {value} was reached")


def turns(of: Sampler) -> list[tuple[Proposal, ...]]:
    """All that is asked until the sampler stops, each batch told before the next is asked."""
    found = []
    while proposals := of.ask():
        found.append(proposals)
        for proposal in proposals:
            evaluate(of, proposal)
    return found
