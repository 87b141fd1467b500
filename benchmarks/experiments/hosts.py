"""Hosts that the experiments train themselves: an AlexNet that tells which way up an image is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.experiments.config import Experiments
from code_ray.data import DataSet, Split, load_data
from code_ray.errors import ConfigError
from code_ray.service import Service
from code_ray.zoo import get_service
from code_ray.zoo_training import RECIPES, PretrainingRecipe, train_by

TURNS = ("as it is", "a quarter turn", "upside down", "three quarter turns")
IMAGES = 12_000

TURNED = replace(RECIPES["alexnet-digits"], data="fashion-mnist", epochs=3, mean=0.286, std=0.353, batch_size=64)
"""An AlexNet of the same widths as the digits' one. It never sees a label of the local service's."""

TRAINED_HERE: Mapping[str, PretrainingRecipe] = {"alexnet-turned": TURNED}


def load_services(config: Experiments, folder: Path, say: Callable[[str], None]) -> dict[str, Service]:
    """All services of the experiments; those that are trained here lie in ``folder`` afterwards.

    Raises:
        ConfigError: for a service to be trained here that nobody knows how to train.
    """
    found: dict[str, Service] = {}
    for name in config.services:
        if name not in config.trained_here:
            found[name] = get_service(name)
            continue
        if name not in TRAINED_HERE:
            raise ConfigError(f"trained_here: {name!r} is none of {', '.join(TRAINED_HERE)}; make it a service first (docs/own_service.md)")
        if not (folder / name).is_dir():
            recipe = TRAINED_HERE[name]
            train_by(name, recipe, turned(load_data(recipe.data), IMAGES), say).save(folder / name)
        found[name] = get_service(str(folder / name))
    return found


def turned(data: DataSet, count: int) -> DataSet:
    """The task of telling how far images were turned: the first ``count`` of every split of ``data``, each turned by chance."""

    def turn(split: Split, seed: int) -> Split:
        part = split.head(count)
        turns = np.random.default_rng(seed).integers(0, len(TURNS), len(part))
        return Split(np.stack([np.rot90(i, t) for i, t in zip(part.images, turns, strict=True)]), turns.astype(np.int64), part.indices)

    return DataSet(f"{data.name}-turned", turn(data.train, 0), turn(data.validation, 1), turn(data.test, 2), TURNS)
