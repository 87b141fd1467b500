"""From a finished campaign to what people read: the plan, its rivals, the controls (DESIGN 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from code_ray.objective import Known, PaperObjective, PlanObjective
from code_ray.path import InferencePath
from code_ray.plan import Plan, PlannedPath
from code_ray.policy import ORIGINAL
from code_ray.space import Candidate
from code_ray.throughput import FloatArray, Mixture, PathCost, least_loss_mixture, pair_throughput, payload_by_edge
from code_ray.trunk import Trunk, trunk_of
from search.campaign import Campaign, links_id
from search.distilled import distilled_paths
from search.measuring import Hits
from search.plannable import plannable, threshold_of
from search.problem import Problem

SPEEDUPS = (1.4, 1.6, 1.8)


@dataclass(frozen=True)
class Arm:
    """One way to serve: a mixture of paths, its throughput over the original's, its average-accuracy loss."""

    paths: tuple[InferencePath, ...]
    mixture: Mixture
    throughput_ratio: float
    loss_points: float

    @property
    def shares(self) -> dict[InferencePath, float]:
        """The paths that are used, with the share of the samples that takes each."""
        return {path: rate / self.mixture.throughput for path, rate in zip(self.paths, self.mixture.rates, strict=True) if rate > 0}

    def summary(self) -> dict[str, Any]:
        """What ``result.json`` says of it."""
        return {
            "throughput_ratio": self.throughput_ratio,
            "average_accuracy_loss_points": self.loss_points,
            "paths": {str(path): share for path, share in self.shares.items()},
        }


def best_arm(problem: Problem, known: Known, loss_points: float | None = None) -> Arm:
    """The best mixture of the original and ``known`` under the run's loss limit, or another one."""
    objective = problem.plan_objective
    if loss_points is not None:
        limits = replace(objective.limits, loss_points=loss_points)
        objective = PlanObjective(objective.original, objective.accuracy_original, limits, objective.local_provider)
    mixture = objective.mixture(known)
    accuracies = [problem.accuracy_original, *(accuracy for _, accuracy in known.values())]
    return Arm(
        (objective.original.path, *known),
        mixture,
        mixture.throughput * objective.original_seconds,
        mixture.average_loss_points(accuracies, problem.accuracy_original),
    )


def all_arms(problem: Problem, known: Known) -> dict[str, Arm]:
    """The rivals in one space (DESIGN 4): each the best mixture of the original and some kinds of paths."""
    pairs = [best_arm(problem, {p: e}) for p, e in known.items() if p.kind == "cross" and len(p.hosts) == 1 and not p.rerun]
    alone = [best_arm(problem, {p: e for p, e in known.items() if {*p.hosts} <= {host}}) for host in problem.config.hosts]
    groups = arm_groups(known)
    return {
        "original": best_arm(problem, {}),
        "paper_pair": max(pairs, key=lambda arm: arm.throughput_ratio, default=best_arm(problem, {})),
        **({"one_host": max(alone, key=lambda arm: arm.throughput_ratio)} if len(alone) > 1 else {}),
        **{name: best_arm(problem, group) for name, group in groups.items()},
    }


def distilled_arms(problem: Problem, known: Known) -> dict[str, Arm]:
    """The best mixtures without and with hosts where small distilled networks may take part; nothing where none was trained."""
    networks = distilled_paths(problem)
    if not networks:
        return {}
    host_free = arm_groups(known)["host_free"]
    return {"distilled": best_arm(problem, {**host_free, **networks}), "mixture_distilled": best_arm(problem, {**known, **networks})}


def plain_arms(problem: Problem, known: Known) -> dict[str, Arm]:
    """The best mixtures without and with hosts of ``known`` paths without gates: what gates are worth."""
    groups = arm_groups({path: entry for path, entry in known.items() if not path.rerun})
    return {name: best_arm(problem, groups[name]) for name in ("host_free", "mixture")}


