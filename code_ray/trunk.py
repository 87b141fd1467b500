"""Trunks: beginnings that paths of several services have in common, run once for all of them (DESIGN 1, 2.1).

Services that take the same frame can share what a host makes of it: the raw frame enters the host through one link, the host's blocks run
once, and each service goes on from there by an exit link of its own. A replica of one service does nothing for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from code_ray.errors import PathError
from code_ray.path import InferencePath, LinkSlot, Segment


@dataclass(frozen=True)
class Trunk:
    """Hosts' blocks behind the raw frame: their ``segments`` in order, with a link of ``rank`` into each of them."""

    segments: tuple[Segment, ...]
    rank: int | None = None

    @property
    def num_links(self) -> int:
        """How many links are shared: one into each segment, the first of a path."""
        return len(self.segments)

    def exit_of(self, path: InferencePath) -> LinkSlot:
        """The first link of ``path``, which begins with this trunk, that is its own."""
        return path.link_slots[self.num_links]

    def __str__(self) -> str:
        text = " > ".join(map(str, self.segments))
        return text if self.rank is None else f"{text} | rank={self.rank}"


def trunk_of(path: InferencePath) -> Trunk | None:
    """The trunk by which ``path`` begins, gated or not; None where local blocks run before or between hosts', or there is no host."""
    hosted = path.segments[1:-1] if path.ends_in_head else path.segments[1:]
    if path.lout > 0 or not hosted or any(segment.service == path.local or segment.start == segment.stop for segment in hosted):
        return None
    return Trunk(hosted, path.rank)


def shared_trunk(paths: Sequence[InferencePath]) -> Trunk:
    """The trunk of ``paths``, of several services each.

    Raises:
        PathError: where they do not all begin with the same one, or two are of one service.
    """
    found = [trunk_of(path) for path in paths]
    if len(paths) < 2 or len({path.local for path in paths}) < len(paths):
        raise PathError(f"a trunk is shared by paths of several services; got {'; '.join(map(str, paths)) or 'none'}")
    if found[0] is None or any(other != found[0] for other in found[1:]):
        raise PathError(
            f"paths {'; '.join(map(str, paths))} share no trunk: the raw frame must go through the same blocks of the same hosts"
        )
    return found[0]
