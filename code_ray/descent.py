"""Gradient descent at one party: its links and frozen blocks on a path, the optimiser of its links (DESIGN 3.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from code_ray.blocks import ExecutionMode, optimise
from code_ray.links import Link
from code_ray.path import Segment
from code_ray.runner import Leg
from code_ray.service import Service

WARM_UP_STEPS = 50
"""AdamW's first steps are as long as the learning rate whatever the gradient: without a warm-up they undo the least-squares
start, which cost 0.3 to 2.9 points at the end."""


class Descent:
    """Training of one party's links for ``steps`` batches.

    ``legs`` are what it runs of each stretch, by the number that names the stretch: all of it, or what follows from the first link
    in training. Links are float32; frozen blocks run as fast copies in the mode their server uses, and gradients pass through them.
    """

    def __init__(
        self,
        legs: Mapping[int, tuple[Leg, ...]],
        services: Mapping[str, Service],
        links: Mapping[str, Link],
        modes: Callable[[str], ExecutionMode],
        steps: int,
        learning_rate: float,
        device: str,
    ) -> None:
        self._device = device
        self._modules = {stretch: _modules(found, services, links, modes) for stretch, found in legs.items()}
        self._earliest = min(legs)
        self._open: dict[int, tuple[Tensor, Tensor]] = {}
        slots = [slot for found in legs.values() for leg in found for slot in leg.slots]
        parameters = [parameter for slot in slots for parameter in links[slot.key].parameters()]
        self._optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-4) if parameters else None
        if self._optimiser is not None:
            self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, lambda step: rate(step, steps))
        self._is_resting = True

    def forward(self, stretch: int, value: Tensor) -> Tensor:
        """What a stretch makes of (n, *shape), float32; gradients may follow, to ``value`` too where it asks for them."""
        if self._is_resting:
            self._move(self._device)
        output = value.to(self._device)
        for module in self._modules[stretch]:
            output = module(output)
        self._open[stretch] = value, output
        return output

    def backward(self, stretch: int, gradient: Tensor) -> Tensor | None:
        """Take the gradient of what ``forward`` gave; that of its input where it asked for it. Links are stepped with the last of them."""
        value, output = self._open.pop(stretch)
        output.backward(gradient.to(output.device))
        if stretch == self._earliest and self._optimiser is not None:
            self._optimiser.step()
            self._schedule.step()
            self._optimiser.zero_grad(set_to_none=True)
        return value.grad

    def rest(self) -> None:
        """Links and blocks go back to the CPU until the next batch."""
        self._move("cpu")

    def _move(self, device: str) -> None:
        self._is_resting = device != self._device
        for modules in self._modules.values():
            for module in modules:
                module.to(device)


class _Frozen(nn.Module):
    """A segment's blocks; takes and gives float32."""

    def __init__(self, blocks: list[nn.Module], served: ExecutionMode) -> None:
        super().__init__()
        self._mode = _training_mode(blocks, served)
        self._blocks = optimise(nn.Sequential(*blocks), self._mode)

    def forward(self, value: Tensor) -> Tensor:
        output: Tensor = self._blocks(self._mode.cast(value))
        return output.float()


def _modules(
    legs: tuple[Leg, ...], services: Mapping[str, Service], links: Mapping[str, Link], modes: Callable[[str], ExecutionMode]
) -> list[nn.Module]:
    return [
        _Frozen(list(services[step.service].blocks[step.start : step.stop]), modes(leg.provider))
        if isinstance(step, Segment)
        else links[step.key]
        for leg in legs
        for step in leg.steps
    ]


def rate(step: int, steps: int) -> float:
    """Share of the learning rate at a step: up in a line over ``WARM_UP_STEPS`` (a quarter of short trainings), to 0 by a cosine."""
    warm_up = max(1, min(WARM_UP_STEPS, steps // 4))
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def _training_mode(blocks: list[nn.Module], served: ExecutionMode) -> ExecutionMode:
    """The served mode, but float32 through depthwise convolutions: on CPUs their bf16 backward pass is the slower one."""
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for block in blocks for m in block.modules())
    return ExecutionMode("float32", served.channels_last) if depthwise else served
