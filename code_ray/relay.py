"""Carry arrays along a path from party to party, and count them (see ``party.py``).

All of it runs at the local service: other parties are asked and answer, they never speak to each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from code_ray.activations import BATCH, whole_batches
from code_ray.blocks import Boundary, Shape
from code_ray.data import SampleArray
from code_ray.link_inputs import Images, too_many
from code_ray.links import Link
from code_ray.own_party import OwnPart, OwnParty
from code_ray.party import Array, Invitation, Part, Party, Rows, Traffic, writeable
from code_ray.path import InferencePath, LinkSlot
from code_ray.runner import Payload, Placement, Stretch, link_owner, stretches

OWN = ""
"""Name of the local service's party; no provider is called so."""

CHUNK = 8 * BATCH
"""Images whose activations cross between parties in one array."""


class Parties:
    """The local service's party and, by provider, those of hosts that stay elsewhere. ``payload``: how activations cross in serving."""

    def __init__(
        self, own: OwnParty, images: Images, placement: Placement, others: Mapping[str, Party], payload: Payload | None = None
    ) -> None:
        self.own = own
        self.images = images
        self.placement = placement
        self.others = others
        self.payload = payload

    def __getitem__(self, name: str) -> Party:
        return self.own if name == OWN else self.others[name]

    def of(self, service: str) -> str:
        """Name of the party that has a service."""
        return self.of_provider(self.placement[service])

    def of_provider(self, provider: str) -> str:
        """Name of the party at which a provider's legs run."""
        return provider if provider in self.others else OWN

    def with_service(self, service: str) -> Party:
        """The party that has a service."""
        return self[self.of(service)]

    def take_part(self, path: InferencePath) -> tuple[str, ...]:
        """Names of the parties at which ``path`` runs."""
        return tuple(dict.fromkeys(stretch.party for stretch in stretches(path, self.placement, self.of_provider)))

    def boundary(self, service: str, position: int) -> Boundary:
        """A boundary of any service, as its party says."""
        return self.with_service(service).boundary(service, position)

    def invite(self, path: InferencePath, seed: int) -> dict[str, Part]:
        """The parts of all of them in a training of ``path``, by party."""
        placement = {name: self.placement[name] for name in (path.local, *path.hosts)}
        sizes = {name: len(split) for name, split in self.images.splits.items()}
        parts = {}
        for name in self.take_part(path):
            parts[name] = self[name].join(
                Invitation(
                    path=str(path),
                    num_blocks=path.num_blocks,
                    placement=placement,
                    boundaries=met_by(name, [path], self.of, self.boundary),
                    sizes=sizes,
                    seed=seed,
                    payload=self.payload,
                )
            )
        return parts


def met_by(
    party: str, paths: Iterable[InferencePath], party_of: Callable[[str], str], boundary: Callable[[str, int], Boundary]
) -> dict[str, dict[int, Boundary]]:
    """The ends of a party's links on ``paths`` that are boundaries of others' services: all that it is told of them. ``party_of`` gives
    the party that has a service.
    """
    met: dict[str, dict[int, Boundary]] = {}
    for path in paths:
        for slot in path.link_slots:
            if party_of(link_owner(slot, path.local)) == party:
                for service, position in (slot.source, slot.target):
                    if party_of(service) != party:
                        met.setdefault(service, {})[position] = boundary(service, position)
    return met


