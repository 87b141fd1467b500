"""One Tune trial: train or fit the links of one path in a worker that stays warm."""

from __future__ import annotations

import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from ray import tune

from code_ray.controls import RANDOM_SUFFIX, random_host
from code_ray.data import load_data
from code_ray.errors import ArtifactError, CodeRayError, ServiceError
from code_ray.path import InferencePath
from code_ray.plan import path_id, save_links
from code_ray.profiling import Profile
from code_ray.training import Trainer
from search.campaign import Job
from search.config import SearchConfig
from search.problem import load_services

CALIBRATION_IMAGES = 512


class Worker:
    """What a worker process keeps between trials: services, data, cached activations."""

    def __init__(self, config: SearchConfig, profile: Profile, stores_dir: Path) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.stores_dir = stores_dir
        self.services = load_services(config)
        self.placement = dict(config.placement)
        data = load_data(config.data)
        device = "cuda" if config.gpus_per_trial > 0 and torch.cuda.is_available() else "cpu"
        self.trainer = Trainer(self.services, config.local, data, self.placement, profile.mode_of, config.recipe, device)

    def run(self, job: Job) -> dict[str, Any]:
        """Do one job; the record holds accuracies, seconds, link hashes, and when it ran (seconds since 1970).

        Raises:
            IntegrityError: where a frozen block changed before or during training.
            ArtifactError: where the links cannot be written.
            LinkError: where the links cannot be built or fitted.
        """
        started = time.time()
        self._ensure_hosts(job.path)
        involved = [self.services[name] for name in (job.path.local, *job.path.hosts)]
        for service in involved:
            service.verify()
        trained = self.trainer.train_path(job.path, job.seed, fit_only=job.fidelity == "fit")
        for service in involved:
            service.verify()
        hashes: dict[str, str] = {}
        if job.role == "search" and job.fidelity == "trained":
            hashes = save_links(job.path, path_id(job.path, self.services), trained.links, self.placement, self.stores_dir)
        return {
            "accuracy": trained.accuracy,
            "accuracy_fit": trained.accuracy_fit,
            "seconds": trained.seconds,
            "link_hashes": hashes,
            "started": started,
            "finished": time.time(),
        }

    def _ensure_hosts(self, path: InferencePath) -> None:
        """Make the random-weight control of a host when a path first asks for it."""
        for name in path.hosts:
            if name not in self.services and name.endswith(RANDOM_SUFFIX):
                host = name.removesuffix(RANDOM_SUFFIX)
                images = self.trainer.data.train.head(CALIBRATION_IMAGES).images
                self.services[name] = random_host(self.services[host], images, self.config.seed)
                self.placement[name] = self.placement[host]


@lru_cache(maxsize=1)
def _worker(config_json: str, profile_json: str, stores_dir: str) -> Worker:
    return Worker(SearchConfig.model_validate_json(config_json), Profile.model_validate_json(profile_json), Path(stores_dir))


class PathTrial(tune.Trainable):
    """The trainable: its config is a ``Job``; one ``step`` does all of it. Actors are reused between jobs."""

    def setup(self, config: dict[str, Any], settings: dict[str, str] | None = None) -> None:
        """Load services and data, or find them loaded by the trial before."""
        assert settings is not None
        self._settings = settings
        self._job = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next job in the same process."""
        self._job = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Run the job. What went wrong for a reason we know comes back as text: Tune would only keep its traceback."""
        try:
            worker = _worker(self._settings["config"], self._settings["profile"], self._settings["stores_dir"])
            job = Job.from_config(self._job, worker.services[worker.config.local].num_blocks)
            record = worker.run(job)
            # As text: Tune flattens nested results and loses empty ones.
            return {"accuracy": record["accuracy"], "record": json.dumps(record), "done": True}
        except (ArtifactError, ServiceError) as error:
            return {**_no_result("fatal", error), "fatal_kind": type(error).__name__}
        except CodeRayError as error:
            return _no_result("failure", error)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to keep: a trial is one step, and its result goes to the journal."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to restore."""


def _no_result(kind: str, error: CodeRayError) -> dict[str, Any]:
    # Tune stops the whole run where a result lacks the metric.
    return {"accuracy": float("nan"), kind: str(error), "done": True}