def arm_groups(known: Known) -> dict[str, Known]:
    """The paths that each mixed arm may use."""
    return {
        "host_free": {p: e for p, e in known.items() if not p.hosts},
        "mixture": known,
        "mixture_lout_1": {p: e for p, e in known.items() if p.lout >= 1 or not p.hosts},
        "probe": {p: e for p, e in known.items() if p.kind == "probe"},
    }


def frontiers(problem: Problem, known: Known) -> dict[str, tuple[list[float], list[float]]]:
    """Throughput ratios and losses of each mixed arm as the loss limit grows: what more accuracy given up would buy."""
    limits = np.linspace(0.0, max(3.0, 1.5 * problem.config.loss_points), 31)
    found: dict[str, tuple[list[float], list[float]]] = {}
    for name, group in arm_groups(known).items():
        arms = [best_arm(problem, group, float(limit)) for limit in limits]
        found[name] = ([arm.throughput_ratio for arm in arms], [arm.loss_points for arm in arms])
    return found


def replica_summaries(problem: Problem, arms: Mapping[str, Arm]) -> dict[str, dict[str, Any]]:
    """A full copy of the local model on each host's share, all weights revealed: ratio 1 + sum of kappa at no loss, where the network
    carries so many images; and of the arms without a host, links or small network included.
    """

    def ratio(alone: float) -> float:
        return alone + sum(min(share * alone, _carried(problem, name)) for name, share in limits.budgets.items() if name != home)

    limits, home = problem.plan_objective.limits, problem.plan_objective.local_provider
    return {
        ("replica" if name == "original" else f"replica_{name}"): {
            "throughput_ratio": ratio(arms[name].throughput_ratio),
            "average_accuracy_loss_points": arms[name].loss_points,
        }
        for name in ("original", "host_free", "distilled")
        if name in arms
    }


def _carried(problem: Problem, provider: str) -> float:
    """How many times Th_0 images fit on the network to a provider, and their logits on the way back."""
    objective, local = problem.plan_objective, problem.services[problem.config.local]
    home, hop_bytes = objective.local_provider, problem.profile.hop_bytes
    sent = payload_by_edge(home, hop_bytes(local, 0, home), [(provider, hop_bytes(local, local.num_blocks, home))])
    bandwidth = objective.limits.bandwidth
    return min((bandwidth[edge] / size for edge, size in sent.items() if edge in bandwidth), default=math.inf) * objective.original_seconds


def arm_at(problem: Problem, known: Known, speedup: float) -> Arm | None:
    """The mixture of the original and ``known`` that loses least at ``speedup`` times the original; None where it is out of reach."""
    objective = problem.plan_objective
    costs = [objective.original.cost, *(cost for cost, _ in known.values())]
    accuracies = [problem.accuracy_original, *(accuracy for _, accuracy in known.values())]
    mixture = least_loss_mixture(costs, accuracies, problem.accuracy_original, objective.limits, speedup / objective.original_seconds)
    if mixture is None:
        return None
    loss = mixture.average_loss_points(accuracies, problem.accuracy_original)
    return Arm((objective.original.path, *known), mixture, speedup, loss)


def fixed_speedups(problem: Problem, known: Known) -> dict[str, dict[str, float] | None]:
    """Least average-accuracy loss at fixed speed-ups, with the host share it needs; None where out of reach."""
    costs = [problem.plan_objective.original.cost, *(cost for cost, _ in known.values())]
    table: dict[str, dict[str, float] | None] = {}
    for speedup in SPEEDUPS:
        arm = arm_at(problem, known, speedup)
        table[str(speedup)] = None
        if arm is not None:
            table[str(speedup)] = {
                "average_accuracy_loss_points": arm.loss_points,
                "host_share": host_share(problem, arm.mixture, costs),
            }
    return table


def host_share(problem: Problem, mixture: Mixture, costs: Sequence[PathCost]) -> float:
    """The share of the busiest host's server that a mixture of paths takes."""
    providers = set(problem.objective.limits.budgets) - {problem.objective.local_provider}
    return max((mixture.load(provider, costs) for provider in providers), default=0.0)


