"""What frozen blocks make of training images, computed once where it is constant between paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from code_ray.blocks import ExecutionMode, Shape
from code_ray.data import UInt8Array
from code_ray.runner import LegRunner, Placement
from code_ray.service import Service

MAX_CACHED_VALUES = 200_000_000
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
        if not self.is_kept(self.local.boundaries[lout].shape):
            return self.run(self.local.name, 0, lout, self.local.preprocess(self.images[indices.numpy()]))
        if lout not in self._prefixes:
            # Input and logits serve every path, of the rest one at a time is enough: paths come in any order.
            self._prefixes = {k: v for k, v in self._prefixes.items() if k in (0, self.local.num_blocks)}
            self._prefixes[lout] = self.run(self.local.name, 0, lout, self.local.preprocess(self.images))
        return self._prefixes[lout][indices]

    def is_kept(self, shape: Shape) -> bool:
        """Whether activations of ``shape`` of all images are few enough to be kept."""
        return len(self.images) * int(torch.Size(shape).numel()) <= MAX_CACHED_VALUES

    def mode(self, service: str) -> ExecutionMode:
        """The mode in which the server of ``service`` runs."""
        return self._modes(self._placement[service])

    def run(self, service: str, start: int, stop: int, value: Tensor) -> Tensor:
        """Blocks start..stop-1 in the mode of their server, without gradients."""
        if start == stop:
            return value
        return in_batches(LegRunner(list(self.services[service].blocks[start:stop]), self.mode(service), self.device), value)


def in_batches(run: Callable[[Tensor], Tensor], value: Tensor, batch_size: int = 64) -> Tensor:
    """``run`` over ``value`` in batches, joined again."""
    return torch.cat([run(part) for part in value.split(batch_size)])
