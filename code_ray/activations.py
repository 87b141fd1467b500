"""What frozen blocks make of training images, computed once where it is constant between paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from code_ray.blocks import ExecutionMode
from code_ray.data import UInt8Array
from code_ray.runner import LegRunner, Placement
from code_ray.service import Service

BATCH = 64
"""Images that run together."""

MAX_KEPT_VALUES = 200_000_000
"""Larger sets of activations (800 MB of float32) are computed batch by batch instead of kept."""


class Activations:
    """Activations of one local service's blocks for ``images``, in the mode of its server; a cache and nothing more."""

    def __init__(
        self,
        services: Mapping[str, Service],
        local: str,
        images: UInt8Array,
        placement: Placement,
        modes: Callable[[str], ExecutionMode],
        device: str = "cpu",
    ) -> None:
        self.services = services
        self.local = services[local]
        self.images = images
        self.device = device
        self._placement = placement
        self._modes = modes
        self._prefixes: dict[int, Tensor] = {}

    def behind(self, lout: int, indices: Tensor) -> Tensor:
        """Activations behind local block ``lout`` for images ``indices``, (n, *shape) float32."""
        shape = self.local.boundaries[lout].shape
        if len(self.images) * int(torch.Size(shape).numel()) > MAX_KEPT_VALUES:
            return self.run(self.local.name, 0, lout, self.local.preprocess(self.images[indices.numpy()]))
        if lout not in self._prefixes:
            # Input and logits serve every path, of the rest one at a time is enough: paths come in any order.
            self._prefixes = {k: v for k, v in self._prefixes.items() if k in (0, self.local.num_blocks)}
        kept, wanted = self._prefixes.get(lout), whole_batches(int(indices.max()) + 1, len(self.images))
        if kept is None or len(kept) < wanted:
            missing = self.local.preprocess(self.images[0 if kept is None else len(kept) : wanted])
            new = self.run(self.local.name, 0, lout, missing)
            kept = self._prefixes[lout] = new if kept is None else torch.cat([kept, new])
        return kept[indices]

    def mode(self, service: str) -> ExecutionMode:
        """The mode in which the server of ``service`` runs."""
        return self._modes(self._placement[service])

    def run(self, service: str, start: int, stop: int, value: Tensor) -> Tensor:
        """Blocks start..stop-1 in the mode of their server, without gradients."""
        if start == stop:
            return value
        return in_batches(LegRunner(list(self.services[service].blocks[start:stop]), self.mode(service), self.device), value)


def in_batches(run: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """``run`` over ``value`` in batches, joined again."""
    return torch.cat([run(part) for part in value.split(BATCH)])


def whole_batches(count: int, total: int) -> int:
    """``count`` of ``total`` rounded up to whole batches: what is computed in parts then has the same bits as all at once."""
    return min(-(-count // BATCH) * BATCH, total)
