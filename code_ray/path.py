"""Inference paths: which blocks a sample runs through, as frozen values (DESIGN 2.1).

A path is a sequence of segments, each a run of consecutive blocks of one service. It starts at the local service's
input and ends in the local service's logits; where two segments meet, and before logits that no local head makes,
stands a link. Nothing here knows weights, shapes or times.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Literal

from code_ray.errors import PathError

Kind = Literal["original", "cross", "skip", "exit", "probe"]

_OPTIONS = re.compile(r"( \| rank=(?P<rank>\d+))?( \| rerun=(?P<rerun>0\.\d+))?")
_SEGMENT = re.compile(r"(?P<service>[^\[\]|>\s]+)\[(?P<start>\d+):(?P<stop>\d+)\]")


@dataclass(frozen=True, order=True)
class Segment:
    """Blocks ``start .. stop-1`` of a service, zero-based and half-open; empty where start == stop."""

    service: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise PathError(f"segment {self} does not run forward; give 0 <= start <= stop")

    def __str__(self) -> str:
        return f"{self.service}[{self.start}:{self.stop}]"


@dataclass(frozen=True, order=True)
class LinkSlot:
    """The place of a link on a path: from one service's boundary to another's.

    A boundary is (service, position); position p lies behind block p, 0 is the input and N the logits.
    """

    index: int
    source: tuple[str, int]
    target: tuple[str, int]
    rank: int | None

    @property
    def key(self) -> str:
        """Name of this link's file and tensors."""
        return f"link{self.index}"


@dataclass(frozen=True, order=True)
class InferencePath:
    """A path of the local service ``segments[0].service``, which has ``num_blocks`` blocks.

    The first segment is always of the local service (empty if the raw input leaves at once). ``rank`` is that of its
    reduced links, None for normal ones. ``rerun``: the share of samples that a gated path sends over the original as well,
    those of whose answers it is least sure (see ``gating``); 0 for a plain path.
    """

    num_blocks: int
    segments: tuple[Segment, ...]
    rank: int | None = None
    rerun: float = 0.0

    def __post_init__(self) -> None:
        if not self.segments or self.segments[0].start != 0:
            raise PathError(f"path {self.segments} does not start at the local service's input; give its first segment as local[0:lout]")
        local = self.segments[0].service
        if any(segment.service == local and segment.stop > self.num_blocks for segment in self.segments):
            raise PathError(f"path {self} runs past the {self.num_blocks} blocks of {local!r}")
        if any(a.service == b.service and a.stop > b.start for a, b in pairwise(self.segments)):
            raise PathError(f"path {self} runs a service's blocks out of order")
        if any(a.service == b.service and a.stop == b.start for a, b in pairwise(self.segments)):
            raise PathError(f"path {self} has a link that skips nothing; leave a gap or join the two segments")
        if self.rank is not None and self.rank < 1:
            raise PathError(f"link rank {self.rank} is not positive; use null for a normal link")
        if not 0 <= self.rerun < 1 or (self.rerun and self.kind == "original"):
            raise PathError(f"path {self} cannot rerun a share of {self.rerun:g}; give 0 up to 1, and 0 for the original")

    @property
    def local(self) -> str:
        """Name of the local service."""
        return self.segments[0].service

    @property
    def plain(self) -> InferencePath:
        """The path without a gate: the same blocks and links."""
        return replace(self, rerun=0.0)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of the services whose blocks are borrowed, in order of first use."""
        return tuple(dict.fromkeys(segment.service for segment in self.segments if segment.service != self.local))

    @property
    def lout(self) -> int:
        """Local blocks run before anything leaves them (0: the raw input leaves)."""
        return self.segments[0].stop

    @property
    def ends_in_head(self) -> bool:
        """Whether the local service's own head makes the logits."""
        last = self.segments[-1]
        return last.service == self.local and last.stop == self.num_blocks and last.start < last.stop

    @property
    def kind(self) -> Kind:
        if self.ends_in_head and len(self.segments) == 1:
            return "original"
        if self.hosts:
            return "cross" if self.ends_in_head else "probe"
        return "skip" if self.ends_in_head else "exit"

    @property
    def link_slots(self) -> tuple[LinkSlot, ...]:
        """The links this path needs, in order."""
        ends = [((a.service, a.stop), (b.service, b.start)) for a, b in pairwise(self.segments)]
        if not self.ends_in_head:
            last = self.segments[-1]
            ends.append(((last.service, last.stop), (self.local, self.num_blocks)))
        return tuple(LinkSlot(i, source, target, self.rank) for i, (source, target) in enumerate(ends))

    @property
    def vector(self) -> tuple[int, ...]:
        """The paper's vector: () original, (lout,) exit, (lout, lin) skip, (lout, hin, hout) probe,
        (lout, hin, hout, lin) cross; through several hosts hin and hout of each, in order.

        Raises:
            PathError: for a path that comes back to the local service on its way, which has no vector.
        """
        if self.kind == "original":
            return ()
        middle = self.segments[1:-1] if self.ends_in_head else self.segments[1:]
        if any(segment.service == self.local for segment in middle):
            raise PathError(f"path {self} comes back to {self.local!r} on its way; only paths from host to host have a vector")
        host = tuple(n for segment in middle for n in (segment.start + 1, segment.stop))
        return (self.lout, *host, self.segments[-1].start) if self.ends_in_head else (self.lout, *host)

    def __str__(self) -> str:
        text = " > ".join(map(str, self.segments))
        if not self.ends_in_head:
            text += " > logits"
        if self.rank is not None:
            text += f" | rank={self.rank}"
        return f"{text} | rerun={self.rerun:g}" if self.rerun else text


