"""One Tune trial: train the links of one path, or score some paths, in a worker that stays warm."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import tune

from code_ray.controls import RANDOM_SUFFIX
from code_ray.errors import ArtifactError, CodeRayError, LinkError, ServiceError
from code_ray.gating import make_gates
from code_ray.party import Party
from code_ray.path import InferencePath
from code_ray.profiling import Profile
from code_ray.scoring import Scorer
from code_ray.training import LinkTraining, Trainer
from search.campaign import PLANNED, Job, links_id
from search.config import SearchConfig
from search.listed import load_trunks
from search.parties import start_parties
from search.problem import load_search_data, load_services

CALIBRATION_IMAGES = 512


Outcome = dict[str, Any]
"""What came of a job: ``record`` (accuracies, seconds, link hashes, and when it ran, in seconds since 1970) or ``failure``, why
it could not be done."""


@dataclass(frozen=True)
class Rung:
    """A training on its way; ``record`` is what is kept of it should it be stopped here."""

    record: dict[str, Any]


class Worker:
    """What a worker process keeps between trials: services, data, cached activations."""

    def __init__(
        self,
        config: SearchConfig,
        profile: Profile,
        stores_dir: Path,
        teacher: bytes | None = None,
        original_classes: bytes = b"",
        parties: Mapping[str, Party] | None = None,
    ) -> None:
        """``teacher``: the original's logits on the training images, float32, where the driver has computed them.
        ``original_classes``: its classes of the validation images, uint16; without them no path is gated. ``parties``: by provider,
        those whose services are not loaded here.
        """
        torch.set_num_threads(1)
        self.config = config
        self.stores_dir = stores_dir
        self.placement = dict(config.placement)
        here = [provider for provider in self.placement.values() if provider not in (parties or {})]
        services = load_services(config, *here)
        data = load_search_data(config)
        device = "cuda" if config.gpus_per_trial > 0 and torch.cuda.is_available() else "cpu"
        logits = None if teacher is None else torch.frombuffer(bytearray(teacher), dtype=torch.float32).view(-1, len(data.labels))
        trunks = load_trunks(config, services)
        self.trainer = Trainer(
            services, config.local, data, self.placement, profile.mode_of, config.recipe, device, logits, parties, trunks
        )
        self.services = self.trainer.services
        self.identities = {name: self.trainer.parties.with_service(name).public(name) for name in self.placement}
        self.scorer = Scorer(self.trainer)
        self.original_classes = np.frombuffer(original_classes, np.uint16)

    def score(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Score paths together.

        Raises:
            IntegrityError: where a frozen block changed before or meanwhile.
        """
        started = time.time()
        services = self._verified(jobs)
        outcomes = self._score(jobs)
        self._verify(services)
        times = {"started": started, "finished": time.time()}
        return [{"record": {**o["record"], **times}} if "record" in o else o for o in outcomes]

    def _score(self, jobs: Sequence[Job]) -> list[Outcome]:
        try:
            scores = self.scorer.score([job.path for job in jobs])
        except LinkError as error:
            # One of them cannot be fitted: the others are done alone.
            return [{"failure": str(error)}] if len(jobs) == 1 else [outcome for job in jobs for outcome in self._score([job])]
        return [{"record": {**asdict(scores[job.path]), "accuracy_fit": scores[job.path].accuracy, "link_hashes": {}}} for job in jobs]

    def train(self, job: Job) -> Iterator[Rung | Outcome]:
        """Train one path: what it has come to at every rung, and at last its outcome. A caller who has seen enough stops.

        Raises:
            IntegrityError: where a frozen block changed before or meanwhile.
            ArtifactError: where links cannot be written.
        """
        started, begun = time.time(), time.monotonic()
        services = self._verified([job])
        refined = job.fidelity == "refined"
        try:
            training = LinkTraining(self.trainer, job.path, job.seed, self.config.refine.times if refined else 1)
            training.fit()
        except LinkError as error:
            yield {"failure": str(error)}
            return
        accuracy_fit = training.screen_accuracy()
        rungs: list[dict[str, float]] = []
        for steps in self.config.rungs if job.role == "search" else ():
            training.advance(steps)
            accuracy = training.screen_accuracy()
            lost = 100 * (self.trainer.screen_accuracy - accuracy)
            rungs.append({"steps": steps, "share": steps / training.recipe.total_steps, "accuracy": accuracy, "loss_points": lost})
            so_far = {"accuracy": accuracy, "accuracy_fit": accuracy_fit, "rungs": [*rungs], "seconds": time.monotonic() - begun}
            yield Rung({**so_far, "link_hashes": {}, "started": started, "finished": time.time()})
        training.advance(training.recipe.total_steps)
        logits = training.logits("validation")
        labels = self.trainer.data.validation.labels
        accuracy = float((logits.argmax(1) == labels).mean())
        self._verify(services)
        hashes: dict[str, str] = {}
        if job.role in PLANNED:
            hashes = training.save(links_id(job.path, self.identities, job.fidelity), str(self.stores_dir))
        whole: dict[str, Any] = {"accuracy": accuracy, "accuracy_fit": accuracy_fit, "rungs": rungs, "seconds": time.monotonic() - begun}
        if job.role in PLANNED and len(self.original_classes):
            whole["gates"] = [asdict(gate) for gate in make_gates(logits, self.original_classes, labels, self.config.rerun_shares)]
        yield {"record": {**whole, "link_hashes": hashes, "started": started, "finished": time.time()}}

    def _verified(self, jobs: Sequence[Job]) -> list[str]:
        """Names of the services that ``jobs`` use, found whole."""
        for job in jobs:
            self._ensure_hosts(job.path)
        names = list(dict.fromkeys(name for job in jobs for name in (job.path.local, *job.path.hosts)))
        self._verify(names)
        return names

    def _verify(self, names: Sequence[str]) -> None:
        """Each party checks its own."""
        for name in names:
            self.trainer.parties.with_service(name).verify([name])

    def _ensure_hosts(self, path: InferencePath) -> None:
        """Have the random-weight control of a host made where the host is, when a path first asks for it."""
        for name in path.hosts:
            if name not in self.placement and name.endswith(RANDOM_SUFFIX):
                host = name.removesuffix(RANDOM_SUFFIX)
                sees_images = host in self.services or self.config.recipe.fit_entry
                images = self.trainer.data.train.head(CALIBRATION_IMAGES).images if sees_images else None
                self.trainer.parties.with_service(host).make_random(host, self.config.seed, images)
                self.placement[name] = self.placement[host]


