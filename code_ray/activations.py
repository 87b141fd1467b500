"""What a service's own frozen blocks make of images: the original's logits on those that are trained on, computed once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from code_ray.blocks import ExecutionMode
from code_ray.data import SampleArray
from code_ray.runner import LegRunner
from code_ray.service import Service

BATCH = 64
"""Images that run together."""


class Activations:
    """Logits of one service for ``images``, in the mode of its server; a cache and nothing more."""

    def __init__(self, service: Service, images: SampleArray, mode: ExecutionMode, device: str = "cpu") -> None:
        self.images = images
        self._service = service
        self._mode = mode
        self._device = device
        self._kept: Tensor | None = None

    def logits(self, indices: Tensor) -> Tensor:
        """Logits of images ``indices``, (n, classes) float32."""
        kept, wanted = self._kept, whole_batches(int(indices.max()) + 1, len(self.images))
        if kept is None or len(kept) < wanted:
            missing = self._service.preprocess(self.images[0 if kept is None else len(kept) : wanted])
            new = run_blocks(self._service, 0, self._service.num_blocks, missing, self._mode, self._device)
            kept = self._kept = new if kept is None else torch.cat([kept, new])
        return kept[indices]


def run_blocks(service: Service, start: int, stop: int, value: Tensor, mode: ExecutionMode, device: str = "cpu") -> Tensor:
    """What blocks start..stop-1 make of (n, *shape), float32, without gradients."""
    if start == stop:
        return value
    return in_batches(LegRunner(list(service.blocks[start:stop]), mode, device), value)


def in_batches(run: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """``run`` over ``value`` in batches, joined again."""
    return torch.cat([run(part) for part in value.split(BATCH)])


def whole_batches(count: int, total: int) -> int:
    """``count`` of ``total`` rounded up to whole batches: what is computed in parts then has the same bits as all at once."""
    return min(-(-count // BATCH) * BATCH, total)
