"""The pairs of services whose paths are tabled, and the order in which their rows are made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from code_ray.path import InferencePath
from code_ray.recipe import Recipe
from code_ray.service import Service
from code_ray.space import enumerate_paths

SAMPLE_SEED = 20261125


@dataclass(frozen=True)
class Pair:
    """A local service, the host it borrows from, how many of the crosses and probes are tabled, and how each path is trained:
    with a look at ``rungs``, in batches.
    """

    name: str
    local: str
    host: str
    data: str
    crosses: int
    probes: int
    recipe: Recipe
    rungs: tuple[int, ...]


PAIRS = {
    pair.name: pair
    for pair in (
        Pair(
            "fashion",
            "fashion-cnn",
            "efficientnet-lite0",
            "fashion-mnist",
            crosses=300,
            probes=40,
            recipe=Recipe(samples=9_600, fit_samples=1_000, screen_samples=1_000, steps=300),
            rungs=(25, 50, 100),
        ),
        Pair(
            "alexnet",
            "alexnet-fashion",
            "alexnet-digits",
            "fashion-mnist",
            crosses=225,
            probes=30,
            recipe=Recipe(samples=3_200, fit_samples=1_000, screen_samples=500, steps=100),
            rungs=(25, 50),
        ),
    )
}


def tabled_paths(pair: Pair, local: Service, host: Service) -> list[InferencePath]:
    """Skips and exits, then crosses and probes in a stratified order: any first part of it is a fair sample too."""
    hosts = {pair.host: host.num_blocks}

    def of_kind(*kinds: str) -> list[InferencePath]:
        return enumerate_paths(pair.local, local.num_blocks, hosts, kinds=kinds)  # type: ignore[arg-type]

    crosses, probes = stratified(of_kind("cross"), pair.crosses), stratified(of_kind("probe"), pair.probes)
    return [*of_kind("skip", "exit"), *_merged(crosses, probes)]


def beginning(path: InferencePath) -> tuple[object, ...]:
    """What paths have in common whose last link gets the same inputs: they are trained one after another."""
    return path.segments[:2] if path.hosts else path.segments[:1]


def stratified(paths: Sequence[InferencePath], count: int) -> list[InferencePath]:
    """At least ``count`` of ``paths``: those that begin alike together, dealt out in turn from strata of equal (lout, hout)."""
    rng = np.random.default_rng(SAMPLE_SEED)
    strata: dict[tuple[int, int], list[list[InferencePath]]] = {}
    for _, group in itertools.groupby(sorted(paths, key=beginning), beginning):
        together = list(group)
        strata.setdefault((together[0].lout, together[0].segments[1].stop), []).append(together)
    for groups in strata.values():
        rng.shuffle(groups)
    order = [strata[key] for key in sorted(strata)]
    rng.shuffle(order)
    dealt = (group for deal in itertools.zip_longest(*order) for group in deal if group is not None)
    chosen: list[InferencePath] = []
    while len(chosen) < min(count, len(paths)):
        chosen += next(dealt)
    return chosen


def _merged(many: Sequence[InferencePath], few: Sequence[InferencePath]) -> Iterator[InferencePath]:
    """Both in their order, evenly mixed."""
    keyed = [((i + 0.5) / len(part), p) for part in (many, few) for i, p in enumerate(part)]
    return (path for _, path in sorted(keyed, key=lambda item: item[0]))
