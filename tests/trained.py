"""What tests of training, scoring and serving share: trainings in one call, trainers of the small services, and paths of each kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from conftest import GREY
from torch import nn
from torch.nn import functional

from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.links import Link
from code_ray.party import Party
from code_ray.path import InferencePath, parse_path, path_from_vector
from code_ray.recipe import Recipe
from code_ray.runner import Leg, cut, walk
from code_ray.service import Service, build_service
from code_ray.training import LinkTraining, Trainer
from code_ray.zoo import BUILDERS

PLACEMENT = {"tiny": "a", "host": "b", "second": "c"}
SHORT = Recipe(samples=128, fit_samples=64, steps=8, joint_steps=4, batch_size=16)
CROSS = path_from_vector((1, 2, 4, 5), "tiny", 6, "host", 6)
PATHS = [
    CROSS,
    path_from_vector((0, 1, 3, 4), "tiny", 6, "host", 6, rank=3),
    path_from_vector((1, 4), "tiny", 6),
    path_from_vector((3,), "tiny", 6),
    path_from_vector((1, 2, 4), "tiny", 6, "host", 6),
    parse_path("tiny[0:1] > host[2:4] > second[1:3] > tiny[5:6]", 6),
]


def apart(path: InferencePath, placement: Mapping[str, str] = PLACEMENT) -> tuple[tuple[Leg, ...], tuple[Leg, ...]]:
    """The legs of a path before its last link, and those from that link on."""
    return cut(walk(path, placement), path.link_slots[-1])


def make_service(name: str, digits: DataSet, seed: int, widths: tuple[int, int, int, int, int] = (16, 32, 48, 32, 32)) -> Service:
    """A small AlexNet that knows the digits: random features, the last layer fitted to the labels by least squares.

    By default wide enough for its blocks to cost more than a call.
    """
    torch.manual_seed(seed)
    blocks = BUILDERS["alexnet"](num_classes=10, widths=widths)
    *before, last = [module.eval() for block in blocks for module in block.children()]
    assert isinstance(last, nn.Linear)
    with torch.inference_mode():
        features = nn.Sequential(*before)(GREY.apply(digits.train.images))
        wanted = functional.one_hot(torch.from_numpy(digits.train.labels), 10).float()
        centred = features - features.mean(0)
        weight = torch.linalg.lstsq(centred, wanted - wanted.mean(0), driver="gelsd").solution.T
        last.weight.copy_(weight)
        last.bias.copy_(wanted.mean(0) - weight @ features.mean(0))
    return build_service(name, "alexnet", {"num_classes": 10, "widths": widths}, blocks, GREY, digits.labels, digits.train.images[:16])


def make_small_services(data: DataSet) -> dict[str, Service]:
    """A local service "tiny" and two hosts, of other widths, that tell digits apart: on an untrained one every path is as accurate."""
    return {
        "tiny": make_service("tiny", data, 0, (4, 8, 12, 8, 8)),
        "host": make_service("host", data, 1, (6, 8, 8, 16, 8)),
        "second": make_service("second", data, 2, (8, 6, 10, 8, 4)),
    }


@dataclass(frozen=True)
class TrainedPath:
    """Links of a path after training, with the validation accuracy of the fit (on the screened images) and of the links (on all)."""

    path: InferencePath
    links: Mapping[str, Link]
    accuracy_fit: float
    accuracy: float


def train_path(trainer: Trainer, path: InferencePath, seed: int, *, fit_only: bool = False) -> TrainedPath:
    """Fit, train and validate the links of ``path``; ``fit_only`` stops after least squares."""
    training = LinkTraining(trainer, path, seed)
    training.fit()
    accuracy_fit = training.screen_accuracy()
    if path.link_slots and not fit_only:  # the original has nothing to train
        training.advance(trainer.recipe.total_steps)
    return TrainedPath(path, training.links, accuracy_fit, training.accuracy("validation"))


def tiny_trainer(
    services: Mapping[str, Service],
    data: DataSet,
    mode: ExecutionMode | None = None,
    parties: Mapping[str, Party] | None = None,
    **changes: Any,
) -> Trainer:
    """A new trainer of the service "tiny"; fields of the recipe that differ from ``SHORT`` by name."""
    recipe = Recipe.model_validate({**SHORT.model_dump(), **changes})
    return Trainer(services, "tiny", data, PLACEMENT, lambda _: mode or ExecutionMode(), recipe, parties=parties)
