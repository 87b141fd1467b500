"""The only place that walks a path.

``walk`` cuts a path into *legs*: what runs at one provider in one go, links included. Evaluation, training and the
servers all execute legs; none of them looks at segments. A link lives with the host it enters, else with the host it
leaves, else with the local provider (DESIGN 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from code_ray.blocks import Boundary, ExecutionMode, optimise
from code_ray.links import Link, LinkSpec, link_spec
from code_ray.path import InferencePath, LinkSlot, Segment
from code_ray.service import Service
from code_ray.trunk import shared_trunk

Step = Segment | LinkSlot
Placement = Mapping[str, str]
"""Service name -> provider name."""

Payload = Literal["float16"]
"""How the activations of float32 servers cross to other providers, where it is not as they are."""


class Boundaries(Protocol):
    """Boundaries by position: all of a service's, or those that somebody was told of."""

    def __getitem__(self, position: int, /) -> Boundary: ...


class Bounded(Protocol):
    """What a link's shape is taken from: a service, or what is known of one."""

    @property
    def boundaries(self) -> Boundaries: ...


@dataclass(frozen=True)
class Outline:
    """What is known of another provider's service: boundaries that a link meets."""

    boundaries: Mapping[int, Boundary]


@dataclass(frozen=True)
class Leg:
    """Steps of a path that one provider runs in one call."""

    provider: str
    steps: tuple[Step, ...]

    @property
    def slots(self) -> tuple[LinkSlot, ...]:
        """Places of the links on it."""
        return tuple(step for step in self.steps if isinstance(step, LinkSlot))


@dataclass(frozen=True)
class Stretch:
    """Consecutive legs of a path that run at one party; ``first`` is the number of the first of them on the path."""

    first: int
    party: str
    legs: tuple[Leg, ...]

    @property
    def slots(self) -> tuple[LinkSlot, ...]:
        """Places of the links on it."""
        return tuple(slot for leg in self.legs for slot in leg.slots)


def walk(path: InferencePath, placement: Placement) -> tuple[Leg, ...]:
    """The legs of ``path`` in order; consecutive steps at the same provider are one leg."""
    slots = path.link_slots
    placed: list[tuple[str, Step]] = []
    for index, segment in enumerate(path.segments):
        if segment.start < segment.stop:
            placed.append((placement[segment.service], segment))
        if index < len(slots):
            slot = slots[index]
            placed.append((placement[link_owner(slot, path.local)], slot))
    legs: list[Leg] = []
    for provider, step in placed:
        if legs and legs[-1].provider == provider:
            legs[-1] = Leg(provider, (*legs[-1].steps, step))
        else:
            legs.append(Leg(provider, (step,)))
    return tuple(legs)


def stretches(path: InferencePath, placement: Placement, party_of: Callable[[str], str]) -> tuple[Stretch, ...]:
    """The legs of ``path``, those together that follow each other at one party; ``party_of`` gives that of a provider."""
    grouped = groupby(enumerate(walk(path, placement)), lambda numbered: party_of(numbered[1].provider))
    found = [(party, list(legs)) for party, legs in grouped]
    return tuple(Stretch(legs[0][0], party, tuple(leg for _, leg in legs)) for party, legs in found)


def cut(legs: Sequence[Leg], slot: LinkSlot) -> tuple[tuple[Leg, ...], tuple[Leg, ...]]:
    """``legs`` in two parts: what comes before a link on them, and that link with what follows."""
    parts: tuple[list[Leg], list[Leg]] = ([], [])
    for leg in legs:
        at = next((i for i, step in enumerate(leg.steps) if step == slot), len(leg.steps))
        # Once the link was met everything lies behind it.
        pieces = ((), leg.steps) if parts[1] else (leg.steps[:at], leg.steps[at:])
        for part, steps in zip(parts, pieces, strict=True):
            if steps:
                part.append(Leg(leg.provider, steps))
    return tuple(parts[0]), tuple(parts[1])


@dataclass(frozen=True)
class Fan:
    """Legs of paths that share a trunk: those of the ``stem`` run once, each branch goes on from what they made.

    The first leg of a branch begins with its exit link, which lives where the stem ends: all of them run in the call of its last leg.
    """

    stem: tuple[Leg, ...]
    branches: tuple[tuple[Leg, ...], ...]


