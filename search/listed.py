"""Paths that a configuration lists: by their vectors, or as those that begin with another service's trunk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from code_ray.artifact import RunDirectory
from code_ray.errors import PathError
from code_ray.joining import trunk_links
from code_ray.links import Link
from code_ray.path import InferencePath, Segment, path_from_vector
from code_ray.path_space import PathSpace
from code_ray.service import Service
from code_ray.trunk import Trunk
from search.config import SearchConfig


def listed_paths(config: SearchConfig, services: Mapping[str, Service], space: PathSpace) -> tuple[InferencePath, ...] | None:
    """The paths that ``config`` lists, or None where it leaves the space as it is.

    Raises:
        PathError: for a vector that is not in the space.
        ArtifactError, PlanError, IntegrityError: as ``trunk_links``.
    """
    if config.trunk is not None:
        return _trunk_paths(space, load_trunks(config, services))
    return None if config.vectors is None else _named_paths(config.vectors, space)


def load_trunks(config: SearchConfig, services: Mapping[str, Service]) -> dict[Trunk, dict[str, Link]]:
    """The trunks of another service's plan that the configuration names, with their links: paths that begin so take them as they are.

    Raises:
        ArtifactError, PlanError, IntegrityError: as ``trunk_links``.
    """
    if config.trunk is None:
        return {}
    return trunk_links(RunDirectory(Path(config.trunk)), services[config.local], {name: services[name] for name in config.hosts})


def _trunk_paths(space: PathSpace, trunks: Iterable[Trunk]) -> tuple[InferencePath, ...]:
    """Every way on from the trunks to the local service, and what needs no host."""
    hostless = replace(space, kinds=tuple(kind for kind in space.kinds if kind in ("skip", "exit")))
    blocks, found = space.num_blocks, hostless.paths()
    for trunk in trunks:
        begin = (Segment(space.local, 0, 0), *trunk.segments)
        lins = range(1, blocks) if "cross" in space.kinds else ()
        found += [InferencePath(blocks, (*begin, Segment(space.local, lin, blocks)), trunk.rank) for lin in lins]
        found += [InferencePath(blocks, begin, trunk.rank)] if "probe" in space.kinds else []
    return tuple(path for path in found if space.joins(path))


def _named_paths(vectors: Sequence[Sequence[int]], space: PathSpace) -> tuple[InferencePath, ...]:
    host = next(iter(space.hosts), None)
    blocks = space.hosts.get(host or "")
    then = dict(list(space.hosts.items())[1 : space.hosts_per_path])
    paths = tuple(path_from_vector(v, space.local, space.num_blocks, host, blocks, rank, then) for v in vectors for rank in space.ranks)
    for path in paths:
        if path.kind == "original" or (path.hosts and path.lout < space.min_lout):
            raise PathError(f"vector {list(path.vector)} in 'vectors' is not in the space that 'min_lout' leaves; take it out")
        if not space.joins(path):
            raise PathError(f"vector {list(path.vector)} in 'vectors' asks for a link that leads nowhere (see docs/search.md); take it out")
    return paths
