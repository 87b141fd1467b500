"""Another version of a host's service, and a plan for it without a search: python -m deployments upgrade.

The host alone fits again the links by which its legs hand on, so that they make of the kept inputs what they made with the version
before (DESIGN 3.3, 3.4). The plan keeps its paths, their ids and its canaries; routers check those before they follow it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from code_ray.artifact import RunDirectory, write_text
from code_ray.calibration import calibrated_legs, calibration_file, load_calibration
from code_ray.canaries import TOLERANCE
from code_ray.errors import ArtifactError, PlanError, ServiceError
from code_ray.link_fit import fit_link
from code_ray.links import Link
from code_ray.path import InferencePath, Segment
from code_ray.plan import Plan, load_leg_links, save_links
from code_ray.runner import Leg, leg_modules, make_link
from code_ray.service import Service
from code_ray.zoo import get_service
from deployments.stores import open_plan, services_known_to

HELD_OUT = 5
"""One in so many of the kept samples is not fitted to, and says how well the links do."""


@dataclass(frozen=True)
class Refit:
    """A path whose link was fitted again, and how far what its leg hands on is from what it was, relative (Frobenius norm), on samples
    that were not fitted to: with the link of ``before`` and with the new one.
    """

    path: str
    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.path}: differs by {100 * self.before:.1f} % with the old links, by {100 * self.after:.1f} % with the new ones"


def upgrade(run_dir: Path, service: str, folder: Path, out: Path) -> list[Refit]:
    """Make ``out`` a run directory like ``run_dir``, for the version of a host's ``service`` that lies in ``folder``.

    Raises:
        PlanError: where the plan has no such host, or a path cannot be kept with the new version.
        ServiceError, IntegrityError: for a version that is no service, the same, or cut in another way.
        ArtifactError: for calibration activations that are missing, and where ``out`` is there or cannot be written.
    """
    run, plan = open_plan(run_dir)
    if plan.tasks:
        raise PlanError(f"{run_dir} serves several services; upgrade the run directories that were joined, and join them again")
    if service not in plan.services or service == plan.local:
        hosts = ", ".join(name for name in plan.services if name != plan.local)
        raise PlanError(
            f"the plan borrows from no service {service!r}; there are: {hosts or 'none'}; another local service takes a new search"
        )
    provider = plan.placement[service]
    before = services_known_to(provider, plan, run.stores_dir)
    old = before[service]
    found = get_service(str(folder))
    new = Service(found.spec.model_copy(update={"name": service}), found.blocks)
    if new.content_hash == old.content_hash:
        raise ServiceError(f"{folder} holds the version of {service!r} that is served already")
    if new.spec.boundaries != old.spec.boundaries:
        raise ServiceError(f"{folder}: the blocks of this version meet at other shapes than those of {service!r} so far; search again")
    if out.exists():
        raise ArtifactError(f"{out} is there already; give a new folder")
    after = before | {service: new}
    links: dict[str, dict[str, Link]] = {}
    refits: list[Refit] = []
    for planned in {planned.links_id: planned for planned in plan.paths}.values():
        path, store = plan.inference_path(planned).plain, run.stores_dir / provider
        for index, leg in calibrated_legs(path, plan):
            if leg.provider == provider and any(isinstance(step, Segment) and step.service == service for step in leg.steps):
                kept = load_leg_links(leg, path, planned, before, store)
                inputs = load_calibration(calibration_file(store, planned, index))
                link, refit = _fit_again(leg, path, before, after, kept, inputs)
                links.setdefault(planned.links_id, {}).update(kept | {leg.slots[-1].key: link})
                refits.append(refit)
    if worst := [refit for refit in refits if not refit.after <= TOLERANCE]:
        raise PlanError(f"this version is too far from the one before; search again ({'; '.join(map(str, worst))})")
    _write(run, plan, new, links, out)
    return refits


def _fit_again(
    leg: Leg,
    path: InferencePath,
    before: Mapping[str, Service],
    after: Mapping[str, Service],
    links: Mapping[str, Link],
    inputs: Tensor,
) -> tuple[Link, Refit]:
    """The link by which a leg hands on, fitted to what the leg made of ``inputs`` with the services and links of ``before``."""
    slot = leg.steps[-1]
    if isinstance(slot, Segment):
        raise PlanError(f"path {path} goes on from {leg.provider!r} by a link that is not there; search again with this version")
    link = make_link(slot, path, before)
    fitting = torch.arange(len(inputs)) % HELD_OUT != 0
    kept = inputs[~fitting]
    with torch.inference_mode():
        wanted = nn.Sequential(*leg_modules(leg, before, links))
        made = nn.Sequential(*leg_modules(Leg(leg.provider, leg.steps[:-1]), after, links))
        fit_link(link, made(inputs[fitting]), wanted(inputs[fitting]))
        target, features = wanted(kept), made(kept)
        return link, Refit(str(path), _difference(links[slot.key](features), target), _difference(link(features), target))


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def _write(run: RunDirectory, plan: Plan, new: Service, links: Mapping[str, Mapping[str, Link]], out: Path) -> None:
    """A copy of what is served of ``run``, with the new version and its links; the plan last."""
    made = RunDirectory(out)
    try:
        shutil.copytree(run.stores_dir, made.stores_dir)
        if plan.canaries is not None and run.canaries_file.exists():
            shutil.copy(run.canaries_file, made.canaries_file)
        new.save(made.stores_dir / plan.placement[new.name] / "services" / new.name)
        paths = []
        for planned in plan.paths:
            again = links.get(planned.links_id, {})
            hashes = save_links(plan.inference_path(planned).plain, planned.links_id, again, plan.placement, made.stores_dir)
            paths.append(planned.model_copy(update={"link_hashes": planned.link_hashes | hashes}))
        services = plan.services | {new.name: new.content_hash}
        changed = plan.model_copy(update={"services": services, "paths": tuple(paths)})
        write_text(made.plan_file, changed.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise ArtifactError(f"{out} could not be written ({error}); free space, remove it, and run the same command again") from error
