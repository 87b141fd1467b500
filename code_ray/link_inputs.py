"""What reaches the last link of a path: constant while that link alone is trained, and the same for paths that begin alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from code_ray.activations import whole_batches
from code_ray.blocks import ExecutionMode, content_hash
from code_ray.data import Split
from code_ray.links import Link
from code_ray.path import InferencePath
from code_ray.runner import PathRunner, Placement, walk_apart
from code_ray.service import Service

MAX_KEPT_VALUES = 250_000_000
"""Inputs with more values than this (500 MB in bfloat16) are computed batch by batch instead of kept."""


class LinkInputs:
    """Inputs of the last link for images of named splits, computed as the servers would; a cache and nothing more.

    One beginning of paths is kept at a time: everything before the last link, the weights of other links among it.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        local: str,
        splits: Mapping[str, Split],
        placement: Placement,
        modes: Callable[[str], ExecutionMode],
        device: str = "cpu",
    ) -> None:
        self.splits = splits
        self._services = services
        self._local = services[local]
        self._placement = placement
        self._modes = modes
        self._device = device
        self.seconds: dict[str, float] = {}  # by split, what computing the kept rows took
        self._beginning: object = None
        self._kept: dict[str, Tensor] = {}

    def turn_to(self, path: InferencePath, links: Mapping[str, Link]) -> None:
        """Give the inputs of this path's last link from now on; what is kept stays where the path begins like the one before."""
        legs, _ = walk_apart(path, self._placement)
        slots = path.link_slots
        beginning = (legs, path.rank if len(slots) > 1 else None, *(content_hash(links[slot.key]) for slot in slots[:-1]))
        if beginning == self._beginning:
            return
        self._beginning = beginning
        self._kept, self.seconds = {}, {}
        self._runner = PathRunner(legs, self._services, links, self._modes, self._device)
        # What a bfloat16 server makes loses nothing in bfloat16, and takes half the room.
        self._dtype = self._modes(legs[-1].provider).torch_dtype if legs else torch.float32
        self._shape = self._services[slots[-1].source[0]].boundaries[slots[-1].source[1]].shape

    def rows(self, split: str, indices: Tensor) -> Tensor:
        """Inputs of the link for images ``indices`` of a split, (n, *shape) float32."""
        images = self.splits[split].images
        if len(images) * int(torch.Size(self._shape).numel()) > MAX_KEPT_VALUES:
            return self._runner(self._local.preprocess(images[indices.numpy()]))
        kept, wanted = self._kept.get(split), whole_batches(int(indices.max()) + 1, len(images))
        if kept is None or len(kept) < wanted:
            started = time.monotonic()
            missing = images[0 if kept is None else len(kept) : wanted]
            new = self._runner(self._local.preprocess(missing)).to(self._dtype)
            kept = self._kept[split] = new if kept is None else torch.cat([kept, new])
            self.seconds[split] = self.seconds.get(split, 0.0) + time.monotonic() - started
        return kept[indices].float()