class Relay:
    """One path's parties at work. ``traffic`` counts what went to parties other than the local service's and came back."""

    def __init__(self, parties: Parties, path: InferencePath, seed: int) -> None:
        self.path = path
        self.traffic = Traffic()
        self._parties = parties
        self._stretches = stretches(path, parties.placement, parties.of_provider)
        self._parts = parties.invite(path, seed)
        self._shapes = {stretch.first: self._shape(stretch) for stretch in self._stretches}  # of what reaches each
        self._counts: dict[str, int] = {}  # of what the party that was turned to has received, by split
        self._first = self._training_from = 0

    @property
    def links(self) -> dict[str, Link]:
        """The links at the local service's party."""
        part = self._parts.get(OWN)
        return part.links if isinstance(part, OwnPart) else {}

    def turn_to(self, number: int) -> None:
        """Have the inputs of link ``number`` got ready; comes before all that needs them, since parties serve one path at a time."""
        at = self._at(number)
        before = self._stretches[:at]
        hashes = [self._parts[stretch.party].hashes()[slot.key] for stretch in before for slot in stretch.slots]
        told = repr((self.path.local, [stretch.legs for stretch in before], hashes))
        self._counts = self._parts[self._stretches[at].party].turn_to(number, hashlib.sha256(told.encode()).hexdigest())

    def fit(self, number: int, images: SampleArray) -> None:
        """Fit link ``number`` by least squares on ``images``, the first of the training images.

        Raises:
            LinkError: where it cannot be fitted.
        """
        self.turn_to(number)
        stretch, slot = self._stretches[self._at(number)], self.path.link_slots[number]
        part = self._parts[stretch.party]
        if isinstance(part, OwnPart):
            images = images[: part.links[slot.key].spec.max_fit_samples]  # it looks at no more; of others nobody knows
        rows = np.arange(len(images))
        service, position = slot.target
        value = self._supply(number, "train", rows)
        # What a host's block expects that host finds out from images, what the local one expects nobody else can.
        shown: SampleArray | None = images
        target: Array | None = None
        if self._parties.of(service) != stretch.party:
            shown, target = None, np.asarray(self._parties.own.expected(service, position, images).numpy())
        self._count(stretch, value)
        self._count(stretch, target if shown is None else shown)
        part.fit(number, rows, target, shown, value)

    def answers(self, split: str, count: int) -> Array:
        """What the whole path answers to the first ``count`` images of a split, (count, classes)."""
        last = len(self.path.link_slots) - 1
        return self._through(self._stretches[self._at(last) + 1 :], self.made(split, count))

    def made(self, split: str, count: int) -> Array:
        """What leaves the stretch with the last link for the first ``count`` images of a split, (count, *shape)."""
        last = len(self.path.link_slots) - 1
        self.turn_to(last)
        rows = np.arange(count)
        return np.concatenate([self._made(last, split, rows[start : start + CHUNK]) for start in range(0, count, CHUNK)])

    def descend(self, first: int, steps: int, learning_rate: float) -> None:
        """Begin to train the links from number ``first`` on."""
        self.turn_to(first)
        self._first, self._training_from = first, self._at(first)
        for party in dict.fromkeys(stretch.party for stretch in self._stretches[self._training_from :]):
            self._parts[party].descend(first, steps, learning_rate)

    def resume(self) -> None:
        """Go on with a training after a pause, in which parties may have turned to other paths."""
        self.turn_to(self._first)

    def forward(self, rows: Rows) -> Tensor:
        """Logits of training images ``rows``, (n, classes)."""
        first, *later = self._stretches[self._training_from :]
        supplied = self._supply(self._first, "train", rows)
        value = self._count(first, supplied, self._parts[first.party].start(rows, supplied))
        for stretch in later:
            value = self._count(stretch, value, self._parts[stretch.party].forward(stretch.first, value))
        return torch.from_numpy(writeable(value))

    def backward(self, gradient: Tensor) -> None:
        """Carry the gradient of ``forward``'s logits back to the first link in training; every party steps its links."""
        value: Array | None = np.asarray(gradient.numpy())
        for stretch in reversed(self._stretches[self._training_from :]):
            assert value is not None
            value = self._count(stretch, value, self._parts[stretch.party].backward(stretch.first, value))

    def rest(self) -> None:
        """Training pauses."""
        for part in self._parts.values():
            part.rest()

    def save(self, identifier: str, stores_dir: str) -> dict[str, str]:
        """Have every party write its links into its store below ``stores_dir``; returns the hash of each by slot key.

        Raises:
            ArtifactError: where a store cannot be written.
        """
        hashes: dict[str, str] = {}
        for part in self._parts.values():
            hashes |= part.save(identifier, stores_dir)
        return {slot.key: hashes[slot.key] for slot in self.path.link_slots}

    def load(self, identifier: str, hashes: Mapping[str, str], stores_dir: str) -> None:
        """Have every party take its links as ``save`` wrote them; ``hashes`` by slot key.

        Raises:
            PlanError, IntegrityError: as ``Part.load``.
        """
        for part in self._parts.values():
            part.load(identifier, dict(hashes), stores_dir)

    def logits(self, images: SampleArray) -> Array:
        """What the whole path answers to ``images``, (n, classes), run as its servers would."""
        return self._reaching(len(self._stretches), images)

    def _at(self, number: int) -> int:
        """On which of the stretches link ``number`` is."""
        slot = self.path.link_slots[number]
        return next(at for at, stretch in enumerate(self._stretches) if slot in stretch.slots)

    def _made(self, number: int, split: str, rows: Rows) -> Array:
        stretch, value = self._stretches[self._at(number)], self._supply(number, split, rows)
        return self._count(stretch, value, self._parts[stretch.party].answer(number, split, rows, value))

    def _supply(self, number: int, split: str, rows: Rows) -> Array | None:
        """See to it that the party with link ``number`` has what reaches its stretch for images ``rows``; where that is too much to
        keep, it is returned, to be sent along.
        """
        at, images = self._at(number), self._parties.images.splits[split].images
        stretch = self._stretches[at]
        if stretch.first == 0 and stretch.party == OWN:
            return None  # it has the images
        if too_many(len(images), self._shapes[stretch.first]):
            return self._reaching(at, images[rows])
        have, wanted = self._counts.get(split, 0), whole_batches(int(rows.max()) + 1, len(images))
        for start in range(have, wanted, CHUNK):
            value = self._reaching(at, images[start : min(start + CHUNK, wanted)])
            self._count(stretch, value)
            self._parts[stretch.party].receive(number, split, value)
            self._counts[split] = start + len(value)
        return None

    def _reaching(self, at: int, images: SampleArray) -> Array:
        """What comes of images up to stretch number ``at``."""
        inputs = self._parties.own.services[self.path.local].preprocess(images)
        return self._through(self._stretches[:at], np.asarray(inputs.contiguous().numpy()))

    def _through(self, some: Sequence[Stretch], value: Array) -> Array:
        """What comes of (n, *shape) behind some stretches, in chunks."""
        if not some:
            return value
        made = []
        for start in range(0, len(value), CHUNK):
            part = value[start : start + CHUNK]
            for stretch in some:
                part = self._count(stretch, part, self._parts[stretch.party].run(stretch.first, part))
            made.append(part)
        return np.concatenate(made)

    def _count(self, stretch: Stretch, sent: Array | SampleArray | None, received: _Received = None) -> _Received:  # type: ignore[assignment]
        """Count what goes to another party and what comes back, which is returned."""
        if stretch.party != OWN:
            self.traffic.sent += 0 if sent is None else sent.nbytes
            self.traffic.received += 0 if received is None else received.nbytes
        return received

    def _shape(self, stretch: Stretch) -> Shape:
        step = stretch.legs[0].steps[0]
        service, position = step.source if isinstance(step, LinkSlot) else (step.service, step.start)
        return self._parties.boundary(service, position).shape


_Received = TypeVar("_Received", Array, "Array | None", None)
