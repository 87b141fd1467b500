"""Data sets: sizes, disjoint splits that stay the same, and what a damaged or missing file says."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from code_ray import data
from code_ray.data import DataSet, load_data
from code_ray.errors import DataError


def check_splits(dataset: DataSet, sizes: tuple[int, int, int]) -> None:
    splits = (dataset.train, dataset.validation, dataset.test)
    assert tuple(map(len, splits)) == sizes
    for split in splits:
        assert split.images.shape == (len(split), 28, 28)
        assert (split.images.dtype, split.labels.dtype) == (np.dtype(np.uint8), np.dtype(np.int64))
        assert set(np.unique(split.labels)) == set(range(len(dataset.labels)))
        assert len(np.unique(split.indices)) == len(split)


def test_digits_are_split_900_300_597_without_overlap(digits: DataSet) -> None:
    check_splits(digits, (900, 300, 597))
    together = np.concatenate([digits.train.indices, digits.validation.indices, digits.test.indices])
    assert sorted(together) == list(range(1797))


def test_fashion_mnist_is_split_55000_5000_10000_without_overlap(fashion: DataSet) -> None:
    check_splits(fashion, (55_000, 5_000, 10_000))
    assert not np.intersect1d(fashion.train.indices, fashion.validation.indices).size
    assert fashion.labels[int(fashion.test.labels[0])] == "Ankle boot"


def test_the_split_is_the_same_every_time(digits: DataSet) -> None:
    assert np.array_equal(load_data("digits").train.indices, digits.train.indices)


def test_images_stay_with_their_labels(digits: DataSet) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    split = digits.validation
    assert np.array_equal(split.labels, source.target[split.indices])
    # Nearest-neighbour enlargement by 3 within a border of 2.
    corners = split.images[:, 2:26:3, 2:26:3]
    assert np.array_equal(corners, (source.images[split.indices] * 255 / 16).round())


def test_head_takes_the_first_samples(digits: DataSet) -> None:
    head = digits.test.head(7)
    assert len(head) == 7
    assert np.array_equal(head.images, digits.test.images[:7])
    assert np.array_equal(head.indices, digits.test.indices[:7])
    assert len(digits.test.head(10_000)) == 597


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="no data set is called 'mnist'; there are: digits, fashion-mnist"):
        load_data("mnist")


def test_a_chosen_folder_without_the_files_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODE_RAY_FASHION_MNIST", str(tmp_path))
    with pytest.raises(DataError, match=f"CODE_RAY_FASHION_MNIST={tmp_path} holds no t10k-labels"):
        load_data("fashion-mnist")


def test_without_files_and_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODE_RAY_FASHION_MNIST", raising=False)
    monkeypatch.setattr(data, "FASHION_DIRS", (tmp_path / "debian", tmp_path / "cache"))
    # A port where nobody listens: torchvision's own download, refused at once.
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match=r"run 'apt-get install dataset-fashion-mnist', elsewhere put the four idx\.gz files"):
        load_data("fashion-mnist")


def idx(values: list[int]) -> bytes:
    return bytes((0, 0, 8, 1)) + len(values).to_bytes(4, "big") + bytes(values)


DAMAGED = {
    "truncated": gzip.compress(idx([1, 2, 3]))[:-6],
    "not gzip": b"hello",
    "broken stream": gzip.compress(idx([1, 2, 3]), mtime=0)[:12] + b"\xff" * 20,
    "too few values": gzip.compress(idx([1, 2, 3])[:-1]),
    "header cut": gzip.compress(idx([])[:6]),
    "empty": gzip.compress(b""),
    "other magic": gzip.compress(b"\0\0\x0d" + idx([1])[3:]),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte.gz").write_bytes(content)
    monkeypatch.setenv("CODE_RAY_FASHION_MNIST", str(tmp_path))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz .*install or download the data set again"):
        load_data("fashion-mnist")
