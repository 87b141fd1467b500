"""Frames that several services answer: what it costs to answer one, with and without a shared trunk (DESIGN 2.3).

A *column* of the programme (``throughput.best_joint_mixture``) is one way to get every service's answer to a frame: a path for each
service, run one by one or, where they begin with the same trunk, behind one pass through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product

from code_ray.path import InferencePath
from code_ray.profiling import Profile, hop_bytes, leg_target
from code_ray.runner import Leg, fan_out
from code_ray.service import Service
from code_ray.throughput import Answers, Limits, Mixture, PathCost, best_joint_mixture, payload_by_edge


@dataclass(frozen=True)
class Served:
    """A path of one of the services, with its cost where it runs alone and its accuracy."""

    path: InferencePath
    cost: PathCost
    accuracy: float


@dataclass(frozen=True)
class Asked:
    """One of the services that are asked of every frame: its paths, the original first, and how many points it may lose on average."""

    paths: Sequence[Served]
    loss_points: float


@dataclass(frozen=True)
class Column:
    """One way to answer a frame: a path for each service, and what all of them cost together. ``shared``: behind one trunk."""

    paths: tuple[Served, ...]
    cost: PathCost
    shared: bool = False


@dataclass(frozen=True)
class FramePlan:
    """The best mixture of columns; its rates are frames a second, each answered by every service."""

    columns: tuple[Column, ...]
    mixture: Mixture

    @property
    def throughput(self) -> float:
        """Frames a second."""
        return self.mixture.throughput

    @property
    def shared(self) -> float:
        """Share of the frames that are answered behind a trunk."""
        rates = zip(self.columns, self.mixture.rates, strict=True)
        return sum(rate for column, rate in rates if column.shared) / self.throughput if self.throughput else 0.0


def separate_columns(asked: Sequence[Asked]) -> list[Column]:
    """Every way to answer a frame path by path: the services' own plans, side by side.

    Plans with rates of their own that add up to the same number of frames are mixtures of these columns, however they split the hosts.
    """
    return [Column(paths, _together(served.cost for served in paths)) for paths in product(*(service.paths for service in asked))]


def best_frame_plan(columns: Sequence[Column], asked: Sequence[Asked], limits: Limits) -> FramePlan:
    """The mixture of ``columns`` that answers most frames a second; each service keeps its own loss limit.

    Raises:
        PlanError: as ``best_joint_mixture``.
    """
    answers = [
        Answers([column.paths[number].accuracy for column in columns], service.paths[0].accuracy, service.loss_points)
        for number, service in enumerate(asked)
    ]
    return FramePlan(tuple(columns), best_joint_mixture([column.cost for column in columns], answers, limits))


def trunk_cost(profile: Profile, paths: Sequence[InferencePath], services: Mapping[str, Service]) -> PathCost:
    """What one frame costs that ``paths`` of several services answer behind their trunk: its links and blocks once, of each path the rest,
    reruns included. The frame comes from where the first path's service is; each answer goes back to its own.

    Raises:
        PathError: where they share no trunk.
        PlanError: for a link that the profile has not measured.
    """
    fan, first = fan_out(paths, profile.placement), paths[0]
    home = profile.placement[first.local]

    def hands_on(legs: Sequence[Leg]) -> list[tuple[str, float]]:
        return [(leg.provider, hop_bytes(*leg_target(leg, services), profile.mode_of(leg.provider))) for leg in legs]

    frame = hop_bytes(services[first.local], 0, profile.mode_of(home))
    parts = [PathCost({}, payload_by_edge(home, frame, hands_on(fan.stem[:-1]), fan.stem[-1].provider))]
    parts += [PathCost({leg.provider: profile.leg_seconds(leg, first, services)}) for leg in fan.stem]
    for path, branch in zip(paths, fan.branches, strict=True):
        ((begins, size), *rest), ends = hands_on(branch), profile.placement[path.local]
        parts.append(PathCost({}, payload_by_edge(begins, size, rest, ends)))
        parts += [PathCost({leg.provider: profile.leg_seconds(leg, path, services)}) for leg in branch]
        if path.rerun:
            parts.append(PathCost({ends: path.rerun * profile.original_seconds(path.local)}))
    return profile.with_packing(_together(parts))


def _together(costs: Iterable[PathCost]) -> PathCost:
    return reduce(PathCost.plus, costs, PathCost({}))
