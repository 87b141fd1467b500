"""What a provider, or a router, reads from a run directory and its stores.

A provider's store ``stores/<provider>/`` holds the links that live with it and, under ``services/<name>/``, services that
are not in the zoo. Nobody reads another provider's weights: of a foreign service there is an outline only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from code_ray.artifact import RunDirectory
from code_ray.blocks import Boundary
from code_ray.errors import PathError, PlanError
from code_ray.joining import check_trunk
from code_ray.path import original_path
from code_ray.plan import Plan, read_plan
from code_ray.runner import Leg, walk
from code_ray.service import Service, ServiceSpec
from code_ray.zoo import load_stored_service, stored_spec

_UNTOLD = Boundary((), nonnegative=False)


def open_plan(run_dir: Path) -> tuple[RunDirectory, Plan]:
    """The run directory and its plan.

    Raises:
        ArtifactError: where ``run_dir`` is not one.
        PlanError: for a malformed plan, or one whose parts do not fit each other.
    """
    run = RunDirectory.open(run_dir)
    plan = read_plan(run.plan_file)
    try:
        _check_names(plan)
    except PathError as error:
        raise PlanError(f"{run.plan_file}: {error}; run the search again") from error
    return run, plan


def _check_names(plan: Plan) -> None:
    paths = [plan.inference_path(planned) for planned in plan.all_paths]
    for name in (*plan.tasked, *plan.services, *plan.kappa, *(segment.service for path in paths for segment in path.segments)):
        if name not in plan.placement or name not in plan.services:
            raise PlanError(f"the plan names service {name!r}, which has no provider or no hash in it; run the search again")
    for name, task in plan.tasked.items():
        if not task.paths or plan.inference_path(task.paths[0]) != original_path(name, task.num_blocks):
            raise PlanError(f"the plan's paths[0] is not the original path of {name!r}; run the search again")
        if any(plan.inference_path(planned).local != name for planned in task.paths):
            raise PlanError(f"the plan has a path of {name!r} that begins at another service; run the search again")
    for trunk in plan.trunks:
        check_trunk(plan, trunk)
    for host in {host for path in paths for host in path.hosts}:
        if not 0 < plan.budgets.get(plan.placement[host], 0.0) <= 1:
            raise PlanError(f"the plan borrows from {host!r}, whose kappa is not a share above 0 and up to 1; run the search again")


def check_blocks(plan: Plan, specs: Mapping[str, ServiceSpec]) -> None:
    """Check that the services have the blocks that the plan's paths run.

    Raises:
        PlanError: naming the service that is too short, or the local one where its number of blocks is another.
    """
    counts = {name: len(spec.boundaries) - 1 for name, spec in specs.items()}
    for name, task in plan.tasked.items():
        if counts[name] != task.num_blocks:
            raise PlanError(f"the plan is for {task.num_blocks} blocks of {name!r}, which has {counts[name]}; run the search again")
    for planned in plan.all_paths:
        for segment in plan.inference_path(planned).segments:
            if segment.stop > counts[segment.service]:
                raise PlanError(f"path {planned.path} runs {segment}, which has {counts[segment.service]} blocks; run the search again")


def load_own_services(provider: str, plan: Plan, store_dir: Path) -> dict[str, Service]:
    """The services of a plan that are a provider's own, in the versions that the plan names.

    Raises:
        ServiceError, IntegrityError: for one that is not there, not whole, or another version.
    """
    own = {name: content for name, content in plan.services.items() if plan.placement[name] == provider}
    services = {name: load_stored_service(name, store_dir) for name in own}
    plan.model_copy(update={"services": own}).check_services(services)
    return services


def services_known_to(provider: str, plan: Plan, stores_dir: Path) -> dict[str, Service]:
    """What a provider has of the services of a plan: its own whole, of others the outline that its legs need.

    Raises:
        ServiceError, IntegrityError: as ``load_own_services``.
    """
    own = load_own_services(provider, plan, stores_dir / provider)
    legs = [leg for planned in plan.all_paths for leg in walk(plan.inference_path(planned), plan.placement) if leg.provider == provider]
    others = [name for name in plan.services if name not in own]
    return own | {name: outline(stored_spec(name, stores_dir / plan.placement[name]), legs) for name in others}


def outline(spec: ServiceSpec, legs: Iterable[Leg]) -> Service:
    """What a provider that runs ``legs`` is told of another one's service: preprocessing and the shapes its links meet.

    It has no blocks, and no boundary but those where paths pass from the service to links on ``legs``, and back (DESIGN 3.3).
    """
    met = {end for leg in legs for slot in leg.slots for end in (slot.source, slot.target)}
    boundaries = tuple(b if (spec.name, i) in met else _UNTOLD for i, b in enumerate(spec.boundaries))
    told = {"builder": "", "builder_args": {}, "block_hashes": (), "boundaries": boundaries}
    return Service(spec.model_copy(update=told), nn.ModuleList())
