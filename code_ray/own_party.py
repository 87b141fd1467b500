"""A party in this process: the services of one provider, or of all of them, and what a training asks of them (see ``party.py``)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from code_ray.activations import in_batches, run_blocks
from code_ray.blocks import Boundary, ExecutionMode, Shape, content_hash
from code_ray.controls import RANDOM_SUFFIX, random_host
from code_ray.data import SampleArray
from code_ray.descent import Descent
from code_ray.errors import LinkError
from code_ray.link_fit import fit_link
from code_ray.link_inputs import LinkInputs, Source
from code_ray.links import Link
from code_ray.party import Array, Invitation, PublicService, Rows, Survey, writeable
from code_ray.path import LinkSlot
from code_ray.plan import load_links, save_links
from code_ray.profiling import Times, measure_times
from code_ray.runner import Bounded, Leg, Outline, PathRunner, Payload, Stretch, cut, link_owner, make_link, stretches, walk
from code_ray.service import Service

MAX_ORIGINS = 2
"""Paths come in any order, but mostly one after another from the same activations: of so many origins what was received is kept."""

MAX_EXPECTED_BYTES = 40_000_000
"""What links are fitted to is kept up to so much a block."""


class Received:
    """What reached a stretch from another party, image by image."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._parts: dict[str, list[Tensor]] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Images of each split whose values are here."""
        return {split: sum(map(len, parts)) for split, parts in self._parts.items()}

    def add(self, split: str, value: Tensor) -> None:
        """Keep what came of the next images."""
        self._parts.setdefault(split, []).append(value)

    def size(self, split: str) -> int:
        return self._sizes[split]

    def take(self, split: str, rows: Tensor | slice) -> Tensor:
        self._parts[split] = [torch.cat(self._parts[split])]
        return self._parts[split][0][rows]


Expected = tuple[str, int, bytes]
"""Service, position, hash of images."""


def _key(service: str, position: int, images: SampleArray) -> Expected:
    return service, position, hashlib.sha256(images.tobytes()).digest()


class OwnParty:
    """``Party`` with its services in this process. A cache but for the random hosts that it has made.

    ``placement`` gives the provider of each of ``services``, ``source`` the images, where this is the local service's party;
    ``device`` is torch's.
    """

    def __init__(
        self,
        services: dict[str, Service],
        placement: Mapping[str, str],
        modes: Callable[[str], ExecutionMode],
        device: str = "cpu",
        source: Source | None = None,
    ) -> None:
        self.services = services
        self.modes = modes
        self.device = device
        self.source = source
        # Of a path's first link, or one between, and of its last.
        self.inputs = LinkInputs(services, modes, device), LinkInputs(services, modes, device)
        self._placement = placement
        self._received: dict[str, Received] = {}
        self._expected: dict[Expected, Tensor] = {}

    def join(self, invitation: Invitation) -> OwnPart:
        return OwnPart(self, invitation)

    def runs(self, provider: str) -> bool:
        """Whether a provider's legs run here."""
        return provider in self._placement.values()

    def boundary(self, service: str, position: int) -> Boundary:
        return self.services[service].boundaries[position]

    def public(self, service: str) -> PublicService:
        return PublicService.of(self.services[service])

    def measure(self, survey: Survey) -> Times:
        told = {name: Outline(boundaries) for name, boundaries in survey.boundaries.items()}
        return measure_times(survey.inference_paths, self.services, survey.placement, told=told)

    def verify(self, services: Sequence[str]) -> None:
        for name in services:
            self.services[name].verify()

    def make_random(self, host: str, seed: int, images: SampleArray | None) -> None:
        name = host + RANDOM_SUFFIX
        if name not in self.services:
            self.services[name] = random_host(self.services[host], images, seed)

    def received(self, origin: str, sizes: Mapping[str, int]) -> Received:
        """What came from ``origin`` so far; of others only the latest is kept."""
        found = self._received.pop(origin, None) or Received(sizes)
        self._received = {**dict(list(self._received.items())[1 - MAX_ORIGINS :]), origin: found}
        return found

    def expected(self, service: str, position: int, images: SampleArray) -> Tensor:
        """What the block behind a position of one of its services is given for ``images``, (n, *shape) float32. Small ones are kept,
        since many paths lead to one block.
        """
        own, key = self.services[service], _key(service, position, images)
        if key in self._expected:
            kept = self._expected[key]
            return kept.float() if kept.is_floating_point() else kept
        found = run_blocks(own, 0, position, own.preprocess(images), self.mode(service), self.device)
        self._keep(key, found)
        return found

    def keep(self, service: str, position: int, images: SampleArray, found: Tensor) -> None:
        """Remember what somebody has computed already: what the block behind a position is given for ``images``."""
        self._keep(_key(service, position, images), found)

    def _keep(self, key: Expected, found: Tensor) -> None:
        service, position, _ = key
        # What a bfloat16 server makes loses nothing in bfloat16, and takes half the room; an image as it comes in is its own.
        kept = found.to(self.mode(service).torch_dtype) if position else found
        if kept.nbytes <= MAX_EXPECTED_BYTES:
            self._expected[key] = kept

    def mode(self, service: str) -> ExecutionMode:
        """The mode in which the server of a service runs."""
        # The control of a host runs on its server.
        return self.modes(self._placement.get(service) or self._placement[service.removesuffix(RANDOM_SUFFIX)])