def original_path(local: str, num_blocks: int) -> InferencePath:
    """The local service as it is."""
    return InferencePath(num_blocks, (Segment(local, 0, num_blocks),))


def path_from_vector(
    vector: Sequence[int],
    local: str,
    num_blocks: int,
    host: str | None = None,
    host_blocks: int | None = None,
    rank: int | None = None,
    then: Mapping[str, int] = MappingProxyType({}),
) -> InferencePath:
    """The path of a vector (see ``InferencePath.vector``), checked against the bounds of DESIGN 2.1.

    ``then``: hosts that may follow the first, in order, with their numbers of blocks.

    Raises:
        PathError: for a vector of another length, outside the bounds, or one that needs a host where none is given.
    """
    numbers = tuple(vector)
    lent = [*({} if host is None or host_blocks is None else {host: host_blocks}).items(), *then.items()]
    longest = 2 + 2 * max(1, len(lent))
    if not all(type(n) is int for n in numbers) or len(numbers) > longest:
        raise PathError(
            f"vector {list(numbers)} is not 0 to {longest} integers: [], [lout], [lout, lin], [lout, hin, hout] or [lout, hin, hout, lin]"
            + (", with hin and hout of each host in turn" if len(lent) > 1 else "")
        )
    if not numbers:
        return original_path(local, num_blocks)
    returns = len(numbers) % 2 == 0
    runs = numbers[1:-1] if returns else numbers[1:]
    lout, lin = numbers[0], numbers[-1] if returns else num_blocks
    if not (0 <= lout < lin and (not returns or lin <= num_blocks - 1)):
        raise PathError(f"vector {list(numbers)} is outside the space: it needs 0 <= lout < lin <= {num_blocks - 1}")
    if len(numbers) == 1 and lout == 0:
        raise PathError(f"vector {list(numbers)} is outside the space: an exit needs at least one block, lout >= 1")
    if runs and not lent:
        raise PathError(f"vector {list(numbers)} borrows blocks but no host is given")
    middle = []
    for (name, blocks), hin, hout in zip(lent, runs[::2], runs[1::2], strict=False):
        if not 1 <= hin <= hout <= blocks - 1:
            raise PathError(f"vector {list(numbers)} is outside the space: it needs 1 <= hin <= hout <= {blocks - 1} of {name!r}")
        middle.append(Segment(name, hin - 1, hout))
    tail = (Segment(local, lin, num_blocks),) if returns else ()
    return InferencePath(num_blocks, (Segment(local, 0, lout), *middle, *tail), rank)


def parse_path(text: str, num_blocks: int) -> InferencePath:
    """The path that ``str(path)`` wrote, for a local service of ``num_blocks`` blocks.

    Raises:
        PathError: where the text is not a path.
    """
    body, bar, rest = text.partition(" | ")
    options = _OPTIONS.fullmatch(bar + rest)
    parts = body.split(" > ")
    headless = parts[-1] == "logits"
    matches = [_SEGMENT.fullmatch(part) for part in (parts[:-1] if headless else parts)]
    if not matches or options is None or any(match is None for match in matches):
        raise PathError(f"{text!r} is not a path; write it as 'local[0:1] > host[0:5] > local[5:6]'")
    segments = tuple(Segment(m["service"], int(m["start"]), int(m["stop"])) for m in matches if m)
    rank, rerun = options["rank"], options["rerun"]
    path = InferencePath(num_blocks, segments, None if rank is None else int(rank), float(rerun or 0))
    if path.ends_in_head == headless:
        raise PathError(f"{text!r} ends in neither the local head nor 'logits'")
    return path
