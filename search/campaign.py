"""The whole course of a search as ask / tell: sampled trainings, rivals, longer trainings, controls, confirmation on fresh seeds.

Knows no Tune. A resumed search replays its journal into a new campaign and goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from code_ray.controls import control_paths, with_trained_hosts
from code_ray.errors import PlanError
from code_ray.greedy_sampler import GreedySampler
from code_ray.objective import Known
from code_ray.path import InferencePath, parse_path
from code_ray.plan import Identified, path_id
from code_ray.printed_sampler import PrintedSampler
from code_ray.refinement import hoped_accuracy, next_to_refine
from code_ray.sampler import Fidelity, Proposal, Sampler, Stopping
from code_ray.scoring import Score
from search.distilled import ROLE as DISTILLED
from search.plannable import with_gates
from search.problem import Problem

Role = Literal["search", "rival", "refine", "random_host", "links_only", "skip", "confirm"]

PLANNED: tuple[Role, ...] = ("search", "rival", "refine", "skip")
"""Roles of trainings that a plan may be made of: a skip is a control of what it replaces, and as good a path as any."""

UNPLANNED: tuple[Role, ...] = ("random_host", "links_only")
"""Controls that no plan is made of: nothing that is asked later depends on how they end."""

FINISHED: tuple[Fidelity, ...] = ("trained", "refined")
"""Fidelities of trainings that came to their end; a path's accuracy is that of its longest ones."""

SCORE_FIELDS = tuple(field.name for field in fields(Score))
"""What the record of a scored path holds of its score."""


def links_id(path: InferencePath, services: Mapping[str, Identified], fidelity: Fidelity) -> str:
    """What the links of ``path`` that were trained so are kept under: a longer training leaves those of the shorter one in place."""
    return path_id(path, services, "" if fidelity == "trained" else fidelity)


@dataclass(frozen=True)
class Job:
    """One evaluation to run: a path at a fidelity, with a seed, and what it is for."""

    path: InferencePath
    fidelity: Fidelity
    seed: int
    role: Role

    def to_config(self) -> dict[str, Any]:
        """Plain values, for Tune and the journal."""
        return {"path": str(self.path), "fidelity": self.fidelity, "seed": self.seed, "role": self.role}

    @classmethod
    def from_config(cls, config: dict[str, Any], num_blocks: int) -> Job:
        """The job that ``to_config`` wrote."""
        return cls(parse_path(config["path"], num_blocks), config["fidelity"], config["seed"], config["role"])


