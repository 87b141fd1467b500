"""A service out of somebody's own model: ``make_service``, or ``python -m code_ray.own_service FILE.yaml --out DIR``.

Its folder says which function builds the architecture (``libraries``) and where it is cut; weights are safetensors. To load it the
architecture is built and cut again, so nothing in the folder is code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn

from code_ray.data import SampleArray, load_data
from code_ray.errors import CodeRayError, ConfigError, ServiceError, first_problem
from code_ray.libraries import build_model
from code_ray.preprocessing import Preprocessing
from code_ray.service import Service, build_service, services_dir
from code_ray.splitting import cut_at, split

BUILDER = "split_model"
EXAMPLES = 4


def build_split_model(model: str, model_args: Mapping[str, Any], input_shape: Sequence[int], boundaries: Sequence[str]) -> nn.ModuleList:
    """The blocks of the model of that name, cut at ``boundaries``, with random weights. ``input_shape``: of one sample.

    Raises:
        ServiceError: for a model that cannot be built here.
        SplitError: where it has no such boundaries.
    """
    example = torch.rand((2, *input_shape), generator=torch.Generator().manual_seed(0))
    return cut_at(build_model(model, model_args), example, boundaries)


def make_service(
    name: str,
    model: nn.Module,
    built_by: str,
    images: SampleArray,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    model_args: Mapping[str, Any] | None = None,
    num_blocks: int = 6,
    boundaries: Sequence[str] | None = None,
) -> Service:
    """``model``, trained, as a service of ``num_blocks`` blocks, or cut at ``boundaries``; ``save`` it to have it everywhere.

    ``built_by``: what builds the model again without its weights, with ``model_args``: ``torchvision:resnet18``, ``timm:...``,
    ``transformers:...``, or ``python:package.module:function`` (see ``libraries`` for who has to allow that). ``images``: some that
    it was trained on, uint8 (n, *image_shape). Weights are rounded to fp16, as those of every service.

    Raises:
        ServiceError: where ``built_by`` builds another model, or weights do not fit fp16.
        SplitError: for a model that cannot be cut.
    """
    inputs = preprocessing.apply(images[:EXAMPLES])
    found = split(model, inputs, num_blocks, boundaries)
    args: dict[str, Any] = {
        "model": built_by,
        "model_args": dict(model_args or {}),
        "input_shape": list(inputs.shape[1:]),
        "boundaries": list(found.boundaries),
    }
    rebuilt = build_split_model(**args)
    _require_same(built_by, found.blocks, rebuilt, inputs)
    service = build_service(name, BUILDER, args, rebuilt, preprocessing, tuple(labels), images[:EXAMPLES])
    if any(not bool(tensor.isfinite().all()) for tensor in rebuilt.state_dict().values() if tensor.is_floating_point()):
        raise ServiceError(f"weights of {name!r} are larger than fp16 holds (65504), in which services are stored; scale them down")
    return service


@torch.no_grad()
def _require_same(built_by: str, blocks: nn.ModuleList, rebuilt: nn.ModuleList, inputs: Tensor) -> None:
    try:
        rebuilt.load_state_dict(blocks.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ServiceError(f"{built_by!r} builds another model than the one given ({reason}); mend 'built_by' or 'model_args'") from error
    if not torch.equal(nn.Sequential(*rebuilt)(inputs.clone()), nn.Sequential(*blocks)(inputs.clone())):
        raise ServiceError(f"{built_by!r} builds a model that computes something else than the one given; mend 'built_by' or 'model_args'")


class OwnServiceConfig(BaseModel):
    """The YAML of ``python -m code_ray.own_service``. ``weights``: the model's state dict as safetensors. ``data``: what it was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^\w[\w.-]*$")
    model: str
    model_args: dict[str, Any] = {}
    weights: Path
    data: str
    preprocessing: Preprocessing
    num_blocks: int = Field(6, ge=2)
    boundaries: tuple[str, ...] | None = None


def service_from_config(file: Path) -> Service:
    """The service that a YAML file describes; paths in it count from its folder.

    Raises:
        ConfigError: for a file that is not such a YAML.
        ServiceError, SplitError, DataError: as ``make_service`` and ``load_data``, and for weights that cannot be read.
    """
    try:
        config = OwnServiceConfig.model_validate(yaml.safe_load(file.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read ({' '.join(str(error).split())}); give the YAML of a service") from error
    except ValidationError as error:
        raise ConfigError(f"{file}: {first_problem(error)}; see docs/own_service.md") from error
    here = file.parent / config.data
    data = load_data(str(here) if here.is_file() else config.data)
    model, weights = build_model(config.model, config.model_args), file.parent / config.weights
    try:
        load_model(model, weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ServiceError(
            f"{weights} does not hold the weights of {config.model!r} ({' '.join(str(error).split())[:300]}); "
            "write them with safetensors.torch.save_model(model, file)"
        ) from error
    return make_service(
        config.name,
        model,
        config.model,
        data.train.images,
        config.preprocessing,
        data.labels,
        config.model_args,
        config.num_blocks,
        config.boundaries,
    )


def main() -> int:
    """Make a service folder and say what is in it."""
    parser = argparse.ArgumentParser(prog="python -m code_ray.own_service", description="Make a service folder of a model of your own.")
    parser.add_argument("config", type=Path, help="the service as YAML, see docs/own_service.md")
    parser.add_argument("--out", type=Path, help="folder to write (default: where services of your own are found by their names)")
    options = parser.parse_args()
    try:
        service = service_from_config(options.config)
    except CodeRayError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    folder = options.out or services_dir() / service.name
    service.save(folder)
    cuts = ", ".join(service.spec.builder_args["boundaries"])
    print(f"{folder}: {service.name!r}, {service.num_blocks} blocks, cut behind {cuts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
