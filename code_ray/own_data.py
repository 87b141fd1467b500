"""Labelled images of one's own: from tensors or torch datasets, in one safetensors file that a configuration names.

The file holds ``train.images``, ``train.labels``, ``train.indices`` and the same of ``validation`` and ``test``; the names of the classes
are in its metadata. It is read without unpickling anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from code_ray.data import DataSet, Split, shuffled
from code_ray.errors import DataError

SUFFIX = ".safetensors"
SPLITS = ("train", "validation", "test")
VALIDATION_SHARE = 0.1

Samples = Any
"""A pair (images, labels) of tensors or arrays, or a torch dataset: anything with a length whose items are (image, label)."""


def make_data(name: str, labels: Sequence[str], train: Samples, test: Samples, validation: Samples | None = None) -> DataSet:
    """A data set from what somebody has; a tenth of ``train``, always the same, is for validation where none is given.

    Images: uint8, or floats in 0..1, (n, H, W), (n, H, W, 3) or with the channels first; of datasets one at a time, PIL's images too.
    Labels: integers (n,), the numbers of ``labels``.

    Raises:
        DataError: for images or labels of another form.
    """
    whole = _split(train, "train", len(labels))
    if validation is None:
        held_out, whole = shuffled(whole.images, whole.labels, (max(1, round(VALIDATION_SHARE * len(whole))),))
    else:
        held_out = _split(validation, "validation", len(labels))
    tested = _split(test, "test", len(labels))
    if len({split.images.shape[1:] for split in (whole, held_out, tested)}) > 1:
        raise DataError(f"the images of {name!r} have different sizes in its splits; make them one size")
    return DataSet(name, whole, held_out, tested, tuple(labels))


def save_data(data: DataSet, file: Path) -> None:
    """Write a data set as one file."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for name in SPLITS:
        split: Split = getattr(data, name)
        parts = {"images": split.images, "labels": split.labels, "indices": split.indices}
        tensors |= {f"{name}.{part}": np.ascontiguousarray(array) for part, array in parts.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file, {"labels": json.dumps(data.labels)})


def read_data(file: Path) -> DataSet:
    """The data set in a file that ``save_data`` wrote.

    Raises:
        DataError: for a file that is missing, damaged or something else.
    """
    try:
        with safe_open(file, "numpy") as stored:
            labels = json.loads((stored.metadata() or {})["labels"])
            parts = {name: tuple(stored.get_tensor(f"{name}.{part}") for part in ("images", "labels", "indices")) for name in SPLITS}
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise DataError(f"{file} is no data set ({error}); write it with code_ray.save_data") from error
    for name, (images, numbers, _) in parts.items():
        _check(images, numbers, name, len(labels), file)
    train, validation, test = (Split(*parts[name]) for name in SPLITS)
    return DataSet(str(file), train, validation, test, tuple(labels))


def _split(samples: Samples, name: str, num_classes: int) -> Split:
    if isinstance(samples, tuple):
        images, labels = (part.numpy() if isinstance(part, Tensor) else np.asarray(part) for part in samples)
    else:
        pairs = [samples[i] for i in range(len(samples))]
        images = np.stack([np.asarray(image) for image, _ in pairs])
        labels = np.array([int(label) for _, label in pairs])
    images, labels = _pixels(images), labels.astype(np.int64)
    _check(images, labels, name, num_classes, "the data")
    return Split(images, labels, np.arange(len(labels), dtype=np.int64))


def _pixels(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if images.dtype.kind == "f":
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            raise DataError(f"images are floats of {images.min():.3g} to {images.max():.3g}; give uint8, or floats in 0..1, not normalised")
        images = (images * 255).round().astype(np.uint8)
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] != 3:
        images = images.transpose(0, 2, 3, 1)
    return images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images


def _check(images: npt.NDArray[Any], labels: npt.NDArray[Any], name: str, num_classes: int, where: object) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise DataError(f"{name} images of {where} are {images.dtype} {images.shape}, not uint8 (n, H, W) or (n, H, W, 3)")
    if labels.shape != (len(images),) or not len(labels) or labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(
            f"{name} labels of {where} are not one number for each of {len(images)} images, below {num_classes}; number them from 0"
        )
