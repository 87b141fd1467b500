"""The paths of a search that begin with another service's trunk (``trunk`` in its configuration)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from code_ray.artifact import RunDirectory
from code_ray.joining import trunk_links
from code_ray.links import Link
from code_ray.path import InferencePath, Segment
from code_ray.path_space import PathSpace
from code_ray.service import Service
from code_ray.trunk import Trunk
from search.config import SearchConfig


def load_trunks(config: SearchConfig, services: Mapping[str, Service]) -> dict[Trunk, dict[str, Link]]:
    """The trunks of another service's plan that the configuration names, with their links: paths that begin so take them as they are.

    Raises:
        ArtifactError, PlanError, IntegrityError: as ``trunk_links``.
    """
    if config.trunk is None:
        return {}
    return trunk_links(RunDirectory(Path(config.trunk)), services[config.local], {name: services[name] for name in config.hosts})


def trunk_paths(space: PathSpace, trunks: Iterable[Trunk]) -> tuple[InferencePath, ...]:
    """Every way on from the trunks to the local service, and what needs no host."""
    hostless = replace(space, kinds=tuple(kind for kind in space.kinds if kind in ("skip", "exit")))
    blocks, found = space.num_blocks, hostless.paths()
    for trunk in trunks:
        begin = (Segment(space.local, 0, 0), *trunk.segments)
        lins = range(1, blocks) if "cross" in space.kinds else ()
        found += [InferencePath(blocks, (*begin, Segment(space.local, lin, blocks)), trunk.rank) for lin in lins]
        found += [InferencePath(blocks, begin, trunk.rank)] if "probe" in space.kinds else []
    return tuple(found)
