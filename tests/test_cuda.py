"""Trainings and scores on a GPU agree with those on the CPU."""

import pytest
import torch

from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.link_fit import LinkFit
from code_ray.links import Link, LinkSpec
from code_ray.path import InferencePath, path_from_vector
from code_ray.recipe import Recipe
from code_ray.scoring import Scorer
from code_ray.service import Service
from code_ray.training import LinkTraining, Trainer
from code_ray.zoo import get_service

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine")

LOCAL, HOST = "alexnet-digits", "alexnet-fashion"
RECIPE = Recipe(samples=640, fit_samples=300, screen_samples=300, steps=40, joint_steps=10)
VECTORS = ((1, 2, 3, 4), (0, 1, 4, 4), (1, 3), (2,), (1, 2, 4))


@pytest.fixture(scope="module")
def pair() -> dict[str, Service]:
    return {name: get_service(name) for name in (LOCAL, HOST)}


def trainer_on(device: str, pair: dict[str, Service], digits: DataSet) -> Trainer:
    return Trainer(pair, LOCAL, digits, {name: name for name in pair}, lambda provider: ExecutionMode(channels_last=True), RECIPE, device)


def paths(pair: dict[str, Service]) -> list[InferencePath]:
    return [path_from_vector(vector, LOCAL, pair[LOCAL].num_blocks, HOST, pair[HOST].num_blocks) for vector in VECTORS]


@pytest.mark.parametrize(
    "spec", [LinkSpec((8, 14, 14), (12, 7, 7)), LinkSpec((8, 4, 4), (10,), relu=False), LinkSpec((6, 9, 9), (9, 9, 9), rank=3)]
)
def test_least_squares_on_a_gpu_finds_the_same_link(spec: LinkSpec) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(200, *shape, generator=generator) for shape in (spec.in_shape, spec.out_shape))
    there, here = Link(spec), Link(spec)
    LinkFit(spec, inputs.to("cuda")).fit(there, targets)
    LinkFit(spec, inputs).fit(here, targets)
    with torch.no_grad():
        torch.testing.assert_close(there(inputs), here(inputs), rtol=1e-3, atol=1e-4)


def test_scores_on_a_gpu_are_those_of_the_cpu(pair: dict[str, Service], digits: DataSet) -> None:
    there, here = (Scorer(trainer_on(device, pair, digits)).score(paths(pair)) for device in ("cuda", "cpu"))
    for path, score in here.items():
        assert there[path].accuracy == pytest.approx(score.accuracy, abs=0.02)
        assert there[path].explained == pytest.approx(score.explained, abs=0.02)


def test_links_trained_on_a_gpu_serve_on_the_cpu_as_well_as_those_trained_there(pair: dict[str, Service], digits: DataSet) -> None:
    on_cuda, on_cpu = (trainer_on(device, pair, digits) for device in ("cuda", "cpu"))
    for path in paths(pair):
        accuracies = []
        for trainer in (on_cuda, on_cpu):
            training = LinkTraining(trainer, path, seed=0)
            training.fit()
            training.advance(25)  # a pause takes the links to the CPU and back
            training.advance(RECIPE.total_steps)
            assert {p.device.type for link in training.links.values() for p in link.parameters()} == {"cpu"}
            accuracies.append(on_cpu.accuracy(path, training.links, digits.validation))
            assert training.accuracy("validation") == pytest.approx(accuracies[-1], abs=0.01)
        assert accuracies[0] == pytest.approx(accuracies[1], abs=0.03)
