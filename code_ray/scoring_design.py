"""Which paths a search scores first, and which paths are cheap to score together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from code_ray.objective import Objective
from code_ray.path import InferencePath
from code_ray.space import Candidate
from code_ray.throughput import FloatArray

BATCH = 8
"""Paths scored together at most."""

FIRST = 4
"""Paths of a group that are scored first: more groups say more than more of a group."""

Group = tuple[object, ...]


def groups_of(candidates: Sequence[Candidate]) -> dict[Group, list[int]]:
    """Indices of candidates that share most of what scoring them takes: those that leave the local service at the same place for
    the same block, (host, lout, start); of those without a host all, ().
    """
    groups: dict[Group, list[int]] = {}
    for index, candidate in enumerate(candidates):
        path = candidate.path
        key = (path.segments[1].service, path.lout, path.segments[1].start) if path.hosts else ()
        groups.setdefault(key, []).append(index)
    return groups


def scoring_design(
    candidates: Sequence[Candidate],
    objective: Objective,
    features: FloatArray,
    hosts: Sequence[str],
    budget: int,
    rng: np.random.Generator,
) -> list[list[InferencePath]]:
    """Batches of paths: the one of all that would serve most if it lost nothing, since that alone may decide what is worth a look;
    then paths far from each other, a third of ``budget`` of them without a host (the rivals), a quarter spread over groups of each
    host, from those that hold the faster paths. Each batch begins where ``rng`` says.

    The last two columns of ``features`` are the octaves that a candidate's links bridge.
    """
    seconds = np.maximum(*objective.pair_seconds(candidates))  # of the server that a path keeps busiest
    first = int(objective.values_with({}, candidates, np.full((1, len(candidates)), objective.accuracy_original)).argmax())
    groups = {key: others for key, group in groups_of(candidates).items() if (others := [i for i in group if i != first])}
    design = [[first], _spread(groups.get((), []), features, max(1, budget // 3), rng)]
    share = max(1, (budget + 1) // 4 // max(1, len(hosts)))
    octaves = features[:, -2:].sum(axis=1)
    for host in hosts:
        fastest = [min(group, key=lambda i: seconds[i]) for key, group in groups.items() if key and key[0] == host]
        fastest.sort(key=lambda i: float(seconds[i]))
        chosen = _spread(fastest[: (len(fastest) + 1) // 2], features, max(1, share // FIRST), rng)
        by_member = {i: group for group in groups.values() for i in group}
        design += [_spread(_easiest(by_member[i], octaves), features, min(FIRST, share), rng) for i in chosen]
    return [[candidates[i].path for i in batch] for batch in design if batch]


def next_batch(design: Sequence[Sequence[InferencePath]], index: Mapping[InferencePath, int], waiting: Sequence[int]) -> list[int]:
    """Those of the first batch of a design of which some are ``waiting`` to be scored; paths without an ``index`` are none any more."""
    batches = ([index[path] for path in batch if path in index and index[path] in waiting] for batch in design)
    return next(filter(None, batches), [])


def _easiest(group: Sequence[int], octaves: FloatArray) -> list[int]:
    """Half of a group: those whose links enlarge or reduce maps least."""
    middle = np.median(octaves[list(group)])
    return [i for i in group if octaves[i] <= middle]


def _spread(indices: Sequence[int], features: FloatArray, count: int, rng: np.random.Generator) -> list[int]:
    """``count`` of ``indices``, one by chance and then always the one farthest from those chosen."""
    pool = list(indices)
    chosen = [pool.pop(int(rng.integers(len(pool))))] if pool and count else []
    while pool and len(chosen) < count:
        gaps = np.abs(features[pool][:, None] - features[chosen][None]).sum(axis=2).min(axis=1)
        chosen.append(pool.pop(int(gaps.argmax())))
    return chosen
