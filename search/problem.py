"""Everything a search knows before it trains: services, data, measured times, candidates, objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from code_ray.artifact import RunDirectory, write_text
from code_ray.controls import control_paths
from code_ray.cost_table import cost_table
from code_ray.data import DataSet, load_data
from code_ray.errors import ArtifactError, ConfigError
from code_ray.gated_objective import GatedPlanObjective
from code_ray.objective import Objective, PaperObjective, PlanObjective
from code_ray.party import Party, PublicService, Survey
from code_ray.path import InferencePath, original_path
from code_ray.path_space import PathSpace
from code_ray.profiling import Profile, measure_times, profile_of
from code_ray.relay import OWN, met_by
from code_ray.reward import Reward
from code_ray.service import Service
from code_ray.space import Candidate, is_faster
from code_ray.throughput import Limits
from code_ray.training import Trainer
from code_ray.wide_space import WideSpace
from code_ray.zoo import get_service
from search.config import SearchConfig
from search.listed import listed_paths


@dataclass(frozen=True)
class Inputs:
    """What a configuration names, found and checked: services with whole blocks, data with their labels, and the space.

    ``services`` are those that are loaded here, ``public`` is what everybody may know of each, ``parties`` have the others, by provider.
    ``vectors`` are the paths of the space where the configuration names them one by one.
    """

    services: Mapping[str, Service]
    public: Mapping[str, PublicService]
    parties: Mapping[str, Party]
    data: DataSet
    space: PathSpace
    vectors: tuple[InferencePath, ...] | None

    def is_wide(self, config: SearchConfig) -> bool:
        """Whether the space has more paths than the search may look at closely."""
        return self.vectors is None and len(self.space) > config.max_candidates


@dataclass(frozen=True)
class Problem:
    """A search, ready to run. ``faster`` paths can serve more than the original alone (P' of Algorithm 1): they are the
    ``candidates`` where a search can look at all of them closely, else ``wide`` chooses from them as it goes. ``original_classes``:
    the class that the original chooses for each validation image. ``services`` and ``public`` as in ``Inputs``.
    """

    config: SearchConfig
    run: RunDirectory
    services: Mapping[str, Service]
    public: Mapping[str, PublicService]
    data: DataSet
    space: PathSpace
    profile: Profile
    accuracy_original: float
    original_classes: npt.NDArray[np.uint16]
    paths_enumerated: int
    faster: int
    candidates: tuple[Candidate, ...]
    objective: Objective
    wide: WideSpace | None = None

    @property
    def plan_objective(self) -> PlanObjective:
        """The programme under the loss limit, whatever the search itself maximises: plans and arms are valued by it."""
        o = self.objective
        return o if isinstance(o, PlanObjective) else PlanObjective(o.original, o.accuracy_original, o.limits, o.local_provider)


def load_services(config: SearchConfig, *providers: str) -> dict[str, Service]:
    """The services of a search, or of some ``providers``, called as its configuration calls them: a service folder by its path.

    Raises:
        ServiceError, IntegrityError: for a service that is not there or not what its hashes say.
    """
    placement = config.placement
    loaded = {name: get_service(name) for name in (config.local, *config.hosts) if not providers or placement[name] in providers}
    return {name: Service(service.spec.model_copy(update={"name": name}), service.blocks) for name, service in loaded.items()}


def load_search_data(config: SearchConfig) -> DataSet:
    """The data of a search, with as many validation images as it uses.

    Raises:
        DataError: for a name that is not known, or files that are not there.
    """
    data = load_data(config.data)
    return replace(data, validation=data.validation.head(config.validation_samples))


def load_inputs(config: SearchConfig, parties: Mapping[str, Party] | None = None) -> Inputs:
    """Load and check everything that ``config`` names, before anything is written. ``parties``: by provider, those whose services are
    not loaded here.

    Raises:
        ConfigError, ServiceError, DataError, PathError: for what the configuration names and is not there.
    """
    parties = parties or {}
    if missing := set(config.apart) - set(parties):
        raise ConfigError(f"with 'trust: split' the services of {sorted(missing)} are not to be loaded here; set 'trust: shared' for this")
    services = load_services(config, *(provider for provider in config.placement.values() if provider not in parties))
    local, data = services[config.local], load_search_data(config)
    if tuple(data.labels) != local.labels:
        raise ConfigError(f"data set {config.data!r} and service {config.local!r} have different labels; choose the data it was trained on")
    public = {}
    for name, provider in config.placement.items():
        if name in services:
            services[name].verify()
        else:
            parties[provider].verify([name])
        public[name] = PublicService.of(services[name]) if name in services else parties[provider].public(name)
    space = _space(config, services, public)
    inputs = Inputs(services, public, parties, data, space, listed_paths(config, services, space))
    if inputs.is_wide(config) and config.sampler in ("random", "printed"):
        raise ConfigError(
            f"sampler {config.sampler!r} looks at every path, and there are {len(space)}; raise 'max_candidates' to that or narrow the space"
        )
    return inputs


def prepare(config: SearchConfig, inputs: Inputs, run: RunDirectory, say: Callable[[str], None]) -> Problem:
    """Measure. Times and the original's accuracy are kept in the run directory for a resumed search.

    Raises:
        ArtifactError: where the run directory cannot be read or written.
    """
    services, data, space = inputs.services, inputs.data, inputs.space
    original = original_path(config.local, services[config.local].num_blocks)
    # How activations cross is asked for, not measured: what another search measured serves this one.
    profile = _profile(config, run, inputs, say).model_copy(update={"payload": config.payload})
    trainer = Trainer(services, config.local, data, config.placement, profile.mode_of, config.recipe)
    original_classes = _original_classes(run, trainer, original, config.concurrency)
    accuracy_original = float((original_classes == data.validation.labels).mean())
    say(f"original: {100 * accuracy_original:.2f} % on validation, {1 / profile.original_seconds(config.local):.0f} images a second")
    provider = config.placement[config.local]
    budgets = {config.placement[name]: host.kappa for name, host in config.hosts.items()} | {provider: 1.0}
    limits = Limits(budgets, config.loss_points, config.bandwidth)
    origin = Candidate(original, profile.cost(original, services))
    objective = _objective(config, origin, accuracy_original, limits, provider)
    wide = None
    if inputs.is_wide(config):
        cost = partial(profile.cost, services=services)
        wide = WideSpace(space, cost_table(space, profile, services), objective, cost, config.max_candidates)
        candidates, faster = tuple(wide.start()), wide.faster
    else:
        paths = space.paths() if inputs.vectors is None else inputs.vectors
        entries = (Candidate(path, profile.cost(path, services)) for path in paths)
        candidates = tuple(entry for entry in entries if is_faster(entry, origin, provider, limits))
        faster = len(candidates)
    enumerated = len(space) if inputs.vectors is None else len(inputs.vectors)
    say(f"{enumerated} paths enumerated, {faster} of them can serve more than the original alone")
    if not run.splits_file.exists():
        staging = run.splits_file.with_name(".splits.tmp.npz")
        np.savez(staging, train=data.train.indices, validation=data.validation.indices, test=data.test.indices)
        staging.replace(run.splits_file)
    return Problem(
        config,
        run,
        services,
        inputs.public,
        data,
        space,
        profile,
        accuracy_original,
        original_classes,
        enumerated,
        faster,
        candidates,
        objective,
        wide,
    )


def teacher_logits(problem: Problem) -> npt.NDArray[np.float32]:
    """Logits of the original on the training images, (n, classes) float32, kept in the run directory for a resumed search.

    Computed once on all cores before the workers start: each of them would need them all.

    Raises:
        ArtifactError: where the file cannot be used.
    """
    config, file = problem.config, problem.run.teacher_file
    trainer = Trainer(problem.services, config.local, problem.data, config.placement, problem.profile.mode_of, config.recipe)
    shape = len(trainer.train), len(problem.data.labels)
    if file.exists():
        try:
            kept = np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ArtifactError(f"{file} is damaged ({error}); delete it to compute it again") from error
        if kept.shape != shape or kept.dtype != np.float32:
            raise ArtifactError(f"{file} holds {kept.dtype} {kept.shape}, not float32 {shape}; delete it to compute it again")
        return np.asarray(kept, np.float32)
    torch.set_num_threads(config.concurrency)
    logits = trainer.teacher(torch.arange(len(trainer.train))).numpy()
    staging = file.with_name(".teacher.tmp.npy")
    np.save(staging, logits)
    staging.replace(file)
    return logits


def _space(config: SearchConfig, services: Mapping[str, Service], public: Mapping[str, PublicService]) -> PathSpace:
    local = services[config.local]
    if config.min_lout > local.num_blocks - 1:
        raise ConfigError(f"min_lout {config.min_lout} leaves no path of {config.local!r}, which has {local.num_blocks} blocks; lower it")
    hosts = {name: public[name].num_blocks for name in config.hosts}
    # Of other parties' services no shape is known.
    sides = {name: service.sides for name, service in services.items()}
    forms = {name: services[name].forms if name in services else told.forms_beside(local) for name, told in public.items()}
    if other := [name for name in hosts if public[name].modality != public[config.local].modality]:
        raise ConfigError(f"{other[0]!r} is for {public[other[0]].modality}s, unlike {config.local!r}: no link leads there; take it out")
    bounds = config.kinds, config.min_lout, config.ranks
    return PathSpace(config.local, local.num_blocks, hosts, *bounds, sides, config.hosts_per_path, forms)


def _profile(config: SearchConfig, run: RunDirectory, inputs: Inputs, say: Callable[[str], None]) -> Profile:
    if run.profile_file.exists():
        try:
            return Profile.model_validate_json(run.profile_file.read_text())
        except ValidationError as error:
            raise ArtifactError(f"{run.profile_file} is damaged ({error.errors()[0]['msg']}); delete it to measure again") from error
    say("measuring blocks and links ...")
    paths = inputs.vectors or inputs.space.link_paths()
    # A control may need a link that no path of the space has.
    controls = [c for p in paths if p.kind == "cross" for role, c in control_paths(p).items() if role != "random_host"]
    controls = list(filter(inputs.space.joins, controls))
    measured = [measure_times([*paths, *controls], inputs.services, config.placement, say)]
    for provider, party in inputs.parties.items():
        measured.append(party.measure(_survey(config, inputs, provider, [*paths, *controls])))
        for name, execution in measured[-1].executions.items():
            say(f"{name}: {execution.seconds * 1e3:.3f} ms an image at {provider}")
    profile = profile_of(measured, config.placement)
    write_text(run.profile_file, profile.model_dump_json(indent=1))
    return profile


def _survey(config: SearchConfig, inputs: Inputs, provider: str, paths: Sequence[InferencePath]) -> Survey:
    """What a provider's party is told of the paths through it, to time them."""
    placement, local = config.placement, inputs.services[config.local]
    through = [path for path in dict.fromkeys(paths) if provider in {placement[host] for host in path.hosts}]
    return Survey(
        paths=tuple(map(str, through)),
        num_blocks=local.num_blocks,
        placement=placement,
        boundaries=met_by(
            provider,
            through,
            lambda service: placement[service] if placement[service] in inputs.parties else OWN,
            lambda service, position: inputs.services[service].boundaries[position],
        ),
    )


def _original_classes(run: RunDirectory, trainer: Trainer, original: InferencePath, threads: int) -> npt.NDArray[np.uint16]:
    for record in run.journal.records():
        if record["role"] == "original" and "classes" in record:
            return np.asarray(record["classes"], np.uint16)
    # Unlike the times just measured this may use every core.
    torch.set_num_threads(threads)
    validation = trainer.data.validation
    classes = trainer.logits(original, {}, validation).argmax(1)
    accuracy = float((classes == validation.labels).mean())
    run.journal.append({"role": "original", "path": str(original), "accuracy": accuracy, "classes": classes.tolist()})
    return np.asarray(classes, np.uint16)


def _objective(config: SearchConfig, original: Candidate, accuracy_original: float, limits: Limits, provider: str) -> Objective:
    if config.objective == "plan" and config.rerun_shares:
        return GatedPlanObjective(original, accuracy_original, limits, provider, config.rerun_shares)
    if config.objective == "plan":
        return PlanObjective(original, accuracy_original, limits, provider)
    settings = config.reward
    reward = Reward(accuracy_original - settings.accuracy_min_below_original / 100, settings.steepness, settings.exponent)
    return PaperObjective(original, accuracy_original, limits, provider, reward)
