"""A second task on Fashion-MNIST's frames: which kind of thing is it (a top, a dress, trousers, footwear, a bag)?

python -m benchmarks.serving.kinds [--out runs/trunk]      writes kinds.safetensors, the data, and services/fashion-kinds

The service is an AlexNet for 28x28 pixels, trained from scratch by the zoo's recipe for as many epochs as this easier task needs (about ten
minutes on two cores). What ``benchmarks.serving.trunk`` serves beside ``fashion-cnn``.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from code_ray.data import DataSet, Split, load_data
from code_ray.own_data import save_data
from code_ray.zoo_training import RECIPES, train_by
from examples.demo import say

NAME = "fashion-kinds"
KINDS = {
    "top": ("T-shirt/top", "Pullover", "Coat", "Shirt"),
    "dress": ("Dress",),
    "trousers": ("Trouser",),
    "footwear": ("Sandal", "Sneaker", "Ankle boot"),
    "bag": ("Bag",),
}
EPOCHS = 2


def data_file(out: Path) -> Path:
    """Where the data lie below a benchmark's folder."""
    return out / "kinds.safetensors"


def service_dir(out: Path) -> Path:
    """Where the service lies below a benchmark's folder."""
    return out / "services" / NAME


def make_kinds() -> DataSet:
    """Fashion-MNIST, its ten classes as five kinds; images and splits are the same."""
    fashion = load_data("fashion-mnist")
    kind_of = {label: number for number, labels in enumerate(KINDS.values()) for label in labels}
    numbers = np.array([kind_of[label] for label in fashion.labels])

    def renamed(split: Split) -> Split:
        return replace(split, labels=numbers[split.labels])

    return DataSet(NAME, renamed(fashion.train), renamed(fashion.validation), renamed(fashion.test), tuple(KINDS))


def make_all(out: Path) -> None:
    """Write the data, and train the service, where they are not there yet."""
    data = make_kinds()
    if not data_file(out).exists():
        save_data(data, data_file(out))
    if not (service_dir(out) / "service.json").exists():
        service = train_by(NAME, replace(RECIPES["alexnet-fashion"], epochs=EPOCHS), data, say)
        service.save(service_dir(out))


def main() -> None:
    """Make both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/trunk"))
    make_all(parser.parse_args().out)


if __name__ == "__main__":
    main()
