"""A plan: which paths a deployment may use, with their accuracies, hashes and limits (``plan.json``).

A plan holds no rates. Where it is deployed, times are measured and the programme is solved again (DESIGN 3.5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from code_ray.blocks import content_hash
from code_ray.errors import ArtifactError, IntegrityError, PlanError, first_problem
from code_ray.links import Link
from code_ray.path import InferencePath, LinkSlot, parse_path
from code_ray.policy import ORIGINAL
from code_ray.runner import Bounded, Leg, Payload, Placement, make_links, walk
from code_ray.service import Service
from code_ray.wire import GROUPED


class Identified(Protocol):
    """A service, or what is public of one."""

    @property
    def content_hash(self) -> str: ...


class PlannedPath(BaseModel):
    """One path of a plan: its text form, id, measured accuracy (a fraction), the hash of each link, and the share of validation
    images on which it chooses the class that the original chooses, where that was measured.

    ``links``: the id under which its links are kept, where that is not its own. ``threshold``: answers of less confidence are made
    again by the original (see ``gating``), None for a plain path. ``payload``: how activations of float32 servers cross between providers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    id: str
    accuracy: float = Field(ge=0, le=1)
    link_hashes: dict[str, str]
    agreement: float | None = Field(None, ge=0, le=1)
    links: str | None = None
    threshold: float | None = Field(None, ge=0, le=1)
    payload: Payload | None = None

    @property
    def links_id(self) -> str:
        """The id under which its links are kept."""
        return self.links or self.id

    def leg_key(self, index: int) -> str:
        """Name of leg ``index``, as routers ask providers for it: of the same path with other links or payload it is another one."""
        told = "|".join([*sorted(self.link_hashes.values()), *filter(None, [self.payload])])
        links = hashlib.sha256(told.encode()).hexdigest()[:8]
        return f"{self.links_id}-{links}:{index}" if self.link_hashes else f"{self.links_id}:{index}"


class PlannedTask(BaseModel):
    """Another local service of a plan, with what a plan of its own would say of it. ``paths[0]`` is its original path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_blocks: int
    loss_points: float = Field(ge=0)
    paths: tuple[PlannedPath, ...]


class PlannedTrunk(BaseModel):
    """One path of each of several services, by service, that begin with the same trunk: its links are the same in all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    paths: dict[str, str] = Field(min_length=2)

    @property
    def services(self) -> tuple[str, ...]:
        """Those that answer behind it, in order."""
        return tuple(self.paths)

    @property
    def choices(self) -> list[tuple[str, ...]]:
        """Ids of a path of each service, in order, that can be asked for one by one: all of those behind the trunk, then some of them
        beside the originals of others.
        """
        return list(product(*((path, ORIGINAL) for path in self.paths.values())))[:-1]

    @property
    def separate(self) -> list[str]:
        """Ids of these choices as routes; the first is that of the trunk's paths without the trunk."""
        return [GROUPED.join(choice) for choice in self.choices]

    def leg_key(self, index: int) -> str:
        """Name of the leg with which the trunk ends, number ``index`` on each of its paths."""
        return f"trunk-{self.id}:{index}"


class Plan(BaseModel):
    """What a deployment needs to know. ``paths[0]`` is the original path.

    ``services`` name -> content hash, ``placement`` service -> provider, ``kappa`` host service -> share of its server,
    ``loss_points`` the average-accuracy loss that is allowed, ``canaries`` the hash of the file with answers to check, ``tasks`` more
    local services by name, ``trunks`` what they share with each other and with ``local``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    local: str
    num_blocks: int
    services: dict[str, str]
    placement: dict[str, str]
    kappa: dict[str, float]
    loss_points: float = Field(ge=0)
    paths: tuple[PlannedPath, ...]
    canaries: str | None = None
    tasks: dict[str, PlannedTask] = {}
    trunks: tuple[PlannedTrunk, ...] = ()

    @property
    def id(self) -> str:
        """Short hash of all that the plan says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @property
    def tasked(self) -> dict[str, PlannedTask]:
        """All local services, ``local`` first."""
        return {self.local: PlannedTask(num_blocks=self.num_blocks, loss_points=self.loss_points, paths=self.paths), **self.tasks}

    @property
    def all_paths(self) -> list[PlannedPath]:
        """The paths of all local services."""
        return [planned for task in self.tasked.values() for planned in task.paths]

    def inference_path(self, planned: PlannedPath) -> InferencePath:
        """The path value of an entry of this plan, ``local``'s or another task's."""
        task = self.tasks.get(planned.path.partition("[")[0])
        return parse_path(planned.path, self.num_blocks if task is None else task.num_blocks)

    def behind(self, trunk: PlannedTrunk) -> list[tuple[PlannedPath, InferencePath]]:
        """The paths that share a trunk, in its order.

        Raises:
            PlanError: where it names a path that is not one of its service's.
        """
        found = []
        for service, identifier in trunk.paths.items():
            task = self.tasked.get(service)
            planned = next((planned for planned in task.paths if planned.id == identifier), None) if task is not None else None
            if planned is None:
                raise PlanError(
                    f"trunk {trunk.id} names path {identifier!r} of {service!r}, which the plan does not hold; join the plans again"
                )
            found.append((planned, self.inference_path(planned)))
        return found

    @property
    def budgets(self) -> dict[str, float]:
        """Share of each provider's server that this plan may use (1 at the providers of local services)."""
        hosts = {self.placement[service]: share for service, share in self.kappa.items()}
        return {**hosts, **{self.placement[service]: 1.0 for service in (self.local, *self.tasks)}}

    def check_services(self, services: Mapping[str, Service]) -> None:
        """Check that ``services`` are the ones this plan was made for.

        Raises:
            PlanError: for a service that is missing.
            IntegrityError: for one whose content differs.
        """
        for name, recorded in self.services.items():
            if name not in services:
                raise PlanError(f"the plan needs service {name!r}, which is not here; there are: {', '.join(services)}")
            if services[name].content_hash != recorded:
                raise IntegrityError(
                    f"service {name!r} has content {services[name].content_hash[:12]}, the plan was made for {recorded[:12]}; "
                    "search again, or restore that version of the service"
                )


