"""A service: a trained network cut into frozen blocks, with its preprocessing, labels and content hash.

On disk a service is a folder of two files, ``service.json`` and ``weights.safetensors`` (DESIGN 3.3). The JSON
names a builder out of a fixed list; no code is ever loaded from a folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from code_ray.blocks import Boundary, content_hash, freeze, measure_boundaries
from code_ray.data import SampleArray
from code_ray.errors import IntegrityError, ServiceError
from code_ray.preprocessing import Preprocessing, TextPreprocessing

SCHEMA_VERSION = 1

Builder = Callable[..., nn.ModuleList]


class ServiceSpec(BaseModel):
    """The content of ``service.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1]
    name: str
    builder: str
    builder_args: dict[str, Any]
    preprocessing: Preprocessing | TextPreprocessing
    labels: tuple[str, ...]
    boundaries: tuple[Boundary, ...]
    block_hashes: tuple[str, ...]

    @property
    def vocabulary(self) -> str | None:
        """That of its tokens, where it takes texts."""
        return self.preprocessing.vocabulary if isinstance(self.preprocessing, TextPreprocessing) else None


class Service:
    """A trained network as frozen blocks 1..N; the last block is the task head.

    ``blocks`` are the float32 originals. Whoever wants them fast takes copies (``blocks.optimise``); these stay
    as they were hashed.
    """

    def __init__(self, spec: ServiceSpec, blocks: nn.ModuleList) -> None:
        freeze(blocks)
        self.spec = spec
        self.blocks = blocks

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def boundaries(self) -> tuple[Boundary, ...]:
        return self.spec.boundaries

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of the map at each boundary, 1 for what is no map."""
        return tuple(max(boundary.shape[1:]) if len(boundary.shape) == 3 else 1 for boundary in self.boundaries)

    @property
    def forms(self) -> tuple[str, ...]:
        """Which kind of thing crosses at each boundary: what decides where links lead (``links.joins``)."""
        return tuple(boundary.form for boundary in self.boundaries)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.spec.labels

    @property
    def content_hash(self) -> str:
        """One hash for all that decides its answers: block hashes in order, preprocessing, labels."""
        told = [*self.spec.block_hashes, self.spec.preprocessing.model_dump_json(), *self.spec.labels]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()

    def preprocess(self, images: SampleArray | Tensor) -> Tensor:
        """The network's input for images, or token ids, as requests carry them (see ``Preprocessing``, ``TextPreprocessing``)."""
        return self.spec.preprocessing.apply(images)

    def verify(self) -> None:
        """Check that every block still is what its recorded hash says.

        Raises:
            IntegrityError: naming the block that changed.
        """
        for number, (block, recorded) in enumerate(zip(self.blocks, self.spec.block_hashes, strict=True), start=1):
            if content_hash(block) != recorded:
                raise IntegrityError(
                    f"block {number} of {self.name!r} is not what its hash {recorded[:12]} says: its weights changed; "
                    "restore the weights file, or build the service again to give it a new hash"
                )

    def save(self, folder: Path) -> None:
        """Write ``service.json`` and fp16 ``weights.safetensors``.

        Hashes are those of the weights as they come back from fp16; the service in memory must already hold
        such weights (``build_service`` rounds them).
        """
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: _to_fp16(tensor) for name, tensor in self.blocks.state_dict().items()}
        save_file(state, folder / "weights.safetensors")
        (folder / "weights.safetensors").chmod(0o644)  # safetensors writes for the owner alone, and wheels keep that
        (folder / "service.json").write_text(self.spec.model_dump_json(indent=1) + "\n")


