"""What reaches a link of a path: constant while what lies before it is, and the same for paths that begin alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from code_ray.activations import whole_batches
from code_ray.blocks import ExecutionMode, Shape, content_hash
from code_ray.data import Split
from code_ray.links import Link
from code_ray.path import LinkSlot
from code_ray.runner import Leg, PathRunner
from code_ray.service import Service

MAX_KEPT_VALUES = 250_000_000
"""Inputs with more values than this (500 MB in bfloat16) are computed batch by batch instead of kept."""


class Source(Protocol):
    """What the first leg of a stretch is given, by split."""

    def size(self, split: str) -> int:
        """Images of a split."""

    def take(self, split: str, rows: Tensor | slice) -> Tensor:
        """What comes of some of them, (n, *shape) float32."""


class Images:
    """Images as a service's own blocks take them."""

    def __init__(self, service: Service, splits: Mapping[str, Split]) -> None:
        self.splits = splits
        self._service = service

    def size(self, split: str) -> int:
        return len(self.splits[split])

    def take(self, split: str, rows: Tensor | slice) -> Tensor:
        return self._service.preprocess(self.splits[split].images[rows if isinstance(rows, slice) else rows.numpy()])


def too_many(size: int, shape: Shape) -> bool:
    """Whether tensors of ``shape`` for so many images are not kept."""
    return size * int(torch.Size(shape).numel()) > MAX_KEPT_VALUES


class LinkInputs:
    """Inputs of one link for images of named splits, computed as the servers would; a cache and nothing more.

    One beginning of paths is kept at a time: everything before the link, the weights of other links among it.
    """

    def __init__(self, services: Mapping[str, Service], modes: Callable[[str], ExecutionMode], device: str = "cpu") -> None:
        self._services = services
        self._modes = modes
        self._device = device
        self.seconds: dict[str, float] = {}  # by split, what computing the kept rows took
        self._beginning: object = None
        self._kept: dict[str, Tensor] = {}

    def turn_to(self, legs: tuple[Leg, ...], links: Mapping[str, Link], source: Source, shape: Shape, origin: str = "") -> None:
        """Give from now on what ``legs`` make of ``source``, of ``shape``; what is kept stays where the path begins like the one before.

        ``origin`` names what lies before the source, where it is not always the same.
        """
        slots = [step for leg in legs for step in leg.steps if isinstance(step, LinkSlot)]
        beginning = (origin, legs, *(content_hash(links[slot.key]) for slot in slots))
        self._source, self._shape = source, shape
        if beginning == self._beginning:
            return
        self._beginning = beginning
        self._kept, self.seconds = {}, {}
        self._runner = PathRunner(legs, self._services, links, self._modes, self._device)
        # What a bfloat16 server makes loses nothing in bfloat16, and takes half the room.
        self._dtype = self._modes(legs[-1].provider).torch_dtype if legs else torch.float32

    def rows(self, split: str, indices: Tensor) -> Tensor:
        """Inputs of the link for images ``indices`` of a split, (n, *shape) float32, or int32 token ids."""
        size = self._source.size(split)
        if too_many(size, self._shape):
            return self._runner(self._source.take(split, indices))
        kept, wanted = self._kept.get(split), whole_batches(int(indices.max()) + 1, size)
        if kept is None or len(kept) < wanted:
            started = time.monotonic()
            missing = self._source.take(split, slice(0 if kept is None else len(kept), wanted))
            new = self._runner(missing)
            new = new.to(self._dtype) if new.is_floating_point() else new  # token ids are no such numbers
            kept = self._kept[split] = new if kept is None else torch.cat([kept, new])
            self.seconds[split] = self.seconds.get(split, 0.0) + time.monotonic() - started
        found = kept[indices]
        return found.float() if found.is_floating_point() else found

    def of(self, value: Tensor) -> Tensor:
        """Inputs of the link for what the source would give, which nobody keeps."""
        return self._runner(value)
