"""Measure what a job of the experiments asks for, in one process on one core."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.experiments.config import Experiments
from benchmarks.experiments.hosts import load_services
from benchmarks.experiments.quantised import int8_rival
from benchmarks.experiments.sample import Sample
from benchmarks.jobs import Job, JobTrial, Record
from code_ray.blocks import ExecutionMode
from code_ray.controls import RANDOM_SUFFIX, random_host
from code_ray.data import DataSet, Split, load_data
from code_ray.distillation import SmallNetwork, distil
from code_ray.gating import confidence
from code_ray.path import InferencePath, original_path, parse_path
from code_ray.profiling import measure_profile, supports_bf16, time_modules
from code_ray.recipe import Recipe
from code_ray.service import Service
from code_ray.training import LinkTraining, Trainer
from search.trial import CALIBRATION_IMAGES

RERUN_PERCENT = (5, 10, 20, 40)
BATCH_SIZES = (32, 64)


class Worker:
    """Trains and times; keeps what paths that begin alike have in common."""

    def __init__(self, config: Experiments, hosts: Path) -> None:
        torch.set_num_threads(1)
        self.config = config
        self.services = load_services(config, hosts, print)
        self.sample = Sample(config, {name: service.num_blocks for name, service in self.services.items()})
        whole = load_data(config.data)
        self.data = replace(whole, validation=whole.validation.head(config.validation_images), test=whole.test.head(config.test_images))
        self.mode = ExecutionMode("bfloat16" if supports_bf16() else "float32", channels_last=True)
        self.original = original_path(config.local, self.sample.blocks)
        self._trainer: tuple[tuple[int, float], Trainer] | None = None
        self._randoms: dict[int, list[Service]] = {}
        self._activations: Any = None
        self.chosen = self._original_classes()

    def run(self, job: Job) -> list[Record]:
        """The records of a job."""
        if job["kind"] == "original":
            return [{"record": "original"} | {f"accuracy_{split}": self.accuracy(split) for split in ("validation", "test")}]
        if job["kind"] == "time":
            return self._times(job["seed"])
        if job["kind"] == "rival":
            return [{"record": "rival", "name": job["name"], "seed": job["seed"], **self._rival(job["name"], job["seed"])}]
        trainer = self.trainer_of(job["seed"], job["scale"])
        return [self._train(trainer, parse_path(path, self.sample.blocks), job["seed"], job["scale"]) for path in job["paths"]]

    def _new_trainer(self, services: dict[str, Service], recipe: Recipe, data: DataSet | None = None) -> Trainer:
        placement = {name: name.removesuffix(RANDOM_SUFFIX) for name in services}
        return Trainer(services, self.config.local, data or self.data, placement, lambda _: self.mode, recipe)

    def trainer_of(self, seed: int, scale: float) -> Trainer:
        """By the recipe, at a scale of its learning rate. Random hosts draw other weights at every seed."""
        if self._trainer is None or self._trainer[0] != (seed, scale):
            images, config = self.data.train.images[:CALIBRATION_IMAGES], self.config
            hosts = [config.random, *([config.other.host] if config.other else [])]
            if seed not in self._randoms:
                self._randoms = {seed: [random_host(self.services[host], images, seed) for host in hosts]}
            randoms = self._randoms[seed]
            rates = {name: getattr(config.recipe, name) * scale for name in ("learning_rate", "joint_learning_rate")}
            trainer = self._new_trainer(self.services | {r.name: r for r in randoms}, config.recipe.model_copy(update=rates))
            # What the original says to training images depends on neither.
            self._activations = trainer.activations = self._activations or trainer.activations
            self._trainer = (seed, scale), trainer
        return self._trainer[1]

    def _train(self, trainer: Trainer, path: InferencePath, seed: int, scale: float) -> Record:
        started = time.monotonic()
        training = LinkTraining(trainer, path, seed)
        training.fit()
        training.advance(trainer.recipe.total_steps)
        seconds = time.monotonic() - started
        logits = {split: training.logits(split) for split in ("validation", "test")}
        row: Record = {"record": "training", "path": str(path), "seed": seed, "scale": scale, "seconds": seconds}
        row["parameters"] = sum(p.numel() for link in training.links.values() for p in link.parameters())
        for split, answers in logits.items():
            row[f"accuracy_{split}"] = float((answers.argmax(1) == getattr(self.data, split).labels).mean())
        return row | self._gated(logits)

    def _gated(self, logits: dict[str, Any]) -> Record:
        """Test accuracy behind gates whose thresholds were set on validation images, and the share that they really ran again."""
        row: Record = {}
        for percent in RERUN_PERCENT:
            again = confidence(logits["test"]) < np.quantile(confidence(logits["validation"]), percent / 100)
            chosen = np.where(again, self.chosen["test"], logits["test"].argmax(1))
            row[f"gated_{percent}"] = float((chosen == self.data.test.labels).mean())
            row[f"rerun_{percent}"] = float(again.mean())
        return row

    def _original_classes(self) -> dict[str, Any]:
        trainer = self._new_trainer(self.services, self.config.recipe)
        parts = {"validation": self.data.validation, "test": self.data.test}
        return {name: trainer.logits(self.original, {}, split).argmax(1) for name, split in parts.items()}

    def _times(self, seed: int) -> list[Record]:
        placement = {name: name for name in self.services}
        paths = [self.original, *self.sample.timed()]
        profile = measure_profile(paths, self.services, placement, batch_sizes=BATCH_SIZES)
        rows: list[Record] = []
        for path in paths:
            cost = profile.cost(path, self.services)
            times = {"tau_local_ms": 1e3 * cost.at(self.config.local), "tau_host_ms": 1e3 * cost.elsewhere(self.config.local)}
            rows.append({"record": "time", "path": str(path), "seed": seed, **times})
        modes = {name: str(execution.mode) for name, execution in profile.executions.items()}
        return [{**row, "mode": modes[self.config.local]} for row in rows]

    def _rival(self, name: str, seed: int) -> Record:
        local = self.services[self.config.local]
        if name == "int8":
            return int8_rival(local, self.data, seed)
        if name == "float32":
            mode = ExecutionMode("float32", channels_last=True)
            seconds = min(time_modules(list(local.blocks), local.boundaries[0], mode, size) for size in BATCH_SIZES)
            return {"tau_local_ms": 1e3 * seconds}
        network = self.distilled(int(name.rpartition("-")[2]), seed)
        cut = len(self.data.validation)
        logits = {"validation": network.logits[:cut], "test": network.logits[cut:]}
        row: Record = {"seconds": network.training_seconds, "tau_local_ms": 1e3 * network.seconds, "parameters": network.parameters}
        for split, answers in logits.items():
            row[f"accuracy_{split}"] = float((answers.argmax(1) == getattr(self.data, split).labels).mean())
        return row | self._gated(logits)

    def distilled(self, channels: int, seed: int) -> SmallNetwork:
        """A small network of the local service's, which answers the validation images and then the test images."""
        local, recipe = self.services[self.config.local], self.config.recipe.model_copy(update={"samples": self.config.rival_samples})
        # It answers one split: both parts of this one are asked together, and nothing is chosen by either.
        parts = (self.data.validation, self.data.test)
        asked = Split(*(np.concatenate([getattr(part, field) for part in parts]) for field in ("images", "labels", "indices")))
        return distil(self._new_trainer({local.name: local}, recipe, replace(self.data, validation=asked)), channels, seed)

    def accuracy(self, split: str) -> float:
        """Of the original, a fraction."""
        return float((self.chosen[split] == getattr(self.data, split).labels).mean())


@lru_cache(maxsize=1)
def _worker(config: str, hosts: str) -> Worker:
    return Worker(Experiments.model_validate_json(config), Path(hosts))


class ExperimentTrial(JobTrial):
    """A job of the experiments."""

    def measure(self, settings: dict[str, Any], job: Job) -> list[Record]:
        return _worker(**settings).run(job)
