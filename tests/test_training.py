"""Training: only links learn, they start from a fit, and the same seed gives the same links to the bit (DESIGN 3.4)."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional
from trained import CROSS, PATHS, SHORT, TrainedPath, make_service, make_small_services, tiny_trainer, train_path

from code_ray import link_inputs
from code_ray.blocks import ExecutionMode, content_hash
from code_ray.data import DataSet, Split
from code_ray.descent import WARM_UP_STEPS
from code_ray.links import Link
from code_ray.path import InferencePath, original_path, path_from_vector
from code_ray.recipe import Recipe
from code_ray.runner import make_links
from code_ray.service import Service
from code_ray.training import LinkTraining, Trainer
from code_ray.zoo import get_service

MakeTrainer = Callable[..., Trainer]


@pytest.fixture(scope="module")
def small_services(digits: DataSet) -> dict[str, Service]:
    return make_small_services(digits)


@pytest.fixture
def make_trainer(small_services: dict[str, Service], digits: DataSet) -> MakeTrainer:
    """A new trainer of the small services, see ``tiny_trainer``."""

    def make(mode: ExecutionMode | None = None, services: Mapping[str, Service] = small_services, **changes: Any) -> Trainer:
        return tiny_trainer(services, digits, mode, **changes)

    return make


def weights(links: Mapping[str, Link]) -> list[Tensor]:
    return [tensor.detach().clone() for key in sorted(links) for tensor in links[key].state_dict().values()]


def same(a: Mapping[str, Link], b: Mapping[str, Link]) -> bool:
    """Whether two sets of links are equal to the bit."""
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def logits_by_hand(path: InferencePath, services: Mapping[str, Service], links: Mapping[str, Link], value: Tensor) -> Tensor:
    """Blocks and links of a path one after another."""
    with torch.inference_mode():
        for index, segment in enumerate(path.segments):
            for block in services[segment.service].blocks[segment.start : segment.stop]:
                value = block(value)
            if f"link{index}" in links:
                value = links[f"link{index}"](value)
    return value


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_same_seed_gives_the_same_links_to_the_bit(path: InferencePath, make_trainer: MakeTrainer) -> None:
    first, again = (train_path(make_trainer(), path, seed=3) for _ in range(2))
    assert same(first.links, again.links)
    assert (first.accuracy_fit, first.accuracy) == (again.accuracy_fit, again.accuracy)
    assert list(first.links) == [slot.key for slot in path.link_slots]


def test_what_was_trained_before_does_not_change_the_links(make_trainer: MakeTrainer) -> None:
    used, fresh = make_trainer(), make_trainer()
    for path in PATHS[1:4]:
        train_path(used, path, seed=0)
    assert same(train_path(used, CROSS, seed=3).links, train_path(fresh, CROSS, seed=3).links)


def test_another_seed_gives_other_links(make_trainer: MakeTrainer) -> None:
    assert not same(train_path(make_trainer(), CROSS, seed=0).links, train_path(make_trainer(), CROSS, seed=1).links)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_training_leaves_every_block_of_every_service_as_it_was(
    path: InferencePath, make_trainer: MakeTrainer, small_services: dict[str, Service]
) -> None:
    train_path(make_trainer(), path, seed=0)
    for service in small_services.values():
        service.verify()
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in service.blocks.parameters())


def test_fit_only_takes_no_step(make_trainer: MakeTrainer) -> None:
    fitted = train_path(make_trainer(), CROSS, seed=3, fit_only=True)
    no_steps = train_path(make_trainer(steps=0, joint_steps=0), CROSS, seed=3)
    trained = train_path(make_trainer(), CROSS, seed=3)
    assert same(fitted.links, no_steps.links)
    assert not same(fitted.links, trained.links)
    assert fitted.accuracy == fitted.accuracy_fit == trained.accuracy_fit


def test_steps_train_the_last_link_alone_and_joint_steps_all_links(make_trainer: MakeTrainer) -> None:
    fitted, last, joint = (train_path(make_trainer(steps=s, joint_steps=j), CROSS, seed=3).links for s, j in ((0, 0), (4, 0), (0, 4)))
    changed = [[content_hash(links[key]) != content_hash(fitted[key]) for key in ("link0", "link1")] for links in (last, joint)]
    assert changed == [[False, True], [True, True]]


def longest_step(training: LinkTraining) -> float:
    """How far the next batch moves a weight at most, in learning rates of 1e-3."""
    before = weights(training.links)
    training.advance(training.steps + 1)
    return max(float((a - b).abs().max()) for a, b in zip(before, weights(training.links), strict=True)) / 1e-3


@pytest.mark.parametrize("phase", ["steps", "joint_steps"])
def test_the_learning_rate_warms_up_from_the_fit_and_ends_near_zero(phase: str, make_trainer: MakeTrainer) -> None:
    rates = {"learning_rate": 1e-3, "joint_learning_rate": 1e-3}
    training = LinkTraining(make_trainer(**{"steps": 0, "joint_steps": 0, phase: 4 * WARM_UP_STEPS}, **rates), CROSS, seed=3)
    training.fit()
    # AdamW's first step is as long as its learning rate, whatever the gradient.
    assert longest_step(training) == pytest.approx(1 / WARM_UP_STEPS, rel=0.05)
    training.advance(WARM_UP_STEPS)
    assert longest_step(training) > 5 / WARM_UP_STEPS
    training.advance(4 * WARM_UP_STEPS - 1)
    assert longest_step(training) < 0.1 / WARM_UP_STEPS


def test_a_fit_on_all_links_does_not_depend_on_the_seed(make_trainer: MakeTrainer) -> None:
    first, second = (train_path(make_trainer(), CROSS, seed=seed, fit_only=True) for seed in (0, 1))
    assert same(first.links, second.links)


@pytest.mark.parametrize("vector", [(1, 2, 4, 5), (1, 1, 4, 5)], ids=["into a block", "into the input"])
def test_without_fit_entry_a_link_into_a_host_starts_at_random(
    vector: tuple[int, ...], make_trainer: MakeTrainer, small_services: dict[str, Service]
) -> None:
    path = path_from_vector(vector, "tiny", 6, "host", 6)
    links = train_path(make_trainer(fit_entry=False), path, seed=3, fit_only=True).links
    torch.manual_seed(3)
    random = make_links(path, small_services)
    assert content_hash(links["link0"]) == content_hash(random["link0"])
    assert content_hash(links["link1"]) != content_hash(random["link1"])


def test_a_fit_makes_the_activation_the_next_block_expects(
    make_trainer: MakeTrainer, small_services: dict[str, Service], digits: DataSet
) -> None:
    path = path_from_vector((2, 3), "tiny", 6)  # leaves out a convolution and its ReLU
    trained = train_path(make_trainer(fit_samples=128), path, seed=0, fit_only=True)
    with torch.inference_mode():
        value = nn.Sequential(*small_services["tiny"].blocks[:2])(small_services["tiny"].preprocess(digits.test.images[:32]))
        expected, found = small_services["tiny"].blocks[2](value), trained.links["link0"](value)
    # Least squares aims through the ReLU: not exact, but far nearer than the mean, which knows nothing of the sample.
    assert float((found - expected).square().mean()) < 0.2 * float((expected - expected.mean(0)).square().mean())


def test_a_fit_of_raw_images_to_a_hosts_input_hands_them_on(
    make_trainer: MakeTrainer, small_services: dict[str, Service], digits: DataSet
) -> None:
    path = path_from_vector((0, 1, 3, 4), "tiny", 6, "host", 6)
    trained = train_path(make_trainer(fit_samples=128), path, seed=0, fit_only=True)
    value = small_services["tiny"].preprocess(digits.test.images[:32])
    with torch.inference_mode():
        torch.testing.assert_close(trained.links["link0"](value), value, rtol=0, atol=0.05)


@pytest.fixture(scope="module")
def digits_trainer(digits: DataSet) -> Trainer:
    """Trains paths of the shipped digits service, with cross-entropy as the only loss."""
    service = get_service("alexnet-digits")
    recipe = Recipe(samples=256, fit_samples=64, steps=100, joint_steps=50, batch_size=16, learning_rate=1e-3, distillation=0)
    return Trainer({service.name: service}, service.name, digits, {service.name: "a"}, lambda _: ExecutionMode(), recipe)


@pytest.fixture(scope="module")
def trained(digits_trainer: Trainer) -> TrainedPath:
    """A skip over most of the digits service."""
    return train_path(digits_trainer, path_from_vector((1, 5), "alexnet-digits", 6), seed=0)


def test_training_lowers_the_loss_it_descends(trained: TrainedPath, digits_trainer: Trainer) -> None:
    fitted = train_path(digits_trainer, trained.path, seed=0, fit_only=True)
    split = digits_trainer.train.head(128)
    inputs, labels = digits_trainer.local.preprocess(split.images), torch.from_numpy(split.labels)
    before, after = (
        float(functional.cross_entropy(logits_by_hand(trained.path, digits_trainer.services, links, inputs), labels))
        for links in (fitted.links, trained.links)
    )
    assert after < 0.8 * before


def test_training_does_not_lose_accuracy_over_the_fit(trained: TrainedPath) -> None:
    assert trained.accuracy >= trained.accuracy_fit > 0.3


def test_accuracy_is_the_count_of_right_answers(trained: TrainedPath, digits_trainer: Trainer) -> None:
    split = digits_trainer.data.test.head(60)
    logits = logits_by_hand(trained.path, digits_trainer.services, trained.links, digits_trainer.local.preprocess(split.images))
    right = sum(int(row.argmax()) == int(label) for row, label in zip(logits, split.labels, strict=True))
    assert digits_trainer.accuracy(trained.path, trained.links, split) == right / 60
    assert digits_trainer.logits(trained.path, trained.links, split).argmax(1).tolist() == [int(row.argmax()) for row in logits]


def test_the_accuracy_reported_is_that_on_the_validation_split(trained: TrainedPath, digits_trainer: Trainer) -> None:
    assert trained.accuracy == digits_trainer.accuracy(trained.path, trained.links, digits_trainer.data.validation)


def test_the_original_path_has_nothing_to_train(digits_trainer: Trainer) -> None:
    original = train_path(digits_trainer, original_path("alexnet-digits", 6), seed=0)
    assert not original.links
    assert original.accuracy == original.accuracy_fit > 0.95


def test_distillation_follows_the_original_service_and_needs_no_labels(digits: DataSet, make_trainer: MakeTrainer) -> None:
    wrong = make_trainer(distillation=1)
    wrong.train.labels[:] = 0
    try:
        links = train_path(wrong, CROSS, seed=0).links
    finally:
        wrong.train.labels[:] = digits.train.labels[: len(wrong.train)]
    assert same(links, train_path(make_trainer(distillation=1), CROSS, seed=0).links)


@pytest.mark.parametrize("path", PATHS[:2], ids=str)
def test_activations_too_many_to_keep_give_the_same_links(
    path: InferencePath, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = train_path(make_trainer(), path, seed=0)
    monkeypatch.setattr(link_inputs, "MAX_KEPT_VALUES", 0)
    computed = train_path(make_trainer(), path, seed=0)
    for a, b in zip(weights(kept.links), weights(computed.links), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_links_stay_float32_where_blocks_run_in_bfloat16(make_trainer: MakeTrainer) -> None:
    trained = train_path(make_trainer(mode=ExecutionMode("bfloat16", channels_last=True)), CROSS, seed=0)
    assert {tensor.dtype for tensor in weights(trained.links)} == {torch.float32}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(trained.links))


def test_fewer_images_than_a_batch_are_taken_round(make_trainer: MakeTrainer) -> None:
    trained = train_path(make_trainer(samples=10, fit_samples=1000, batch_size=16), CROSS, seed=0)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(trained.links))


def test_another_local_service_gives_other_links(make_trainer: MakeTrainer, small_services: dict[str, Service], digits: DataSet) -> None:
    other = {**small_services, "tiny": make_service("tiny", digits, 5, (4, 8, 12, 8, 8))}
    assert not same(train_path(make_trainer(), CROSS, 0).links, train_path(make_trainer(services=other), CROSS, 0).links)


@pytest.mark.parametrize("field", [{"steps": -1}, {"samples": 0}, {"distillation": 1.5}, {"learning_rate": 0}, {"epochs": 3}], ids=str)
def test_a_recipe_that_cannot_be_followed_is_refused(field: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(field))):
        Recipe.model_validate(field)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_accuracy_in_training_is_that_of_the_whole_path_run_at_once(path: InferencePath, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(screen_samples=40)
    training = LinkTraining(trainer, path, seed=3)
    training.fit()
    for rung in (4, 12):
        training.advance(rung)
        assert training.screen_accuracy() == trainer.accuracy(path, training.links, trainer.data.validation.head(40))
        splits: dict[Literal["validation", "test"], Split] = {"validation": trainer.data.validation, "test": trainer.data.test}
        for name, split in splits.items():
            assert training.accuracy(name) == trainer.accuracy(path, training.links, split)
            assert training.accuracy(name, 50) == trainer.accuracy(path, training.links, split.head(50))


def test_two_trainings_in_turn_do_not_disturb_each_other(make_trainer: MakeTrainer) -> None:
    alone = [train_path(make_trainer(), path, seed=3) for path in PATHS[:2]]
    trainer = make_trainer()
    trainings = [LinkTraining(trainer, path, seed=3) for path in PATHS[:2]]
    for training in trainings:
        training.fit()
    for rung in (2, 5, 12):
        for training in trainings:
            training.advance(rung)
    for one, training in zip(alone, trainings, strict=True):
        assert same(one.links, training.links)
        assert one.accuracy == training.accuracy("validation")


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_pausing_at_rungs_leaves_no_trace_in_the_links(path: InferencePath, make_trainer: MakeTrainer) -> None:
    in_one_go = train_path(make_trainer(), path, seed=3)
    training = LinkTraining(make_trainer(), path, seed=3)
    training.fit()
    for rung in (3, 8, 9, 12, 40):
        training.advance(rung)
        assert training.steps == min(rung, SHORT.total_steps)
        assert 0 <= training.screen_accuracy() <= 1
    assert same(in_one_go.links, training.links)
