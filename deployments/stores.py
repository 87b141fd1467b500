"""What a provider, or a router, reads from a run directory and its stores.

A provider's store ``stores/<provider>/`` holds the links that live with it and, under ``services/<name>/``, services that
are not in the zoo. Nobody reads another provider's weights: of a foreign service there is an outline only.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from code_ray.artifact import RunDirectory
from code_ray.blocks import Boundary
from code_ray.path import InferencePath
from code_ray.plan import Plan, read_plan
from code_ray.service import Service, ServiceSpec, read_spec
from code_ray.zoo import ZOO, get_service

_UNTOLD = Boundary((), nonnegative=False)


def open_plan(run_dir: Path) -> tuple[RunDirectory, Plan]:
    """The run directory and its plan.

    Raises:
        ArtifactError: where ``run_dir`` is not one.
        PlanError: for a malformed plan.
    """
    run = RunDirectory.open(run_dir)
    return run, read_plan(run.plan_file)


def load_stored_service(name: str, store_dir: Path) -> Service:
    """A provider's own service: from its store where it is there, else the zoo's.

    Raises:
        ServiceError: for a service that is neither, or not whole.
    """
    folder = _folder_in_store(name, store_dir)
    return get_service(str(folder) if folder.exists() else name)


def stored_spec(name: str, store_dir: Path) -> ServiceSpec:
    """The description of a service without its weights.

    Raises:
        ServiceError: as ``load_stored_service``.
    """
    folder = _folder_in_store(name, store_dir)
    if not folder.exists():
        folder = ZOO[name]() if name in ZOO else folder
    return read_spec(folder / "service.json")


def outline(spec: ServiceSpec, paths: list[InferencePath]) -> Service:
    """What a host is told of a service whose paths it takes part in: preprocessing and the shapes its links meet.

    It has no blocks, and no boundary but those where ``paths`` leave the service and come back (DESIGN 3.3).
    """
    met = {end for path in paths for slot in path.link_slots for end in (slot.source, slot.target)}
    boundaries = tuple(b if (spec.name, i) in met else _UNTOLD for i, b in enumerate(spec.boundaries))
    told = {"builder": "", "builder_args": {}, "block_hashes": (), "boundaries": boundaries}
    return Service(spec.model_copy(update=told), nn.ModuleList())


def _folder_in_store(name: str, store_dir: Path) -> Path:
    return store_dir / "services" / name
