"""What arrives at a host's legs for some training images, kept beside its links: with another version of its service the host can fit
them again, without an image and without anybody else (DESIGN 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from code_ray.artifact import write_bytes
from code_ray.blocks import ExecutionMode
from code_ray.data import SampleArray
from code_ray.errors import ArtifactError
from code_ray.links import Link
from code_ray.path import InferencePath, Segment
from code_ray.plan import Plan, PlannedPath, load_leg_links
from code_ray.runner import Leg, PathRunner, walk
from code_ray.service import Service

SAMPLES = 1024
MOST_BYTES = 16 << 20
"""Of one leg's inputs: of large ones there are fewer, whose many positions each say something."""


def calibration_file(store_dir: Path, planned: PlannedPath, index: int) -> Path:
    """Where inputs of leg ``index`` of a path lie in its provider's store."""
    return store_dir / f"calibration-{planned.links_id}-{index}.safetensors"


def calibrated_legs(path: InferencePath, plan: Plan) -> list[tuple[int, Leg]]:
    """The legs of ``path`` that hosts run and that have a link, with their numbers."""
    local = plan.placement[path.local]
    return [(index, leg) for index, leg in enumerate(walk(path, plan.placement)) if leg.provider != local and leg.slots]


def save_calibrations(
    plan: Plan, services: Mapping[str, Service], images: SampleArray, modes: Callable[[str], ExecutionMode], stores_dir: Path
) -> None:
    """Write the inputs of every leg that a host may have to fit again, computed from ``images`` uint8 (n, *image_shape). Behind a service
    that is not among ``services``, because it stays elsewhere, none are known.

    Raises:
        ArtifactError: where a store cannot be written.
        PlanError, IntegrityError: for links that are not the plan's.
    """
    local = services[plan.local]
    inputs = local.preprocess(images[:SAMPLES])
    for planned in {planned.links_id: planned for planned in plan.paths}.values():
        path = plan.inference_path(planned).plain
        legs = walk(path, plan.placement)
        for index, leg in calibrated_legs(path, plan):
            before = legs[:index]
            if not {step.service for other in before for step in other.steps if isinstance(step, Segment)} <= set(services):
                continue
            links: dict[str, Link] = {}
            for other in before:
                links |= load_leg_links(other, path, planned, services, stores_dir / other.provider)
            runner = PathRunner(before, services, links, modes)
            samples = max(1, MOST_BYTES // runner(inputs[:1]).numpy().nbytes)
            _write(runner(inputs[:samples]), calibration_file(stores_dir / leg.provider, planned, index))


def load_calibration(file: Path) -> torch.Tensor:
    """Inputs of a leg, (n, *shape) float32.

    Raises:
        ArtifactError: where there are none, or the file is damaged.
    """
    try:
        return load(file.read_bytes())["inputs"]
    except FileNotFoundError as error:
        raise ArtifactError(f"{file} is not there, so nothing can be fitted again; a new search writes it") from error
    except (OSError, SafetensorError, KeyError) as error:
        raise ArtifactError(f"{file} cannot be read ({error}); copy the provider's store again") from error


def _write(inputs: torch.Tensor, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, save({"inputs": inputs.float().contiguous()}))
    except OSError as error:
        raise ArtifactError(f"{file} could not be written ({error}); free space and run the same command again") from error
