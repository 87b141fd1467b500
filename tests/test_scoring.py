"""Scores: what is shared between paths changes nothing, and they are what least-squares links reach (DESIGN 3.4)."""

import dataclasses

import pytest
import torch
from torch import nn
from trained import CROSS, PATHS, apart, make_small_services, tiny_trainer

from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.path import InferencePath, original_path, path_from_vector
from code_ray.recipe import Recipe
from code_ray.runner import PathRunner
from code_ray.scoring import EXPLAINED_SAMPLES, Score, Scorer
from code_ray.service import Service
from code_ray.training import LinkTraining, Trainer
from code_ray.zoo import get_service

ORIGINAL = original_path("tiny", 6)
MANY = list(
    dict.fromkeys(
        [
            *PATHS,
            *(path_from_vector((1, 2, hout, lin), "tiny", 6, "host", 6) for hout in (2, 3, 4, 5) for lin in (2, 3, 5)),
            *(path_from_vector((2, hin, 5), "tiny", 6, "host", 6) for hin in (5, 1, 3)),
            ORIGINAL,
        ]
    )
)
"""Links from the same place to many, into blocks near and far of both services, in no order."""


@pytest.fixture(scope="module")
def small_services(digits: DataSet) -> dict[str, Service]:
    return make_small_services(digits)


@pytest.fixture
def trainer(small_services: dict[str, Service], digits: DataSet) -> Trainer:
    return tiny_trainer(small_services, digits)


def values(score: Score) -> tuple[float, ...]:
    """What a score says of its path: all but the seconds."""
    return dataclasses.astuple(dataclasses.replace(score, seconds=0.0))


def test_paths_scored_together_score_as_they_do_alone(trainer: Trainer) -> None:
    together = Scorer(trainer).score(MANY)
    assert set(together) == set(MANY)
    assert min(together[path].divergence for path in MANY if path != ORIGINAL) > 1e-3  # far above the bounds below
    for path in MANY:
        alone = Scorer(trainer).score([path])[path]
        assert together[path].accuracy == pytest.approx(alone.accuracy, abs=0.01), path
        assert together[path].loss_points == pytest.approx(alone.loss_points, abs=1), path
        assert together[path].divergence == pytest.approx(alone.divergence, rel=1e-3, abs=1e-5), path
        assert together[path].explained == pytest.approx(alone.explained, rel=1e-3, abs=1e-4), path


def test_the_order_of_a_batch_does_not_matter(trainer: Trainer) -> None:
    first = Scorer(trainer).score(MANY)
    shuffled = Scorer(trainer).score([MANY[int(i)] for i in torch.randperm(len(MANY), generator=torch.Generator().manual_seed(0))])
    assert {path: values(score) for path, score in first.items()} == {path: values(score) for path, score in shuffled.items()}


def test_what_was_scored_before_does_not_matter(trainer: Trainer) -> None:
    used = Scorer(trainer)
    used.score(MANY[3:])
    used.score(MANY[5:8])
    again, fresh = used.score(MANY[:6]), Scorer(trainer).score(MANY[:6])
    assert {path: values(score) for path, score in again.items()} == {path: values(score) for path, score in fresh.items()}


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_score_is_the_accuracy_of_least_squares_links(path: InferencePath, trainer: Trainer) -> None:
    training = LinkTraining(trainer, path, seed=0)
    training.fit()
    # Sums in another order may turn an image or two.
    assert Scorer(trainer).score([path])[path].accuracy == pytest.approx(training.screen_accuracy(), abs=0.01)


def explained_by_hand(path: InferencePath, trainer: Trainer) -> float:
    """Of what the block behind the last link expects, computed from the images, the share that the link makes."""
    training = LinkTraining(trainer, path, seed=0)
    training.fit()
    images = trainer.data.validation.images[:EXPLAINED_SAMPLES]
    legs, _ = apart(path)
    reaching = PathRunner(legs, trainer.services, training.links, trainer.modes)(trainer.local.preprocess(images))
    slot = path.link_slots[-1]
    target = trainer.services[slot.target[0]]
    with torch.inference_mode():
        made = training.links[slot.key](reaching)
        wanted = nn.Sequential(*target.blocks[: slot.target[1]])(target.preprocess(images))
    return 1 - float((made - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


def test_links_are_fitted_to_and_judged_by_what_the_blocks_behind_them_expect(small_services: dict[str, Service], digits: DataSet) -> None:
    # More images than the fit of a convolution looks at, fewer than that of a linear link does: targets of two lengths.
    trainer = tiny_trainer(small_services, digits, samples=400, fit_samples=400)
    scores = Scorer(trainer).score(MANY)
    for path in MANY:
        if path != ORIGINAL:
            assert scores[path].explained == pytest.approx(explained_by_hand(path, trainer), rel=1e-3, abs=1e-4), path


def test_points_are_lost_against_the_original_on_the_same_images(digits: DataSet) -> None:
    service = get_service("alexnet-digits")
    recipe = Recipe(samples=256, fit_samples=64, screen_samples=40)
    trainer = Trainer({service.name: service}, service.name, digits, {service.name: "a"}, lambda _: ExecutionMode(), recipe)
    original = original_path(service.name, service.num_blocks)
    paths = [original, *(path_from_vector(vector, service.name, service.num_blocks) for vector in ((1, 5), (2, 5), (3,)))]
    same_images, all_images = (trainer.accuracy(original, {}, split) for split in (digits.validation.head(40), digits.validation))
    assert same_images != all_images  # else the test could not tell one from the other
    scores = Scorer(trainer).score(paths)
    for score in scores.values():
        assert score.loss_points == pytest.approx(100 * (same_images - score.accuracy), abs=1e-4)
    assert scores[original].loss_points == pytest.approx(0, abs=1e-4)
    assert scores[paths[1]].loss_points > 1


def test_the_original_diverges_from_itself_by_nothing(trainer: Trainer) -> None:
    score = Scorer(trainer).score([ORIGINAL])[ORIGINAL]
    assert score.divergence == pytest.approx(0, abs=1e-6)
    assert score.explained == 1.0


def test_a_host_that_may_not_see_images_is_not_shown_them(trainer: Trainer, small_services: dict[str, Service], digits: DataSet) -> None:
    torch.manual_seed(0)
    shown, hidden = (Scorer(t).score([CROSS])[CROSS] for t in (trainer, tiny_trainer(small_services, digits, fit_entry=False)))
    assert shown.divergence != hidden.divergence
