"""The candidates of a search: which paths there are, what they cost, which of them are worth a thought (DESIGN 2.1, 2.5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from code_ray.path import InferencePath, Kind
from code_ray.path_space import KINDS, PathSpace, Sides
from code_ray.throughput import FloatArray, Limits, PathCost, pair_seconds, pair_throughput


@dataclass(frozen=True)
class Candidate:
    """A path that may be trained, with what a sample on it costs."""

    path: InferencePath
    cost: PathCost


def is_faster(candidate: Candidate, original: Candidate, provider: str, limits: Limits) -> bool:
    """Whether the original and ``candidate`` at maximum offload serve more than the original alone: what P' of Algorithm 1 holds."""
    t0 = original.cost.at(provider)
    th_l, th_h = pair_throughput(t0, *pair_seconds(limits, provider, limits.seconds([candidate.cost])), 1.0)
    return bool((th_l + th_h)[0] * t0 > 1.0)


def enumerate_paths(
    local: str,
    num_blocks: int,
    hosts: Mapping[str, int],
    *,
    kinds: Iterable[Kind] = KINDS,
    min_lout: int = 0,
    ranks: Sequence[int | None] = (None,),
    hosts_per_path: int = 1,
) -> list[InferencePath]:
    """Every path of a ``PathSpace``."""
    return PathSpace(local, num_blocks, hosts, tuple(kinds), min_lout, tuple(ranks), hosts_per_path=hosts_per_path).paths()


def feature_matrix(
    paths: Sequence[InferencePath], hosts: Mapping[str, int], sides: Sides | None = None, hosts_per_path: int = 1
) -> FloatArray:
    """What a predictor sees of paths of one local service, (n, d); see ``PathSpace.features``."""
    if not paths:
        return np.zeros((0, 0))
    ranks = tuple(dict.fromkeys(path.rank for path in paths))
    space = PathSpace(paths[0].local, paths[0].num_blocks, hosts, ranks=ranks, sides=sides or {}, hosts_per_path=hosts_per_path)
    return space.features(space.rows(paths))