def fan_out(paths: Sequence[InferencePath], placement: Placement) -> Fan:
    """The legs of ``paths`` with those of their trunk once; branches in the order of the paths.

    Raises:
        PathError: where they share no trunk.
    """
    trunk = shared_trunk(paths)
    parts = [cut(walk(path, placement), trunk.exit_of(path)) for path in paths]
    return Fan(parts[0][0], tuple(branch for _, branch in parts))


def link_owner(slot: LinkSlot, local: str) -> str:
    """The service with which a link lives: the host it enters, else the one it leaves, else the local one."""
    return slot.target[0] if slot.target[0] != local else slot.source[0]


def slot_spec(slot: LinkSlot, path: InferencePath, services: Mapping[str, Bounded]) -> LinkSpec:
    """Shapes and activation of the link at ``slot``; behind an empty segment the source is what the link before makes."""
    source, target = (services[name].boundaries[position] for name, position in (slot.source, slot.target))
    return link_spec(
        source,
        target,
        rank=slot.rank,
        to_input=slot.target[1] == 0,
        to_logits=slot.target == (path.local, path.num_blocks),
        skip=path.kind == "skip",
    )


def make_links(path: InferencePath, services: Mapping[str, Bounded], slots: Sequence[LinkSlot] | None = None) -> dict[str, Link]:
    """Fresh, randomly initialised links for ``slots`` of ``path``, by default all of them, by slot key."""
    return {slot.key: make_link(slot, path, services) for slot in (path.link_slots if slots is None else slots)}


def make_link(slot: LinkSlot, path: InferencePath, services: Mapping[str, Bounded]) -> Link:
    """A fresh, randomly initialised link for one slot of ``path``."""
    return Link(slot_spec(slot, path, services))


def leg_modules(leg: Leg, services: Mapping[str, Service], links: Mapping[str, Link]) -> list[nn.Module]:
    """The modules of a leg in order: original blocks (not copies) and links."""
    modules: list[nn.Module] = []
    for step in leg.steps:
        if isinstance(step, Segment):
            modules.extend(services[step.service].blocks[step.start : step.stop])
        else:
            modules.append(links[step.key])
    return modules


def handed_on(value: Tensor, payload: Payload | None) -> Tensor:
    """An activation as it crosses to another provider: float32 in the format of ``payload``, what lies beyond its range at its ends."""
    if payload is None or value.dtype != torch.float32:
        return value
    most = torch.finfo(torch.float16).max
    return value.clamp(-most, most).half()


class LegRunner:
    """A leg made ready for inference in one execution mode.

    Called, it gives float32 in standard layout on the CPU whatever the mode; ``run`` leaves its output as the mode made it, or as
    ``payload`` says.
    """

    def __init__(self, modules: Sequence[nn.Module], mode: ExecutionMode, device: str = "cpu", payload: Payload | None = None) -> None:
        self.mode = mode
        self.device = device
        self.payload = payload
        self.module = optimise(nn.Sequential(*modules), mode).to(device)

    def __call__(self, value: Tensor) -> Tensor:
        output = self.run(value)
        return output.to("cpu", torch.float32 if output.is_floating_point() else output.dtype).contiguous()

    @torch.inference_mode()
    def run(self, value: Tensor) -> Tensor:
        """Output in the mode's number format, or that of ``payload``, in the mode's layout, on the runner's device."""
        output: Tensor = self.module(self.mode.cast(value.to(self.device)))
        return handed_on(output, self.payload)


class PathRunner:
    """Runs legs in one process, one after another, as the servers do: those of a whole path, or a part of them.

    ``modes`` gives the execution mode by provider; what goes on to another provider crosses as ``payload`` says, what the last leg
    makes too unless the path ``ends`` with it.
    """

    def __init__(
        self,
        legs: Sequence[Leg],
        services: Mapping[str, Service],
        links: Mapping[str, Link],
        modes: Callable[[str], ExecutionMode],
        device: str = "cpu",
        payload: Payload | None = None,
        ends: bool = True,
    ) -> None:
        payloads = [payload] * (len(legs) - 1) + [None if ends else payload]
        self.legs = [
            LegRunner(leg_modules(leg, services, links), modes(leg.provider), device, carried)
            for leg, carried in zip(legs, payloads, strict=False)
        ]

    def __call__(self, inputs: Tensor, batch_size: int = 64) -> Tensor:
        """What the last leg makes (n, *shape), float32 (a path's logits), of what the first expects, computed in batches."""
        outputs = []
        for value in inputs.split(batch_size):
            for leg in self.legs:
                value = leg(value)
            outputs.append(value)
        return torch.cat(outputs)
