"""Small networks distilled from a service: the rival that whoever may train a network would try first."""

import numpy as np
import pytest
import torch

from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.distillation import distil, small_network
from code_ray.recipe import Recipe
from code_ray.runner import LegRunner
from code_ray.service import Service
from code_ray.training import Trainer

LOCAL = "alexnet-digits"


@pytest.fixture(scope="module")
def trainer(services: dict[str, Service], digits: DataSet) -> Trainer:
    """What is constant between the trainings."""
    return Trainer({LOCAL: services[LOCAL]}, LOCAL, digits, {LOCAL: "a"}, lambda _: ExecutionMode(), Recipe(samples=1_000))


def test_a_small_network_takes_what_its_service_takes_and_is_much_smaller_the_fewer_channels(services: dict[str, Service]) -> None:
    narrow, wide = (small_network(services[LOCAL], channels) for channels in (8, 16))
    assert narrow(torch.zeros(3, *services[LOCAL].boundaries[0].shape)).shape == (3, 10)
    counts = [sum(p.numel() for p in network.parameters()) for network in (narrow, wide)]
    assert counts[0] < counts[1]


def test_it_learns_what_the_original_answers_and_more_with_longer_training(trainer: Trainer, digits: DataSet) -> None:
    short, long = (distil(trainer, 8, 0, epochs) for epochs in (1, 12))
    original = LegRunner(list(trainer.local.blocks), ExecutionMode())
    wanted = original(trainer.local.preprocess(digits.validation.images)).argmax(1).numpy()
    agreement = [float((network.logits.argmax(1) == wanted).mean()) for network in (short, long)]
    assert agreement[1] > max(agreement[0], 0.7)
    assert long.logits.shape == (len(digits.validation), 10)
    assert long.parameters == short.parameters
    assert 0 < long.seconds < 0.1


def test_the_same_seed_gives_the_same_network_and_another_one_another(trainer: Trainer) -> None:
    one, again, other = (distil(trainer, 8, seed, 1) for seed in (0, 0, 1))
    assert np.array_equal(one.logits, again.logits)
    assert not np.allclose(one.logits, other.logits)
