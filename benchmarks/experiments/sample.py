"""Which paths the experiments train: a declared sample, in the order in which a page can be made of it soonest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.experiments.config import Experiments
from benchmarks.jobs import Job
from code_ray.controls import RANDOM_SUFFIX, control_paths
from code_ray.path import InferencePath, path_from_vector

SCALES = (0.25, 0.5, 1.0)
"""Of the recipe's learning rate: a random host gets the one that suits it, chosen on validation images."""

EARLY_SKIPS, EARLY_HOUTS = 4, 3
"""How many skips of each kind, and blocks of the other host, belong to a first page: every seed of those comes before the rest."""


class Sample:
    """The paths of every experiment, by what they are there for; ``blocks``: how many each service has."""

    def __init__(self, config: Experiments, blocks: Mapping[str, int]) -> None:
        self.config = config
        self.blocks = blocks[config.local]
        self._host_blocks = blocks

    def hout(self, host: str) -> tuple[int, ...]:
        """Up to which blocks experiment 1 borrows of a host."""
        return self.config.hout or tuple(range(1, self._host_blocks[host]))

    def cross(self, host: str, hout: int, lin: int, rank: int | None = None) -> InferencePath:
        """The paper's [0, 1, hout, lin]."""
        return path_from_vector((0, 1, hout, lin), self.config.local, self.blocks, host, self._host_blocks[host], rank)

    def random(self, host: str, hout: int, lin: int) -> InferencePath:
        """The same path through the host's random-weight control."""
        return control_paths(self.cross(host, hout, lin))["random_host"]

    def links_only(self, host: str, lin: int) -> InferencePath:
        """The links of such a path without any block between them."""
        return control_paths(self.cross(host, 1, lin))["links_only"]

    def skip(self, lout: int, lin: int, rank: int | None = None) -> InferencePath:
        """A skip of local blocks lout + 1 .. lin."""
        return path_from_vector((lout, lin), self.config.local, self.blocks, rank=rank)

    def exit(self, lout: int) -> InferencePath:
        """An early exit behind local block ``lout``."""
        return path_from_vector((lout,), self.config.local, self.blocks)

    def probe(self, host: str, hout: int) -> InferencePath:
        """A head on what a host's first ``hout`` blocks make of the image."""
        return path_from_vector((0, 1, hout), self.config.local, self.blocks, host, self._host_blocks[host])

    def tuning(self, random: str) -> InferencePath:
        """The path on which the learning rate of a random host is chosen, at seed 0."""
        host, other = random.removesuffix(RANDOM_SUFFIX), self.config.other
        if other is not None and host == other.host:
            return self.random(host, other.hout[0], other.lin)
        houts = self.hout(host)
        return self.random(host, houts[len(houts) // 2], self.config.lin[0])

    def trainings(self, *, early: bool) -> Iterator[InferencePath]:
        """Paths of the first page (``early``), or the rest; every seed trains all of them."""
        config = self.config

        def part(many: tuple[Any, ...], count: int) -> tuple[Any, ...]:
            return many[:count] if early else many[count:]

        for lin in part(config.lin, 1):
            for hout in self.hout(config.random):
                yield from (self.cross(host, hout, lin) for host in config.hosts if hout in self.hout(host))
                yield self.random(config.random, hout, lin)
        if early:
            yield self.links_only(config.random, config.rank_lin)
            yield from (self.exit(lout) for lout in config.exits)
            yield from (self.probe(config.other.host, hout) for hout in config.other.hout[:EARLY_HOUTS]) if config.other else ()
        for skip in part(config.skips, EARLY_SKIPS):
            yield from (self.skip(skip[0], skip[1], rank) for rank in (None, config.skip_rank))
        if (other := config.other) is not None:
            for hout in part(other.hout, EARLY_HOUTS):
                yield self.cross(other.host, hout, other.lin)
                yield self.random(other.host, hout, other.lin)
        for host in part(config.hosts[::-1], 1):
            yield from (self.cross(host, hout, config.rank_lin, rank) for rank in config.ranks for hout in self.hout(host))

    def timed(self) -> list[InferencePath]:
        """Paths whose blocks and links are timed: all but those of random hosts, whose times are their hosts'."""
        paths = [path for early in (True, False) for path in self.trainings(early=early)]
        return [path for path in dict.fromkeys(paths) if not any(name.endswith(RANDOM_SUFFIX) for name in path.hosts)]

    def jobs(self, seed: int, *, early: bool, scales: Mapping[str, float]) -> list[Job]:
        """Trainings as jobs; paths that begin alike are one. ``scales``: of learning rates, of the random hosts whose is known; the paths
        of others are left out.
        """
        together: dict[tuple[object, ...], list[str]] = {}
        for path in self.trainings(early=early):
            randoms = [name for name in path.hosts if name.endswith(RANDOM_SUFFIX)]
            if all(name in scales for name in randoms):
                scale = scales[randoms[0]] if randoms else 1.0
                beginning = path.segments[:2] if path.hosts else path.segments
                together.setdefault((beginning, path.rank, scale), []).append(str(path))
        return [{"kind": "training", "paths": paths, "seed": seed, "scale": key[-1]} for key, paths in together.items()]