class OwnPart:
    """``Part`` of an ``OwnParty``."""

    def __init__(self, party: OwnParty, invitation: Invitation) -> None:
        self.path = invitation.inference_path
        self.links: dict[str, Link] = {}
        self._party = party
        self._payload = invitation.payload
        self._placement = invitation.placement
        self._sizes = invitation.sizes
        found = stretches(self.path, self._placement, lambda provider: "" if party.runs(provider) else provider)
        self._stretches = {stretch.first: stretch for stretch in found if not stretch.party}
        told = {name: Outline(boundaries) for name, boundaries in invitation.boundaries.items()}
        self._known: Mapping[str, Bounded] = {**told, **party.services}
        for slot in self.path.link_slots:
            if party.runs(self._placement[link_owner(slot, self.path.local)]):
                # Each from a seed of its own: how it starts does not depend on whose the links before it are.
                torch.manual_seed(invitation.seed + slot.index)
                self.links[slot.key] = make_link(slot, self.path, self._known)
        self._runners: dict[tuple[int, int | None], PathRunner] = {}
        self._descent: Descent | None = None

    def turn_to(self, number: int, origin: str) -> dict[str, int]:
        party, stretch, slot = self._party, self._stretch_of(number), self.path.link_slots[number]
        link = self.links[slot.key]
        source: Source | None = party.source if stretch.first == 0 else None
        if source is None:
            source = self._arriving = party.received(origin, self._sizes)
        before, _ = cut(stretch.legs, slot)
        self._inputs(number).turn_to(before, self.links, source, link.spec.in_shape, origin)
        return source.counts if isinstance(source, Received) else {}

    def receive(self, number: int, split: str, value: Array) -> None:
        self._arriving.add(split, self._taken(self._stretch_of(number), value))

    def fit(self, number: int, rows: Rows, target: Array | None, images: SampleArray | None, value: Array | None) -> None:
        link, (name, position) = self.links[f"link{number}"], self.path.link_slots[number].target
        if target is not None:
            wanted = _tensor(target, link.spec.out_shape)
        elif images is not None:
            wanted = self._party.expected(name, position, images)
        else:
            raise LinkError(f"link {number} of {self.path} cannot be fitted to nothing; give its target, or images for it")
        fit_link(link, self._values(number, "train", rows, value).to(self._party.device), wanted)
        self._runners.clear()

    def answer(self, number: int, split: str, rows: Rows, value: Array | None) -> Array:
        stretch = self._stretch_of(number)
        if (stretch.first, number) not in self._runners:
            _, behind = cut(stretch.legs, self.path.link_slots[number])
            self._runners[stretch.first, number] = self._runner(behind)
        runner = self._runners[stretch.first, number]
        if value is not None:
            return _array(runner(self._values(number, split, rows, value)))
        return _array(in_batches(lambda some: runner(self._inputs(number).rows(split, some)), torch.from_numpy(writeable(rows))))

    def run(self, stretch: int, value: Array) -> Array:
        found = self._stretches[stretch]
        if (stretch, None) not in self._runners:
            ends = stretch + len(found.legs) == len(walk(self.path, self._placement))
            self._runners[stretch, None] = self._runner(found.legs, self._payload, ends)
        return _array(self._runners[stretch, None](self._taken(found, value)))

    def descend(self, first: int, steps: int, learning_rate: float) -> None:
        self._first, slot, party = first, self.path.link_slots[first], self._party
        at = next(number for number, leg in enumerate(walk(self.path, self._placement)) if slot in leg.steps)
        legs = {stretch.first: cut(stretch.legs, slot) for stretch in self._stretches.values() if stretch.first + len(stretch.legs) > at}
        training = {number: behind or before for number, (before, behind) in legs.items()}
        self._descent = Descent(training, party.services, self.links, party.modes, steps, learning_rate, party.device)

    def start(self, rows: Rows, value: Array | None) -> Array:
        stretch = self._stretch_of(self._first)
        return _array(self._descending.forward(stretch.first, self._values(self._first, "train", rows, value)))

    def forward(self, stretch: int, value: Array) -> Array:
        reached = self._taken(self._stretches[stretch], value).requires_grad_()
        return _array(self._descending.forward(stretch, reached))

    def backward(self, stretch: int, gradient: Array) -> Array | None:
        self._runners.clear()
        found = self._descending.backward(stretch, torch.from_numpy(writeable(gradient)))
        return None if found is None else _array(found)

    def rest(self) -> None:
        if self._descent is not None:
            self._descent.rest()

    def hashes(self) -> dict[str, str]:
        return {key: content_hash(link) for key, link in self.links.items()}

    def save(self, identifier: str, stores_dir: str) -> dict[str, str]:
        return save_links(self.path, identifier, self.links, self._placement, Path(stores_dir))

    def load(self, identifier: str, hashes: dict[str, str], stores_dir: str) -> None:
        for leg in (leg for stretch in self._stretches.values() for leg in stretch.legs):
            self.links |= load_links(leg, self.path, identifier, hashes, self._known, Path(stores_dir) / leg.provider)
        self._runners.clear()

    @property
    def _descending(self) -> Descent:
        assert self._descent is not None, "descend comes first"
        return self._descent

    def _inputs(self, number: int) -> LinkInputs:
        return self._party.inputs[number == len(self.path.link_slots) - 1]

    def _values(self, number: int, split: str, rows: Rows, value: Array | None) -> Tensor:
        """What reaches a link for images of a split, with the links before it as they are now."""
        inputs = self._inputs(number)
        return (
            inputs.rows(split, torch.from_numpy(writeable(rows)))
            if value is None
            else inputs.of(self._taken(self._stretch_of(number), value))
        )

    def _stretch_of(self, number: int) -> Stretch:
        slot = self.path.link_slots[number]
        return next(stretch for stretch in self._stretches.values() if slot in stretch.slots)

    def _runner(self, legs: Sequence[Leg], payload: Payload | None = None, ends: bool = True) -> PathRunner:
        return PathRunner(legs, self._party.services, self.links, self._party.modes, self._party.device, payload, ends)

    def _taken(self, stretch: Stretch, value: Array) -> Tensor:
        """What came from another party, found to be what may come there."""
        step = stretch.legs[0].steps[0]
        if isinstance(step, LinkSlot):
            spec = self.links[step.key].spec
            return _tensor(value, spec.in_shape, tokens=spec.tokens)
        boundary = self._party.services[step.service].boundaries[step.start]
        return _tensor(value, boundary.shape, tokens=boundary.vocabulary is not None)


def _tensor(value: Array, shape: Shape, tokens: bool = False) -> Tensor:
    dtype = np.int32 if tokens else np.float32
    if value.dtype != dtype or value.shape[1:] != shape:
        declared = f"{np.dtype(dtype)} (n, {', '.join(map(str, shape))})"
        raise LinkError(f"{value.dtype} {value.shape} came where {declared} was declared; the parties' services differ")
    return torch.from_numpy(writeable(value))


def _array(value: Tensor) -> Array:
    value = value.detach().cpu()
    return np.asarray((value.float() if value.is_floating_point() else value).contiguous().numpy())