class Campaign:
    """Hands out jobs and collects their records until nothing is left to do; without ``train`` that is at once."""

    def __init__(self, problem: Problem, *, train: bool = True) -> None:
        self.problem = problem
        self.records: dict[Job, dict[str, Any]] = {}
        self.failures: dict[Job, str] = {}
        self.sampler = _make_sampler(problem)
        self._in_flight: set[Job] = set()
        self._rest: list[Job] | None = None
        self._rivals_done = self._refined = False  # an earlier session has done with rivals, and with longer trainings
        self._kept: tuple[Job, ...] = ()
        self._waits = False  # nothing to hand out until something is told
        self._expected: dict[Job, tuple[float, float] | None] = {}
        self._replay()
        if not train:
            self.sampler.stopped_because, self._rest = "no training was asked for", []

    @property
    def finished(self) -> bool:
        """Whether every job is done or has failed."""
        return self._rest == [] and not self._in_flight

    def nothing_to_do(self) -> bool:
        """Whether the journal holds all there is to measure; what is found on the way is what ``ask`` hands out next."""
        self._kept = self._kept or self._next()
        return not self._kept and self.finished

    def ask(self) -> tuple[Job, ...]:
        """The next jobs, to be done together; empty where something in flight must come back first, or nothing is left."""
        if self._waits:
            return ()
        jobs, self._kept = self._kept or self._next(), ()
        self._waits = not jobs  # Tune asks many times a second
        return jobs

    def _next(self) -> tuple[Job, ...]:
        if self.sampler.stopped_because is None:
            proposals = self.sampler.ask()
            if proposals:
                return self._hand_out(*(Job(p.path, p.fidelity, self.problem.config.seed, "search") for p in proposals))
        if self.sampler.stopped_because is None or any(job.role == "search" for job in self._in_flight):
            return ()
        config = self.problem.config
        if self._rest is None and not self._rivals_done and self._begun("rival") < config.rivals:
            rival = self.sampler.rival()
            if rival is not None:
                return self._hand_out(Job(rival.path, "trained", config.seed, "rival"))
        if any(job.role == "rival" for job in self._in_flight):
            if config.refine.paths:
                return ()  # what is refined depends on them, and controls are trained as long as their path
            # Rivals have no host: the leading cross seldom changes with them, and what no plan is made of changes no rival.
            return self._hand_out(*[job for job in self._closing_left() if job.role in UNPLANNED][:1])
        if self._rest is None and not self._refined and (path := self._next_to_refine()) is not None:
            return self._hand_out(Job(path, "refined", config.seed, "refine"))
        if any(job.role == "refine" for job in self._in_flight):
            return ()
        if self._rest is None:
            self._rest = self._closing_left()
        return self._hand_out(self._rest.pop(0)) if self._rest else ()

    def tell(self, job: Job, record: dict[str, Any]) -> None:
        """Take the measured record of a job and put it on disk.

        Raises:
            ArtifactError: where the journal cannot be written; everything told before stays.
        """
        if (expected := self._expected.pop(job, None)) is not None:
            record = {**record, "expected_low": expected[0], "expected_high": expected[1]}
        if job.role != "search":
            # Later measurements may change what is expected: a search that is resumed here has still ended.
            record = {**record, "stopped_because": self.sampler.stopped_because}
        self.problem.run.journal.append({**job.to_config(), **record})
        self._take(job, record)

    def keep_training(self, job: Job, rung: Mapping[str, float]) -> bool:
        """Whether a training that has come to a rung (its steps, their share of all, the loss there) goes on."""
        self._waits = False
        return self.sampler.keep_training(job.path, int(rung["steps"]), rung["share"], rung["loss_points"])

    def tell_stopped(self, job: Job, record: dict[str, Any]) -> None:
        """Take the record of a training that was stopped at a rung, and put it on disk.

        Raises:
            ArtifactError: as ``tell``.
        """
        self._in_flight.discard(job)
        self._expected.pop(job, None)
        self.tell(replace(job, fidelity="stopped"), record)

    def fail(self, job: Job, reason: str) -> None:
        """Note that a job could not be done; the search goes on without it."""
        self._in_flight.discard(job)
        self._waits = False
        self.failures[job] = reason
        if self._is_told(job):
            self.sampler.drop(Proposal(job.path, job.fidelity))

    @property
    def accuracies(self) -> Known:
        """The paths a plan may be made of: cost, and validation accuracy averaged over the seeds it was trained on."""
        known = {}
        for path, (cost, _) in self.sampler.chosen.items():
            seeds = [r["accuracy"] for j, r in self.records.items() if j.path == path and j.fidelity == self.longest(path)]
            known[path] = (cost, sum(seeds) / len(seeds))
        return known

    def longest(self, path: InferencePath) -> Fidelity:
        """The fidelity that counts for ``path``: its longest."""
        return "refined" if any(job.path == path and job.fidelity == "refined" for job in self.records) else "trained"

    def planned_record(self, path: InferencePath) -> dict[str, Any]:
        """The record of the training whose links a plan takes for ``path``, gated or not."""
        fidelity = self.longest(path.plain)
        return next(r for j, r in self.records.items() if j.path == path.plain and j.role in PLANNED and j.fidelity == fidelity)

    def _is_told(self, job: Job) -> bool:
        """Whether the sampler is told of a job. It knows a refined path already."""
        told = job.role == "search" or (job.role in PLANNED and job.role != "refine" and self.sampler.takes_all)
        return told and self.sampler.admit(job.path)

    def _begun(self, role: Role) -> int:
        return sum(job.role == role for job in (*self.records, *self.failures, *self._in_flight))

    def _next_to_refine(self) -> InferencePath | None:
        """The path to be trained longer now; what is in flight counts as if it came out as hoped."""
        config, objective = self.problem.config, self.problem.objective
        if self._begun("refine") >= config.refine.paths:
            return None
        known, times = dict(self._sampled), config.refine.times
        for job in self._in_flight:
            cost, accuracy = known[job.path]
            known[job.path] = cost, hoped_accuracy(objective, accuracy, times)
        begun = {job.path for job in (*self.records, *self.failures, *self._in_flight) if job.role == "refine"}
        return next_to_refine(known, begun, objective, times, config.stopping.epsilon)

    def full_trainings(self) -> int:
        """How many times links were trained to their end, controls, refinements and confirmation included."""
        return sum(job.fidelity in FINISHED for job in self.records)

    @property
    def _sampled(self) -> Known:
        """What the sampler, its rivals and longer trainings found: controls and confirmation are chosen from it, and a skip among
        them changes nothing.
        """
        found: dict[InferencePath, float] = {}
        for role in ("search", "rival", "refine"):
            found |= {job.path: record["accuracy"] for job, record in self.records.items() if job.role == role and job.fidelity in FINISHED}
        return {path: (cost, found[path]) for path, (cost, _) in self.sampler.chosen.items() if path in found}

    def leading_cross(self) -> InferencePath | None:
        """The trained cross path that the plan uses most, else the one that would serve best beside the original."""
        return next((path for path in self._ranked() if path.kind == "cross"), None)

    def _ranked(self) -> list[InferencePath]:
        """The trained paths, those first that the plan uses most, gated or not, then those that would serve best beside the original."""
        objective, known = self.problem.plan_objective, self._sampled
        rates = objective.rates(with_gates(self, known))
        return sorted(known, key=lambda path: (-rates[path], -objective.value({path: known[path]})))

    def _hand_out(self, *jobs: Job) -> tuple[Job, ...]:
        self._in_flight.update(jobs)
        for job in jobs:
            if job.fidelity == "trained" and self._is_told(job):
                self._expected[job] = self.sampler.expected_range(job.path)
        return jobs

    def _take(self, job: Job, record: dict[str, Any]) -> None:
        self._in_flight.discard(job)
        self._waits = False
        self.records[job] = record
        if not self._is_told(job):
            return
        if job.fidelity == "stopped":
            self.sampler.stop(job.path)
        else:
            score = Score(*(record[name] for name in SCORE_FIELDS)) if job.fidelity == "fit" else None
            # A skip that is the control of a refined path was trained as long.
            fidelity = "trained" if job.fidelity == "refined" else job.fidelity
            self.sampler.tell(Proposal(job.path, fidelity), record["accuracy"], score)

    def _replay(self) -> None:
        for record in self.problem.run.journal.records():
            if record["role"] in ("original", DISTILLED):
                continue
            job = Job.from_config(record, self.problem.services[self.problem.config.local].num_blocks)
            if not self._is_timed(job.path):
                continue  # another search's, in a space that this one's times do not cover
            if (ended := record.pop("stopped_because", None)) is not None:
                self.sampler.stopped_because = ended
                closing = job.role in ("skip", "confirm") or (job.role in UNPLANNED and self.problem.config.refine.paths > 0)
                self._refined = self._refined or closing
                self._rivals_done = self._rivals_done or closing or job.role == "refine"
            if job.role != "search" or self.sampler.admit(job.path):
                for rung in record.get("rungs", ()):  # what was decided there is known; what later paths are compared with is this
                    self.keep_training(job, rung)
                self._take(job, record)

    def _is_timed(self, path: InferencePath) -> bool:
        try:
            self.problem.profile.cost(with_trained_hosts(path, self.problem.public), self.problem.services)
        except PlanError:
            return False
        return True

    def _closing_left(self) -> list[Job]:
        return [job for job in self._closing_jobs() if not any(job in begun for begun in (self.records, self.failures, self._in_flight))]

    def _closing_jobs(self) -> Iterator[Job]:
        config, cross = self.problem.config, self.leading_cross()
        if config.controls and cross is not None:
            for role, path in control_paths(cross).items():
                known = any(j.path == path and j.fidelity == self.longest(cross) for j in self.records)
                if not known and self.problem.space.joins(path):
                    yield Job(path, self.longest(cross), config.seed, role)  # type: ignore[arg-type]
        for path in self._ranked()[: config.confirm]:
            yield Job(path, self.longest(path), config.seed + 1, "confirm")


def _make_sampler(problem: Problem) -> Sampler:
    config, space = problem.config, problem.space
    stopping = Stopping(config.stopping.max_trainings, config.stopping.c_stop, config.stopping.epsilon)
    given = problem.candidates, problem.objective, stopping, space.hosts
    if config.sampler == "printed":
        return PrintedSampler(*given, seed=config.seed, sides=space.sides, hosts_per_path=space.hosts_per_path)
    return GreedySampler(
        *given,
        predictor=config.sampler,
        screen=config.screen,
        reduction=config.reduction,
        seed=config.seed,
        wide=problem.wide,
        sides=space.sides,
        hosts_per_path=space.hosts_per_path,
    )
