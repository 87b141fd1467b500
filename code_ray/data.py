"""Labelled images and texts by name, split the same way every time.

======================  =====================================  ======================
name                    source                                 train / val / test
======================  =====================================  ======================
``digits``              scikit-learn, bundled (1,797 images)   900 / 300 / 597
``fashion-mnist``       idx files on disk, or torchvision      55,000 / 5,000 / 10,000
``vader-sentences``     vaderSentiment's sources, by pip       14,348 / 2,500 / 2,500
======================  =====================================  ======================

Images are uint8 arrays of shape (n, 28, 28), texts token ids, int32 of shape (n, tokens), labels int64 of shape (n,). Validation is what a search
selects on, test is touched once (DESIGN 2.5).
"""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from code_ray.errors import DataError

UInt8Array = npt.NDArray[np.uint8]
SampleArray = npt.NDArray[Any]
"""Samples as requests carry them: images uint8 (n, *image_shape), or texts as token ids int32 (n, tokens)."""
Int64Array = npt.NDArray[np.int64]

SPLIT_SEED = 20240817
"""Fixes which images are training and which are validation; a new value makes old results incomparable."""

FASHION_DIRS = (Path("/usr/share/datasets/fashion-mnist"), Path.home() / ".cache/code_ray/fashion-mnist")
FASHION_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class Split:
    """Images (n, 28, 28) uint8, or texts as token ids (n, tokens) int32; labels (n,) int64, and where each one stood in its source."""

    images: SampleArray
    labels: Int64Array
    indices: Int64Array

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, count: int) -> Split:
        """The first ``count`` samples (all of them where there are fewer)."""
        return Split(self.images[:count], self.labels[:count], self.indices[:count])


@dataclass(frozen=True)
class DataSet:
    """Training, validation and test splits with the names of the classes."""

    name: str
    train: Split
    validation: Split
    test: Split
    labels: tuple[str, ...]


def load_data(name: str) -> DataSet:
    """The data set called ``name``, or the one in that ``.safetensors`` file (see ``own_data``).

    Raises:
        DataError: for an unknown name, or where the files are neither on disk nor to be had.
    """
    if name.endswith(".safetensors"):
        from code_ray.own_data import read_data

        return read_data(Path(name))
    if name not in DATA_SETS:
        raise DataError(f"no data set is called {name!r}; there are: {', '.join(sorted(DATA_SETS))}, or give a .safetensors file")
    return DATA_SETS[name]()


def shuffled(images: SampleArray, labels: Int64Array, cuts: Sequence[int]) -> list[Split]:
    """Labelled samples in an order by chance that is always the same, parted at ``cuts``."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels)).astype(np.int64)
    return [Split(images[i], labels[i], i) for i in np.split(order, cuts)]


def _digits() -> DataSet:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 8x8 pixels of 0..16 become 28x28 pixels of 0..255: one input size for every small service.
    enlarged = np.kron(bunch.images, np.ones((1, 3, 3))) * (255 / 16)
    images = np.pad(enlarged, ((0, 0), (2, 2), (2, 2))).round().astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    train, validation, test = shuffled(images, labels, (900, 1200))
    return DataSet("digits", train, validation, test, tuple(str(digit) for digit in range(10)))


def _fashion_mnist() -> DataSet:
    folder = _fashion_dir()
    train_images = _read_idx(folder / "train-images-idx3-ubyte.gz", 3)
    train_labels = _read_idx(folder / "train-labels-idx1-ubyte.gz", 1).astype(np.int64)
    test_images = _read_idx(folder / "t10k-images-idx3-ubyte.gz", 3)
    test_labels = _read_idx(folder / "t10k-labels-idx1-ubyte.gz", 1).astype(np.int64)
    train, validation = shuffled(train_images, train_labels, (55_000,))
    test = Split(test_images, test_labels, np.arange(len(test_labels), dtype=np.int64))
    return DataSet("fashion-mnist", train, validation, test, FASHION_LABELS)


def _fashion_dir() -> Path:
    chosen = os.environ.get("CODE_RAY_FASHION_MNIST")
    for folder in (Path(chosen),) if chosen else FASHION_DIRS:
        if (folder / "t10k-labels-idx1-ubyte.gz").exists():
            return folder
    if chosen:
        raise DataError(f"CODE_RAY_FASHION_MNIST={chosen} holds no t10k-labels-idx1-ubyte.gz; point it at the four idx files")
    return _download_fashion(FASHION_DIRS[-1])


def _download_fashion(folder: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(folder / "torchvision"), download=True)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"Fashion-MNIST is not on this machine (looked in {', '.join(map(str, FASHION_DIRS))}) and could not be "
            f"downloaded ({error}); on Debian run 'apt-get install dataset-fashion-mnist', elsewhere put the four "
            "idx.gz files in a folder and set CODE_RAY_FASHION_MNIST to it"
        ) from error
    return folder / "torchvision/FashionMNIST/raw"


def _read_idx(file: Path, dimensions: int) -> UInt8Array:
    """An idx file of unsigned bytes: magic 0x0000_08_dd, big-endian sizes, then the bytes."""
    try:
        with gzip.open(file, "rb") as stream:
            content = stream.read()
    except (OSError, EOFError) as error:
        raise DataError(f"{file} cannot be read ({error}); install or download the data set again") from error
    start = 4 + 4 * dimensions
    is_whole = len(content) >= start and content[:4] == bytes((0, 0, 8, dimensions))
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4")) if is_whole else ()
    if not is_whole or len(content) != start + math.prod(shape):
        raise DataError(f"{file} is not an idx file of {dimensions} dimensions; install or download the data set again")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _sentences() -> DataSet:
    from code_ray.sentences import load_sentences

    return load_sentences()


DATA_SETS: dict[str, Callable[[], DataSet]] = {"digits": _digits, "fashion-mnist": _fashion_mnist, "vader-sentences": _sentences}