@lru_cache(maxsize=1)
def _worker(config_json: str, profile_json: str, stores_dir: str, teacher: bytes | None, original_classes: bytes) -> Worker:
    config, profile = SearchConfig.model_validate_json(config_json), Profile.model_validate_json(profile_json)
    return Worker(config, profile, Path(stores_dir), teacher, original_classes, start_parties(config, profile))


class PathTrial(tune.Trainable):
    """The trainable: its config holds jobs to do together. A step goes to the next rung of a training, or to the end. Actors are
    reused between trials.
    """

    def setup(self, config: dict[str, Any], settings: dict[str, Any] | None = None) -> None:
        """Load services and data, or find them loaded by the trial before."""
        assert settings is not None
        self._settings = settings
        self._config = config
        self._training: Iterator[Rung | Outcome] | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next jobs in the same process."""
        self._config = new_config
        self._training = None
        return True

    def step(self) -> dict[str, Any]:
        """Go on. What went wrong for a reason we know comes back as text: Tune would only keep its traceback."""
        try:
            outcomes = self._go_on()
        except (ArtifactError, ServiceError) as error:
            # Tune stops the whole run where a result lacks the metric.
            return {"accuracy": float("nan"), "fatal": str(error), "fatal_kind": type(error).__name__, "done": True}
        except CodeRayError as error:
            outcomes = [{"failure": str(error)}] * len(self._config["jobs"])
        if isinstance(outcomes, Rung):
            return {"accuracy": outcomes.record["accuracy"], "rung": json.dumps(outcomes.record), "done": False}
        best = max((outcome["record"]["accuracy"] for outcome in outcomes if "record" in outcome), default=float("nan"))
        # As text: Tune flattens nested results and loses empty ones.
        return {"accuracy": best, "outcomes": json.dumps(outcomes), "done": True}

    def _go_on(self) -> Rung | list[Outcome]:
        worker = _worker(*(self._settings[name] for name in ("config", "profile", "stores_dir", "teacher", "original_classes")))
        if self._training is None:
            blocks = worker.services[worker.config.local].num_blocks
            jobs = [Job.from_config(job, blocks) for job in self._config["jobs"]]
            if jobs[0].fidelity == "fit":
                return worker.score(jobs)
            self._training = worker.train(jobs[0])
        found = next(self._training)
        return found if isinstance(found, Rung) else [found]

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to keep: the results go to the journal."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to restore."""
