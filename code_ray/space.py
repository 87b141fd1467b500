"""The space of paths: enumeration, features for prediction, costs (DESIGN 2.1, 2.5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from code_ray.path import InferencePath, Kind, path_from_vector
from code_ray.throughput import FloatArray, PathCost, pair_throughput

KINDS: tuple[Kind, ...] = ("cross", "skip", "exit", "probe")


@dataclass(frozen=True)
class Candidate:
    """A path that may be trained, with what a sample on it costs."""

    path: InferencePath
    cost: PathCost


def enumerate_paths(
    local: str,
    num_blocks: int,
    hosts: Mapping[str, int],
    *,
    kinds: Iterable[Kind] = KINDS,
    min_lout: int = 0,
    ranks: Sequence[int | None] = (None,),
) -> list[InferencePath]:
    """Every one-host path, skip, exit and probe within the bounds of DESIGN 2.1, the original not among them.

    ``hosts`` gives the number of blocks of each host, head included. ``min_lout`` keeps raw inputs (lout = 0) at home;
    it binds paths that leave the local server. Links to logits have no reduced form.
    """
    paths: list[InferencePath] = []
    for kind in dict.fromkeys(kinds):
        for vector, host in _vectors(kind, num_blocks, hosts, min_lout):
            for rank in ranks if kind in ("cross", "skip") else (None,):
                paths.append(path_from_vector(vector, local, num_blocks, host, hosts.get(host or ""), rank))
    return paths


def _vectors(kind: Kind, n: int, hosts: Mapping[str, int], min_lout: int) -> Iterator[tuple[tuple[int, ...], str | None]]:
    if kind == "exit":
        yield from (((lout,), None) for lout in range(1, n))
    if kind == "skip":
        yield from (((lout, lin), None) for lout in range(n - 1) for lin in range(lout + 1, n))
    for host, blocks in hosts.items():
        runs = [(hin, hout) for hin in range(1, blocks) for hout in range(hin, blocks)]
        if kind == "cross":
            yield from (((lo, *run, lin), host) for lo in range(min_lout, n - 1) for lin in range(lo + 1, n) for run in runs)
        if kind == "probe":
            yield from (((lout, *run), host) for lout in range(min_lout, n) for run in runs)


def is_faster(candidate: Candidate, original: Candidate, provider: str, budgets: Mapping[str, float]) -> bool:
    """Whether the original and ``candidate`` at maximum offload serve more than the original alone: what P' of Algorithm 1 holds."""
    t0 = original.cost.at(provider)
    elsewhere = {name: seconds for name, seconds in candidate.cost.seconds.items() if name != provider}
    # The tightest host decides the rate; as if it alone did all the work there at its own kappa.
    tau_h = max((seconds / budgets[name] for name, seconds in elsewhere.items()), default=0.0)
    th_l, th_h = pair_throughput(t0, candidate.cost.at(provider), tau_h, 1.0)
    return bool((th_l + th_h) * t0 > 1.0)


def feature_matrix(paths: Sequence[InferencePath], hosts: Mapping[str, int]) -> FloatArray:
    """One row a path, for the predictor: kind, positions as shares of each network, rank, host."""
    names = list(hosts)
    return np.array([_features(path, names, hosts) for path in paths], dtype=np.float64)


def _features(path: InferencePath, names: list[str], hosts: Mapping[str, int]) -> list[float]:
    n = path.num_blocks
    lin = path.segments[-1].start if path.ends_in_head else n
    borrowed = [segment for segment in path.segments if segment.service != path.local]
    depth = [segment.stop / hosts[segment.service] for segment in borrowed]
    entry = [segment.start / hosts[segment.service] for segment in borrowed]
    return [
        path.lout / n,
        lin / n,
        (lin - path.lout) / n,
        entry[0] if entry else 0.0,
        depth[-1] if depth else 0.0,
        # How far off a link leads: links join boundaries of like depth best.
        entry[0] - path.lout / n if entry else 0.0,
        depth[-1] - lin / n if depth else 0.0,
        float(not path.hosts),
        float(not path.ends_in_head),
        0.0 if path.rank is None else 1 / (1 + math.log2(path.rank)),
        *(float(name in path.hosts) for name in names[1:]),
    ]
