"""A few inputs of a plan with what each of its paths answers to them: who serves the plan can check that it answers the same.

They lie in ``canaries.safetensors`` beside ``plan.json``, which names their hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from code_ray.artifact import write_bytes
from code_ray.data import SampleArray
from code_ray.errors import ArtifactError, IntegrityError, PlanError

COUNT = 8
"""Images: one is enough to tell another model, a few to say it of one that answers in bfloat16."""

TOLERANCE = 0.15
"""Largest relative difference of an answer. bfloat16 makes up to 0.05 of it on paths through two services, other weights about 1."""

_IMAGES, _LOGITS = "images", "logits."


@dataclass(frozen=True, eq=False)
class Canaries:
    """``images`` as requests carry them, uint8 (n, *image_shape) or int32 (n, tokens), ``logits`` float32 (n, classes) by the id of a path's links: what it answers before any gate."""

    images: SampleArray
    logits: Mapping[str, npt.NDArray[np.float32]]

    def difference(self, links_id: str, answer: npt.NDArray[Any]) -> float:
        """How far ``answer`` is from what the path with these links should answer, relative (Frobenius norm); infinite where it is no such answer.

        Raises:
            KeyError: for a path without an expected answer.
        """
        expected = self.logits[links_id]
        if answer.shape != expected.shape or not np.isfinite(answer).all():
            return float("inf")
        return float(np.linalg.norm(answer - expected) / max(float(np.linalg.norm(expected)), 1e-9))


def save_canaries(canaries: Canaries, file: Path) -> str:
    """Write ``file`` whole or not at all; returns its hash, for the plan.

    Raises:
        ArtifactError: where it cannot be written.
    """
    content = save({_IMAGES: canaries.images, **{_LOGITS + links: logits for links, logits in canaries.logits.items()}})
    try:
        write_bytes(file, content)
    except OSError as error:
        raise ArtifactError(f"{file} could not be written ({error}); free space and run the same command again") from error
    return hashlib.sha256(content).hexdigest()


def load_canaries(file: Path, digest: str) -> Canaries:
    """Read what ``save_canaries`` wrote.

    Raises:
        PlanError: where it is missing or malformed.
        IntegrityError: where it is not the file that the plan names.
    """
    try:
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise IntegrityError(f"{file} holds other canaries than the plan names; copy the run directory again")
        tensors = load(content)
        return Canaries(tensors.pop(_IMAGES), {name.removeprefix(_LOGITS): logits for name, logits in tensors.items()})
    except (OSError, SafetensorError, KeyError) as error:
        raise PlanError(f"{file} cannot be read ({error}); copy the run directory again") from error
