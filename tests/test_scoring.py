"""Scores: what is shared between paths changes nothing, and they are what least-squares links reach (DESIGN 3.4)."""

import pytest
import torch
from test_training import CROSS, PATHS, PLACEMENT, SHORT

from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.path import InferencePath, original_path, path_from_vector
from code_ray.scoring import Scorer
from code_ray.service import Service
from code_ray.training import LinkTraining, Trainer


@pytest.fixture
def trainer(tiny_services: dict[str, Service], digits: DataSet) -> Trainer:
    return Trainer(tiny_services, "tiny", digits, PLACEMENT, lambda _: ExecutionMode(), SHORT)


def test_paths_scored_together_score_as_they_do_alone(trainer: Trainer) -> None:
    more = [path_from_vector((1, 2, hout, lin), "tiny", 6, "host", 6) for hout in (2, 3, 4, 5) for lin in (2, 3, 5)]
    paths = list(dict.fromkeys([*PATHS, *more]))
    together = Scorer(trainer).score(paths)
    assert set(together) == set(paths)
    for path in paths:
        alone = Scorer(trainer).score([path])[path]
        assert together[path].divergence == pytest.approx(alone.divergence, rel=1e-3, abs=1e-5), path
        assert together[path].explained == pytest.approx(alone.explained, rel=1e-3, abs=1e-4), path


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_score_is_the_accuracy_of_least_squares_links(path: InferencePath, trainer: Trainer) -> None:
    training = LinkTraining(trainer, path, seed=0)
    training.fit()
    # Sums in another order may turn an image or two.
    assert Scorer(trainer).score([path])[path].accuracy == pytest.approx(training.screen_accuracy(), abs=0.01)


def test_the_original_diverges_from_itself_by_nothing(trainer: Trainer) -> None:
    score = Scorer(trainer).score([original_path("tiny", 6)])[original_path("tiny", 6)]
    assert score.divergence == pytest.approx(0, abs=1e-6)
    assert score.explained == 1.0


def test_a_host_that_may_not_see_images_is_not_shown_them(tiny_services: dict[str, Service], digits: DataSet) -> None:
    closed = Trainer(tiny_services, "tiny", digits, PLACEMENT, lambda _: ExecutionMode(), SHORT.model_copy(update={"fit_entry": False}))
    torch.manual_seed(0)
    shown, hidden = (
        Scorer(t).score([CROSS])[CROSS]
        for t in (Trainer(tiny_services, "tiny", digits, PLACEMENT, lambda _: ExecutionMode(), SHORT), closed)
    )
    assert shown.divergence != hidden.divergence