def read_plan(file: Path) -> Plan:
    """Read and validate ``plan.json``.

    Raises:
        PlanError: where it is missing or malformed.
    """
    try:
        return Plan.model_validate_json(file.read_bytes())
    except OSError as error:
        raise PlanError(f"{file} cannot be read ({error}); give the directory that a finished search wrote") from error
    except ValidationError as error:
        raise PlanError(f"{file} is malformed at {first_problem(error)}; run the search again") from error


def path_id(path: InferencePath, services: Mapping[str, Identified], training: str = "") -> str:
    """Short hash of the content of the services on a path, its segments and its link rank; ``training`` tells apart links of one
    path that were trained in more than one way, and so their files. A gated path has the links of the plain one, and an id of its own.
    """
    names = (path.local, *path.hosts)
    text = "|".join([str(path), *(services[name].content_hash for name in names), *filter(None, [training])])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_links(path: InferencePath, identifier: str, links: Mapping[str, Link], placement: Placement, stores_dir: Path) -> dict[str, str]:
    """Write ``links``, those of one provider or of several, each into the store of the provider it lives with; returns the hash of
    each by slot key.

    Raises:
        ArtifactError: where a store cannot be written.
    """
    for leg in walk(path, placement):
        keys = [key for key in _link_keys(leg) if key in links]
        if keys:
            tensors = {f"{key}.{name}": t.contiguous() for key in keys for name, t in links[key].state_dict().items()}
            folder = stores_dir / leg.provider
            try:
                folder.mkdir(parents=True, exist_ok=True)
                save_file(tensors, folder / f"{identifier}-{'-'.join(keys)}.safetensors")
            except (OSError, SafetensorError) as error:
                raise ArtifactError(
                    f"{folder}: links of path {identifier} could not be written ({error}); free space and run the same command again"
                ) from error
    return {key: content_hash(link) for key, link in links.items()}


def load_leg_links(
    leg: Leg, path: InferencePath, planned: PlannedPath, services: Mapping[str, Bounded], store_dir: Path
) -> dict[str, Link]:
    """The links of one leg from its provider's store, as ``load_links`` does."""
    return load_links(leg, path, planned.links_id, planned.link_hashes, services, store_dir)


def load_links(
    leg: Leg,
    path: InferencePath,
    identifier: str,
    hashes: Mapping[str, str],
    services: Mapping[str, Bounded],
    store_dir: Path,
    slots: Sequence[LinkSlot] | None = None,
) -> dict[str, Link]:
    """The links of one leg from its provider's store, where they are kept under ``identifier``, checked against their ``hashes``;
    by default all of them, else those at ``slots``.

    Raises:
        PlanError: for a file that is missing, unreadable or of other shapes.
        IntegrityError: for links that are not the recorded ones.
    """
    keys = _link_keys(leg)
    if not keys:
        return {}
    file = store_dir / f"{identifier}-{'-'.join(keys)}.safetensors"
    links = make_links(path, services, leg.slots if slots is None else slots)
    try:
        tensors = load_file(file)
        for key, link in links.items():
            prefix = f"{key}."
            link.load_state_dict({name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise PlanError(f"links of path {identifier} cannot be loaded from {file} ({error}); copy the provider's store again") from error
    for key, link in links.items():
        if content_hash(link) != hashes.get(key):
            raise IntegrityError(f"{file}: {key} is not the link the plan names; copy the provider's store again, or search again")
    return links


def _link_keys(leg: Leg) -> list[str]:
    return [slot.key for slot in leg.slots]
