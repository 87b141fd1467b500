"""Plans of several local services made one: served together they can be asked together, behind trunks that they share (DESIGN 1).

A service that borrows blocks to which a plan leads already trains its paths with that plan's entry links (``trunk_links``). Where the
links that two plans have before the first exit are the same to the bit, ``join`` finds the trunk by their hashes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import numpy as np

from code_ray.artifact import RunDirectory, write_text
from code_ray.canaries import Canaries, load_canaries, save_canaries
from code_ray.errors import ArtifactError, PathError, PlanError
from code_ray.links import Link
from code_ray.path import InferencePath
from code_ray.plan import Plan, PlannedPath, PlannedTask, PlannedTrunk, load_links, read_plan
from code_ray.policy import ORIGINAL, original_of
from code_ray.preprocessing import Preprocessing, TextPreprocessing
from code_ray.runner import Bounded, Outline, fan_out, walk
from code_ray.service import Service
from code_ray.trunk import Trunk, shared_trunk, trunk_of
from code_ray.zoo import stored_spec


def trunk_links(run: RunDirectory, service: Service, hosts: Mapping[str, Service]) -> dict[Trunk, dict[str, Link]]:
    """The trunks of the plan in ``run`` through ``hosts``, with their links by slot key, for ``service`` to share.

    Raises:
        ArtifactError, PlanError: for a run directory without a plan, one of other frames or hosts, or without such a path.
        IntegrityError: for links that are not the plan's.
    """
    plan = read_plan(RunDirectory.open(run.root).plan_file)
    _check_frames(plan, run, service.name, service.spec.preprocessing)
    for name in set(hosts) & set(plan.services):
        if plan.services[name] != hosts[name].content_hash:
            raise PlanError(f"{run.root} borrows from another version of {name!r}; search it again with this one")
    frame = Outline({0: service.boundaries[0]})
    found: dict[Trunk, dict[str, Link]] = {}
    for planned in plan.all_paths:
        path = plan.inference_path(planned).plain
        trunk = trunk_of(path)
        if trunk is None or trunk in found or not {segment.service for segment in trunk.segments} <= set(hosts):
            continue
        known: dict[str, Bounded] = {**hosts, path.local: frame}
        links: dict[str, Link] = {}
        for leg in walk(path, plan.placement):
            slots = [slot for slot in leg.slots if slot.index < trunk.num_links]
            store = run.stores_dir / leg.provider
            links |= load_links(leg, path, planned.links_id, planned.link_hashes, known, store, slots) if slots else {}
        found[trunk] = links
    if not found:
        raise PlanError(f"no path of {run.root} sends raw frames to {' or '.join(sorted(hosts)) or 'a host'}; there is no trunk to share")
    return found


def join(first: RunDirectory, second: RunDirectory, out: Path) -> Plan:
    """Make ``out`` a run directory that serves the local services of both plans; ``first`` may be one that was joined before.

    Raises:
        ArtifactError, PlanError: for run directories without a plan, plans that do not fit together, or an ``out`` that is there.
        IntegrityError: for canaries that are not the plan's.
    """
    one, other = (read_plan(RunDirectory.open(run.root).plan_file) for run in (first, second))
    _check_together(one, other, first, second)
    if out.exists():
        raise ArtifactError(f"{out} is there already; give a new folder")
    made = RunDirectory(out)
    # Ids of paths are unique but for the originals'.
    paths = tuple(p.model_copy(update={"id": original_of(other.local)}) if p.id == ORIGINAL else p for p in other.paths)
    task = PlannedTask(num_blocks=other.num_blocks, loss_points=other.loss_points, paths=paths)
    try:
        for run in (first, second):
            if run.stores_dir.exists():
                shutil.copytree(run.stores_dir, made.stores_dir, dirs_exist_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        plan = one.model_copy(
            update={
                "services": one.services | other.services,
                "placement": one.placement | other.placement,
                "kappa": one.kappa | other.kappa,
                "tasks": {**one.tasks, other.local: task},
                "canaries": _joined_canaries(one, other, first, second, made),
            }
        )
        plan = plan.model_copy(update={"trunks": tuple(find_trunks(plan))})
        write_text(made.plan_file, plan.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise ArtifactError(f"{out} cannot be written ({error}); free space, delete it and run the same command again") from error
    return plan


def find_trunks(plan: Plan) -> Iterator[PlannedTrunk]:
    """Every choice of a path for each local service of ``plan`` that lets all of them share a trunk, its links among it."""
    for chosen in product(*(task.paths for task in plan.tasked.values())):
        if len(chosen) < 2 or not _share(plan, chosen):
            continue
        told = "|".join(f"{planned.id} {planned.leg_key(0)}" for planned in chosen)
        names = {plan.inference_path(planned).local: planned.id for planned in chosen}
        yield PlannedTrunk(id=hashlib.sha256(told.encode()).hexdigest()[:16], paths=names)


def check_trunk(plan: Plan, trunk: PlannedTrunk) -> list[InferencePath]:
    """The plain paths behind ``trunk``, which do share it.

    Raises:
        PlanError: where they do not, or it names others than the plan's.
    """
    behind = plan.behind(trunk)
    if not _share(plan, [planned for planned, _ in behind]):
        raise PlanError(f"the paths of trunk {trunk.id} begin with different links or blocks; join the plans again")
    return [path.plain for _, path in behind]


def _share(plan: Plan, chosen: tuple[PlannedPath, ...] | list[PlannedPath]) -> bool:
    paths = [plan.inference_path(planned).plain for planned in chosen]
    try:
        trunk = shared_trunk(paths)
        fan = fan_out(paths, plan.placement)
    except PathError:
        return False
    keys = [f"link{index}" for index in range(trunk.num_links)]
    hashes = {tuple(planned.link_hashes.get(key) for key in keys) for planned in chosen}
    # A link that leads on to another host lives there: only what begins where the trunk ends is run in its call.
    return len(hashes) == 1 and all(branch[0].provider == fan.stem[-1].provider for branch in fan.branches)


def _check_frames(plan: Plan, run: RunDirectory, name: str, preprocessing: Preprocessing | TextPreprocessing) -> None:
    spec = stored_spec(plan.local, run.stores_dir / plan.placement[plan.local])
    if spec.preprocessing != preprocessing:
        raise PlanError(
            f"{plan.local!r} and {name!r} take different frames, or make other numbers of them; services that are asked together need the "
            "same preprocessing"
        )


def _check_together(one: Plan, other: Plan, first: RunDirectory, second: RunDirectory) -> None:
    if other.tasks:
        raise PlanError(f"{second.root} serves several services already; give it first, and a plan of one service second")
    if other.local in one.services or set(one.tasked) & set(other.services):
        raise PlanError(
            f"a local service of one plan is in the other too ({', '.join(one.tasked)} and {other.local}); they cannot be joined"
        )
    for what, mine, theirs in (("version", one.services, other.services), ("provider", one.placement, other.placement)):
        if differing := [name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]]:
            raise PlanError(f"the plans have another {what} of {', '.join(sorted(differing))}; search one of them again with the other's")
    if differing := [name for name in one.kappa.keys() & other.kappa.keys() if one.kappa[name] != other.kappa[name]]:
        raise PlanError(f"the plans may use different shares of {', '.join(sorted(differing))}; search one again with the other's kappa")
    spec = stored_spec(other.local, second.stores_dir / other.placement[other.local])
    _check_frames(one, first, other.local, spec.preprocessing)


def _joined_canaries(one: Plan, other: Plan, first: RunDirectory, second: RunDirectory, made: RunDirectory) -> str | None:
    """Both plans' canaries in one file where they are answers to the same images, else those of the first."""
    if one.canaries is None:
        return None
    mine = load_canaries(first.canaries_file, one.canaries)
    logits = dict(mine.logits)
    if other.canaries is not None:
        theirs = load_canaries(second.canaries_file, other.canaries)
        if np.array_equal(mine.images, theirs.images):
            logits |= {original_of(other.local) if name == ORIGINAL else name: found for name, found in theirs.logits.items()}
    return save_canaries(Canaries(mine.images, logits), made.canaries_file)
