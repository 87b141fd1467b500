"""The rival that needs no path: small networks of the local service's own, gated, in the same programme as the paths (DESIGN 4)."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from code_ray.distillation import CHANNELS, distil
from code_ray.gating import make_gates
from code_ray.objective import Known
from code_ray.path import InferencePath, Segment
from code_ray.throughput import PathCost
from code_ray.training import Trainer
from search.problem import Problem, teacher_logits

ROLE = "distilled"
"""Of its records in the journal, which are of no path."""


def train_distilled(problem: Problem) -> None:
    """Train and measure those networks that the journal does not know. Where the service takes neither maps nor tokens there are none."""
    config, journal = problem.config, problem.run.journal
    done = {record["channels"] for record in journal.records() if record["role"] == ROLE}
    taken = problem.services[config.local].boundaries[0]
    if (len(taken.shape) != 3 and taken.vocabulary is None) or not config.distilled_epochs or done >= set(CHANNELS):
        return
    teacher = torch.from_numpy(teacher_logits(problem))
    trainer = Trainer(
        problem.services, config.local, problem.data, config.placement, problem.profile.mode_of, config.recipe, teacher=teacher
    )
    labels = problem.data.validation.labels
    for channels in sorted(set(CHANNELS) - done):
        network = distil(trainer, channels, config.seed, config.distilled_epochs)
        gates = make_gates(network.logits, problem.original_classes, labels, config.rerun_shares)
        record: dict[str, Any] = {"role": ROLE, "path": str(_path(problem, channels)), "channels": channels}
        record |= {"accuracy": float((network.logits.argmax(1) == labels).mean()), "gates": [asdict(gate) for gate in gates]}
        record |= {"seconds_an_image": network.seconds, "parameters": network.parameters, "seconds": network.training_seconds}
        journal.append(record)


def distilled_paths(problem: Problem) -> Known:
    """Cost and validation accuracy of the networks that the journal knows, and of each behind its gates, as if they were paths."""
    config, found = problem.config, dict[InferencePath, tuple[PathCost, float]]()
    provider, original = config.placement[config.local], problem.plan_objective.original_seconds
    for record in problem.run.journal.records():
        if record["role"] == ROLE:
            plain = _path(problem, record["channels"])
            seconds = record["seconds_an_image"]
            found[plain] = PathCost({provider: seconds}), record["accuracy"]
            for gate in record["gates"]:
                gated = replace(plain, rerun=gate["rerun"])
                found[gated] = PathCost({provider: seconds + gate["rerun"] * original}), gate["accuracy"]
    return found


def _path(problem: Problem, channels: int) -> InferencePath:
    """A network in the guise of a path, so that it may stand in the programme."""
    local = problem.config.local
    return InferencePath(problem.services[local].num_blocks, (Segment(f"{local}-distilled-{channels}", 0, 1),))
