"""Parties: who takes part in the training of a path, and what one is told and asked (DESIGN 3.3, 3.4).

A party holds services and trains the links that live with them. Between parties go ``Invitation``s and float32 arrays: activations
one way, gradients the other. Blocks, links, labels and the loss stay where they are. ``own_party.py`` has the one implementation;
where a party runs is for whoever makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from code_ray.blocks import Boundary
from code_ray.data import SampleArray
from code_ray.path import InferencePath, parse_path
from code_ray.profiling import Times
from code_ray.runner import Payload
from code_ray.service import Service

Array = npt.NDArray[Any]
"""What goes between parties: (n, *shape) float32, or int32 token ids, the shape that of the boundary where it crosses."""

Rows = npt.NDArray[np.int64]
"""Numbers of images in a split."""


def writeable(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """``value``, copied where it is read-only: so are arrays from Ray's store, and torch warns of them."""
    return value if value.flags.writeable else value.copy()


class PublicService(BaseModel):
    """What everybody may know of a service (DESIGN 3.3)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    content_hash: str
    modality: Literal["image", "text"] = "image"
    num_blocks: int

    @classmethod
    def of(cls, service: Service) -> PublicService:
        """The record of a service."""
        modality: Literal["image", "text"] = "image" if service.boundaries[0].vocabulary is None else "text"
        return cls(content_hash=service.content_hash, modality=modality, num_blocks=service.num_blocks)

    def forms_beside(self, local: Service) -> tuple[str, ...]:
        """What may cross at its boundaries (``Boundary.form``): one for text takes the tokens of ``local``, or nothing of it can be used."""
        if self.modality == "image":
            return ("values",) * (self.num_blocks + 1)
        tokens, inside = local.forms[:2] if local.boundaries[0].vocabulary is not None else ("tokens", "masked sequence")
        return (tokens, *(inside,) * (self.num_blocks - 1), "values")


class Survey(BaseModel):
    """What a party is told of paths, that it may time its blocks and the links on them that live with it; as in an ``Invitation``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    paths: tuple[str, ...]
    num_blocks: int
    placement: dict[str, str]
    boundaries: dict[str, dict[int, Boundary]]

    @property
    def inference_paths(self) -> tuple[InferencePath, ...]:
        return tuple(parse_path(path, self.num_blocks) for path in self.paths)


class Invitation(BaseModel):
    """What a party is told of a path that it takes part in.

    ``placement`` gives the providers of the services on it, ``boundaries`` the ends of this party's links that are other parties'.
    ``sizes`` is the number of images by split, ``seed`` that of links which start at random, ``payload`` how activations cross when the
    path is served.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    num_blocks: int
    placement: dict[str, str]
    boundaries: dict[str, dict[int, Boundary]]
    sizes: dict[str, int]
    seed: int
    payload: Payload | None = None

    @property
    def inference_path(self) -> InferencePath:
        return parse_path(self.path, self.num_blocks)


@dataclass
class Traffic:
    """Bytes of arrays that left the local party for others, and that came back from them."""

    sent: int = 0
    received: int = 0


class Part(Protocol):
    """A party's part in the training of one path: its stretches of the path and the links on them.

    A stretch is named by the number of its first leg. Where ``value`` is asked for beside ``rows``, it is what reaches the stretch
    for those images, given only where it was not kept (see ``receive``).
    """

    def turn_to(self, number: int, origin: str) -> dict[str, int]:
        """Get ready to give link ``number`` its inputs; by split, of how many images what reaches its stretch is here already.

        ``origin`` names all that comes before the stretch: what was received from another origin is of no use.
        """

    def receive(self, number: int, split: str, value: Array) -> None:
        """Keep what reaches the stretch of link ``number`` for the next images of a split."""

    def fit(self, number: int, rows: Rows, target: Array | None, images: SampleArray | None, value: Array | None) -> None:
        """Fit link ``number`` by least squares to ``target``, or to what the block behind it expects for calibration ``images``.

        Raises:
            LinkError: where it cannot be fitted.
        """

    def answer(self, number: int, split: str, rows: Rows, value: Array | None) -> Array:
        """What leaves the stretch of link ``number`` for images ``rows``, run as its server would."""

    def run(self, stretch: int, value: Array) -> Array:
        """What leaves a stretch of what reaches it, run as its server would."""

    def descend(self, first: int, steps: int, learning_rate: float) -> None:
        """Begin to train the links from number ``first`` on for ``steps`` batches."""

    def start(self, rows: Rows, value: Array | None) -> Array:
        """What the first link in training and the rest of its stretch make of training images ``rows``."""

    def forward(self, stretch: int, value: Array) -> Array:
        """What a later stretch makes of what reaches it."""

    def backward(self, stretch: int, gradient: Array) -> Array | None:
        """Take the gradient of what left a stretch, give that of what reached it; None where training begins there.

        Behind the earliest of its stretches the party steps its links.
        """

    def rest(self) -> None:
        """Training pauses: devices may be used by others."""

    def hashes(self) -> dict[str, str]:
        """Content hash of each of this party's links by key."""

    def save(self, identifier: str, stores_dir: str) -> dict[str, str]:
        """Write this party's links below ``stores_dir``; returns ``hashes``.

        Raises:
            ArtifactError: where that cannot be written.
        """

    def load(self, identifier: str, hashes: dict[str, str], stores_dir: str) -> None:
        """Take this party's links as ``save`` wrote them; ``hashes`` by key.

        Raises:
            PlanError: for a file that is missing, unreadable or of other shapes.
            IntegrityError: for links that are not the recorded ones.
        """


class Party(Protocol):
    """Someone who takes part in trainings."""

    def join(self, invitation: Invitation) -> Part:
        """Take part in the training of a path; the part ends with the last reference to it."""

    def boundary(self, service: str, position: int) -> Boundary:
        """A boundary of one of its services, for another party whose link meets it."""

    def public(self, service: str) -> PublicService:
        """What everybody may know of one of its services."""

    def measure(self, survey: Survey) -> Times:
        """Time its services, and the links of the surveyed paths that live with them, where they run."""

    def verify(self, services: Sequence[str]) -> None:
        """Check frozen blocks against their hashes.

        Raises:
            IntegrityError: naming the block that changed.
        """

    def make_random(self, host: str, seed: int, images: SampleArray | None) -> None:
        """Make the random-weight control of a host, where it is not there yet; calibrated on ``images``, else on noise."""
