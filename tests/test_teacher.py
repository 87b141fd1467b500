"""The original's logits, which every worker distils from: computed once, kept, and refused where they are not what they should be."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_known import BASE
from trained import train_path

from code_ray.artifact import RunDirectory
from code_ray.errors import ArtifactError
from code_ray.path import path_from_vector
from code_ray.training import Trainer
from search.config import SearchConfig
from search.problem import Problem, load_inputs, prepare, teacher_logits

PATH = path_from_vector((1, 4), "alexnet-digits", 6)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    config = SearchConfig.model_validate(BASE)
    run = RunDirectory.create(tmp_path_factory.mktemp("teacher") / "run", config.model_dump(mode="json"))
    return prepare(config, load_inputs(config), run, lambda _: None)


@pytest.fixture
def problem(prepared: Problem, tmp_path: Path) -> Problem:
    """``prepared``, with a run directory in which no logits are yet."""
    return replace(prepared, run=RunDirectory(tmp_path))


def make_trainer(problem: Problem, teacher: torch.Tensor | None) -> Trainer:
    config = problem.config
    return Trainer(problem.services, config.local, problem.data, config.placement, problem.profile.mode_of, config.recipe, "cpu", teacher)


def test_links_distilled_from_kept_logits_are_those_distilled_from_the_blocks(problem: Problem) -> None:
    links = [
        train_path(make_trainer(problem, teacher), PATH, seed=0).links["link0"].state_dict()
        for teacher in (None, torch.from_numpy(teacher_logits(problem)))
    ]
    assert all(torch.equal(links[0][name], links[1][name]) for name in links[0])


def test_other_logits_teach_other_links(problem: Problem) -> None:
    kept = torch.from_numpy(teacher_logits(problem))
    first, second = (
        train_path(make_trainer(problem, teacher), PATH, seed=0).links["link0"].state_dict() for teacher in (kept, kept.flip(1))
    )
    assert not any(torch.equal(first[name], second[name]) for name in first)


def test_they_are_computed_once_for_a_run_directory(problem: Problem) -> None:
    logits = teacher_logits(problem)
    np.save(problem.run.teacher_file, logits + 1)
    assert np.array_equal(teacher_logits(problem), logits + 1)
    assert [file.name for file in problem.run.root.iterdir()] == ["teacher.npy"]


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _save(value: Any) -> Callable[[Path], None]:
    return lambda file: np.save(file, value)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (_cut, "is damaged"),
        (lambda file: file.write_bytes(b""), "is damaged"),
        (lambda file: file.write_bytes(b"{}"), "is damaged"),
        (_save(np.array([{"a": 1}], object)), "is damaged"),
        (_save(np.zeros((199, 10), np.float32)), r"holds float32 \(199, 10\), not float32 \(200, 10\)"),
        (_save(np.zeros((200, 10))), r"holds float64 \(200, 10\), not float32 \(200, 10\)"),
    ],
    ids=["truncated", "empty", "not an array", "pickled", "other shape", "other dtype"],
)
def test_a_file_that_cannot_be_used_is_an_error_that_says_so(damage: Callable[[Path], None], complaint: str, problem: Problem) -> None:
    teacher_logits(problem)
    damage(problem.run.teacher_file)
    with pytest.raises(ArtifactError, match=rf"teacher\.npy {complaint}.*; delete it to compute it again"):
        teacher_logits(problem)
