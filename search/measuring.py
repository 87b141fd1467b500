"""What the paths of a plan answer to images: on validation data to watch them by, on test data to judge them (DESIGN 2.5)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from code_ray.canaries import COUNT, Canaries, save_canaries
from code_ray.data import Split
from code_ray.gating import confidence
from code_ray.party import Party
from code_ray.path import InferencePath
from code_ray.plan import Plan
from code_ray.policy import ORIGINAL
from code_ray.relay import Relay
from code_ray.runner import Payload
from code_ray.training import Trainer
from search.problem import Problem

AGREEMENT_IMAGES = 1000
"""Validation images on which paths are compared with the original: routers watch for less agreement than there."""

Hits = Mapping[InferencePath, npt.NDArray[np.bool_]]
"""Which test images a path gets right."""


def measure_test(problem: Problem, plan: Plan, parties: Mapping[str, Party]) -> Hits:
    """Which test images each path of the plan gets right: the only use of test data, after everything is chosen. ``parties``: by provider,
    those whose services are not here.
    """
    test = problem.data.test.head(problem.config.test_samples)
    answers = _answers(plan, _logits(problem, plan, parties, test, problem.config.payload))
    return {plan.inference_path(planned): answers[planned.id].argmax(1) == test.labels for planned in plan.paths}


def with_answers(problem: Problem, plan: Plan, parties: Mapping[str, Party]) -> Plan:
    """``plan``, with what its paths answer to validation images: how often each chooses the original's class, and canaries, written
    beside it.
    """
    split = problem.data.validation.head(AGREEMENT_IMAGES)
    plain = _logits(problem, plan, parties, split, problem.config.payload)
    answers = _answers(plan, plain)
    original = answers[ORIGINAL].argmax(1)
    shares = [float((answers[planned.id].argmax(1) == original).mean()) for planned in plan.paths]
    paths = [planned.model_copy(update={"agreement": share}) for planned, share in zip(plan.paths, shares, strict=True)]
    canaries = Canaries(split.images[:COUNT], {links: found[:COUNT] for links, found in plain.items()})
    return plan.model_copy(update={"paths": tuple(paths), "canaries": save_canaries(canaries, problem.run.canaries_file)})


def payload_costs(problem: Problem, plan: Plan, parties: Mapping[str, Party]) -> dict[str, float] | None:
    """Points of validation accuracy that each path of the plan loses by what its activations cross in, by its text; None where the
    configuration lets them cross as they are.
    """
    payload, split = problem.config.payload, problem.data.validation
    if payload is None:
        return None
    asked = plan.model_copy(update={"paths": tuple(planned for planned in plan.paths if planned.payload or planned.id == ORIGINAL)})
    plain, carried = (_answers(asked, _logits(problem, asked, parties, split, crossing)) for crossing in (None, payload))
    right = {planned.path: [found[planned.id].argmax(1) == split.labels for found in (plain, carried)] for planned in asked.paths[1:]}
    return {path: 100 * float(before.mean() - after.mean()) for path, (before, after) in right.items()}


def _logits(
    problem: Problem, plan: Plan, parties: Mapping[str, Party], split: Split, payload: Payload | None
) -> dict[str, npt.NDArray[np.float32]]:
    """What each path of the plan answers to the images of ``split`` before its gate, by the id of its links; activations cross as
    ``payload`` says. Each party takes the links that live with it from its own store.
    """
    config, modes = problem.config, problem.profile.mode_of
    trainer = Trainer(problem.services, plan.local, problem.data, plan.placement, modes, config.recipe, parties=parties, payload=payload)
    found: dict[str, npt.NDArray[np.float32]] = {}
    for planned in plan.paths:
        if planned.links_id not in found:
            relay = Relay(trainer.parties, plan.inference_path(planned).plain, config.seed)
            relay.load(planned.links_id, planned.link_hashes, str(problem.run.stores_dir.resolve()))
            found[planned.links_id] = relay.logits(split.images)
    return found


def _answers(plan: Plan, plain: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
    """What each path answers behind its gate, by id: where it is not sure, what the original does."""
    answers = {}
    for planned in plan.paths:
        found = plain[planned.links_id]
        if planned.threshold is not None:
            found = np.where((confidence(found) < planned.threshold)[:, None], plain[ORIGINAL], found)
        answers[planned.id] = found
    return answers