def build_service(
    name: str,
    builder: str,
    builder_args: dict[str, Any],
    blocks: nn.ModuleList,
    preprocessing: Preprocessing | TextPreprocessing,
    labels: tuple[str, ...],
    example_images: SampleArray,
) -> Service:
    """A service from trained blocks: weights rounded to fp16, boundaries measured on ``example_images``, hashed.

    Raises:
        ServiceError: where the last block does not give one logit per label (a service without its head).
    """
    freeze(blocks)
    blocks.load_state_dict({key: _to_fp16(tensor).to(tensor.dtype) for key, tensor in blocks.state_dict().items()})
    vocabulary = preprocessing.vocabulary if isinstance(preprocessing, TextPreprocessing) else None
    boundaries = measure_boundaries(blocks, preprocessing.apply(example_images), vocabulary)
    _require_head(name, boundaries, labels)
    spec = ServiceSpec(
        schema_version=SCHEMA_VERSION,
        name=name,
        builder=builder,
        builder_args=builder_args,
        preprocessing=preprocessing,
        labels=labels,
        boundaries=boundaries,
        block_hashes=tuple(content_hash(block) for block in blocks),
    )
    return Service(spec, blocks)


def save_once(service: Service, folder: Path) -> None:
    """Make ``folder`` that of ``service``, whole or not at all, where several processes may be at it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent))
    service.save(staging)
    try:
        os.replace(staging, folder)
    except OSError:
        # Another process made the same first; theirs is as good.
        shutil.rmtree(staging)
        if not (folder / "service.json").exists():
            raise


def load_service(folder: Path, builders: Mapping[str, Builder]) -> Service:
    """Read a service folder and check it against its hashes.

    Raises:
        ServiceError: for a missing or malformed file, an unknown builder, weights that do not fit, or no head.
        IntegrityError: for weights that fit but are not the recorded ones.
    """
    spec = read_spec(folder / "service.json")
    if spec.builder not in builders:
        raise ServiceError(f"{folder / 'service.json'}: builder {spec.builder!r} is unknown; there are: {', '.join(sorted(builders))}")
    try:
        blocks = builders[spec.builder](**spec.builder_args)
    except ServiceError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise ServiceError(f"{folder / 'service.json'}: builder_args do not fit {spec.builder!r}: {error}") from error
    if len(blocks) != len(spec.block_hashes) or len(blocks) + 1 != len(spec.boundaries):
        raise ServiceError(
            f"{folder / 'service.json'} describes {len(spec.block_hashes)} blocks and {len(spec.boundaries)} boundaries but "
            f"{spec.builder!r} builds {len(blocks)} blocks, head included; save the service again"
        )
    _require_head(spec.name, spec.boundaries, spec.labels)
    _load_weights(blocks, folder / "weights.safetensors")
    service = Service(spec, blocks)
    service.verify()
    return service


def services_dir() -> Path:
    """Where services of one's own lie, a folder each, called as the service: ``$CODE_RAY_SERVICES`` or ``~/.local/share/code_ray/services``."""
    return Path(os.environ.get("CODE_RAY_SERVICES", Path.home() / ".local/share/code_ray/services"))


def read_spec(file: Path) -> ServiceSpec:
    """The description in a ``service.json``, without weights: what others may be told of a service is taken from it.

    Raises:
        ServiceError: for a file that is missing or malformed.
    """
    try:
        return ServiceSpec.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ServiceError(f"{file.parent} is not a service folder: {file.name} cannot be read ({error})") from error
    except ValidationError as error:
        raise ServiceError(
            f"{file} is malformed: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}; save the service again"
        ) from error


def _load_weights(blocks: nn.ModuleList, file: Path) -> None:
    try:
        stored = load_file(file)
        expected = blocks.state_dict()
        blocks.load_state_dict({key: value.to(expected[key].dtype) if key in expected else value for key, value in stored.items()})
    except (SafetensorError, OSError) as error:
        raise ServiceError(f"{file} cannot be read ({error}); it is missing or truncated: restore it or run 'make zoo'") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ServiceError(f"{file} does not hold this service's weights ({reason} ...); a block, or the head, is missing") from error


def _require_head(name: str, boundaries: tuple[Boundary, ...], labels: tuple[str, ...]) -> None:
    if not labels or boundaries[-1].shape != (len(labels),):
        raise ServiceError(
            f"service {name!r} ends in shape {boundaries[-1].shape}, not in one logit for each of its {len(labels)} labels: "
            "its head is missing; the last block must be the task head"
        )


def _to_fp16(tensor: Tensor) -> Tensor:
    return tensor.detach().half().contiguous() if tensor.is_floating_point() else tensor.detach().contiguous()