def deployed(problem: Problem, campaign: Campaign) -> Arm:
    """What the search decided to run: the best mixture, or for ``objective: paper`` the pair of largest reward."""
    objective = problem.objective
    if not isinstance(objective, PaperObjective):
        return best_arm(problem, plannable(campaign))
    known = campaign.accuracies
    alone = {path: objective.value({path: entry}) for path, entry in known.items()}
    winner = max(alone, key=lambda path: alone[path], default=None)
    if winner is None or alone[winner] <= objective.original_value:
        return best_arm(problem, {})
    cost, accuracy = known[winner]
    th_l, th_h = pair_throughput(objective.original_seconds, *objective.pair_seconds([Candidate(winner, cost)]), 1.0)
    mixture = Mixture((float(th_l[0]), float(th_h[0])))
    loss = mixture.average_loss_points([problem.accuracy_original, accuracy], problem.accuracy_original)
    return Arm((objective.original.path, winner), mixture, mixture.throughput * objective.original_seconds, loss)


def make_plan(problem: Problem, campaign: Campaign, arm: Arm) -> Plan:
    """The plan of the paths that ``arm`` and the best host-free arm use, so that operators can compare them live; and of the best one
    behind each trunk that is shared: which of them pays with another service beside is not this search's to say.
    """
    known = plannable(campaign)
    used = [path for some in (arm, all_arms(problem, known)["host_free"]) for path in some.shares]
    return plan_of(problem, campaign, [*used, *(best_behind_trunks(problem, known) if problem.config.trunk is not None else [])])


def best_behind_trunks(problem: Problem, known: Known) -> list[InferencePath]:
    """Of the ``known`` paths behind each trunk the one that serves best beside the original alone."""
    found: dict[Trunk, list[InferencePath]] = {}
    for path in known:
        if (trunk := trunk_of(path)) is not None:
            found.setdefault(trunk, []).append(path)
    # Of a plain path its mixture, not the objective's value: that counts in gates which are expected, and here they are measured.
    objective = problem.plan_objective
    return [max(paths, key=lambda path: objective.mixture({path: known[path]}).throughput) for paths in found.values()]


def plan_of(problem: Problem, campaign: Campaign, paths: Iterable[InferencePath]) -> Plan:
    """A plan of the original and ``paths`` that were trained."""
    known, original = plannable(campaign), problem.plan_objective.original.path
    planned = [PlannedPath(path=str(original), id=ORIGINAL, accuracy=problem.accuracy_original, link_hashes={})]
    for path in dict.fromkeys(path for path in paths if path != original):
        kept = links_id(path.plain, problem.public, campaign.longest(path.plain))
        planned.append(
            PlannedPath(
                path=str(path),
                id=f"{kept}-{path.rerun:g}" if path.rerun else kept,
                accuracy=known[path][1],
                link_hashes=campaign.planned_record(path)["link_hashes"],
                links=kept if path.rerun else None,
                threshold=threshold_of(campaign, path),
                payload=problem.config.payload if path.hosts else None,
            )
        )
    config = problem.config
    return Plan(
        local=config.local,
        num_blocks=problem.services[config.local].num_blocks,
        services={name: service.content_hash for name, service in problem.public.items()},
        placement=config.placement,
        kappa={name: host.kappa for name, host in config.hosts.items()},
        loss_points=config.loss_points,
        paths=tuple(planned),
    )


def lost_points(arm: Arm, hits: Hits) -> FloatArray:
    """What an arm loses on each test image against the original, in points: 100 where the original is right and the answer is not."""
    original = hits[arm.paths[0]].astype(np.float64)
    return np.asarray(100 * sum(share * (original - hits[path]) for path, share in arm.shares.items()))


def mean_and_half_interval(values: FloatArray) -> tuple[float, float]:
    """The mean of a value an image, and half of its 95 % interval."""
    return float(values.mean()), float(1.96 * values.std(ddof=1) / math.sqrt(len(values)))


def test_loss(arm: Arm, hits: Hits) -> tuple[float, float]:
    """Average-accuracy loss of an arm on test data in points, with half of its paired 95 % interval."""
    return mean_and_half_interval(lost_points(arm, hits))
