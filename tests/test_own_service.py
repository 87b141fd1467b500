"""Services of one's own: a model and data that the repository has never named go through profile, search, serve and client."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ray import serve
from safetensors.torch import save_model
from serving import FIXED, relative_difference, running_serve
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import code_ray
from code_ray.artifact import RunDirectory
from code_ray.client import Client
from code_ray.data import DataSet, load_data
from code_ray.errors import DataError, ServiceError
from code_ray.libraries import build_model
from code_ray.own_service import main
from code_ray.plan import read_plan
from code_ray.preprocessing import Preprocessing
from code_ray.service import Service
from code_ray.zoo import get_service
from deployments import build_app
from deployments.config import AppOptions, RouterOptions
from examples import own_model
from search.config import read_config
from search.problem import load_inputs

READER = '''
import torch
from torch import nn


class Reader(nn.Module):
    """Somebody's own network: no Sequential, skip connections, a class token's worth of arithmetic in forward."""

    def __init__(self, classes, width):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(4))
        self.head = nn.Linear(width * 16, classes)

    def forward(self, images):
        value = torch.relu(self.stem(images))
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms)):
            value = value + torch.relu(norm(layer(value)))
            if number == 1:
                value = nn.functional.max_pool2d(value, 2)
        return self.head(nn.functional.adaptive_avg_pool2d(value, 4).reshape(len(value), -1))


def make_reader(classes, width=24):
    return Reader(classes, width)
'''
BUILT_BY = "python:somebodys_reader:make_reader"
LABELS = tuple(f"a {number}" for number in ("nought", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
GREY = Preprocessing(image_shape=(28, 28), channels=1, size=(28, 28), mean=(0.3,), std=(0.35,))
COLOUR = Preprocessing(image_shape=(28, 28), channels=3, size=(32, 32), mean=(0.3,) * 3, std=(0.35,) * 3)


@pytest.fixture(scope="module", autouse=True)
def own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Somebody's module on the import path, allowed, and a folder for services; Ray's workers inherit all of it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "somebodys_reader.py").write_text(READER)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parent.parent}")
        patch.setenv("CODE_RAY_MODELS", BUILT_BY.removeprefix("python:"))
        patch.setenv("CODE_RAY_SERVICES", str(folder / "services"))
        yield folder


def fit_head(model: nn.Module, head: nn.Linear, inputs: Tensor, numbers: Tensor) -> None:
    """Least squares from what reaches the last layer: enough to read digits, in no time."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in inputs.split(100):
            model(batch)
        features = torch.cat(seen)
        wanted = nn.functional.one_hot(numbers, 10).float()
        centred = features - features.mean(0)
        gram = centred.T @ centred
        weight = torch.linalg.solve(gram + 1e-3 * gram.trace() / len(gram) * torch.eye(len(gram)), centred.T @ (wanted - wanted.mean(0))).T
        head.weight.copy_(weight)
        head.bias.copy_(wanted.mean(0) - weight @ features.mean(0))
    handle.remove()


@pytest.fixture(scope="module")
def reader(digits: DataSet) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(BUILT_BY, {"classes": 10}).eval()
    head = model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    fit_head(model, head, GREY.apply(digits.train.images), torch.from_numpy(digits.train.labels))
    return model


@pytest.fixture(scope="module")
def data_file(digits: DataSet, own_places: Path) -> Path:
    """The digits as somebody's data: tensors for training, a torch data set for the test."""
    train = torch.from_numpy(digits.train.images.copy()), torch.from_numpy(digits.train.labels)
    test = TensorDataset(torch.from_numpy(digits.test.images / np.float32(255)).unsqueeze(1), torch.from_numpy(digits.test.labels))
    data = code_ray.make_data("my digits", LABELS, train, test)
    code_ray.save_data(data, own_places / "digits.safetensors")
    return own_places / "digits.safetensors"


@pytest.fixture(scope="module")
def own_services(reader: nn.Module, data_file: Path) -> dict[str, Service]:
    """The reader as the service "reader"; a ResNet of torchvision with random weights, to borrow from, made from YAML."""
    data = load_data(str(data_file))
    service = code_ray.make_service("reader", reader, BUILT_BY, data.train.images, GREY, LABELS, {"classes": 10}, num_blocks=5)
    service.save(code_ray.services_dir() / "reader")
    torch.manual_seed(1)
    save_model(build_model("torchvision:resnet18", {"num_classes": 10}), str(data_file.parent / "resnet.safetensors"))
    config = {
        "name": "resnet",
        "model": "torchvision:resnet18",
        "model_args": {"num_classes": 10},
        "weights": "resnet.safetensors",
        "data": data_file.name,
        "preprocessing": COLOUR.model_dump(mode="json"),
        "boundaries": ["maxpool", "layer1", "layer2", "layer3"],
    }
    file = data_file.parent / "resnet.yaml"
    file.write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["own_service", str(file)])
        assert main() == 0
    return {"reader": service, "resnet": get_service("resnet")}


def test_a_saved_service_of_ones_own_answers_as_the_model_does(
    own_services: dict[str, Service], reader: nn.Module, digits: DataSet
) -> None:
    inputs = GREY.apply(digits.test.images[:50])
    loaded = get_service("reader")
    assert loaded.content_hash == own_services["reader"].content_hash
    assert loaded.num_blocks == 5
    with torch.no_grad():
        found, expected = nn.Sequential(*loaded.blocks)(inputs), reader(inputs)
    assert relative_difference(found.numpy(), expected.numpy()) < 0.01  # weights in fp16
    assert own_services["resnet"].num_blocks == 5


def test_it_is_searched_for_served_and_asked(own_services: dict[str, Service], data_file: Path, digits: DataSet, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "local": "reader",
        "data": str(data_file),
        "hosts": {"resnet": {"kappa": 1.0}},
        "vectors": [[1, 2, 2, 4], [1, 2, 3], [1, 4], [2]],
        "loss_points": 50.0,
        "screen": 2,
        "stopping": {"max_trainings": 2, "c_stop": 2, "epsilon": 0.0},
        "rivals": 0,
        "confirm": 0,
        "distilled_epochs": 0,
        "recipe": {"samples": 200, "fit_samples": 100, "steps": 10},
    }
    file, out = tmp_path / "search.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "search", str(file), "--out", str(out)]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
    assert finished.returncode == 0, finished.stderr
    tried = {record["path"] for record in RunDirectory(out).journal.records()}
    assert any("reader[" in path and "resnet[" in path for path in tried), tried
    profile = json.loads((out / "profile.json").read_text())
    assert [len(seconds) for seconds in profile["block_seconds"].values()] == [5, 5]
    plan = read_plan(out / "plan.json")
    assert plan.local == "reader"
    images = digits.test.images[:64]
    router = RouterOptions(path_deadline_s=60, request_deadline_s=120, steering="plan")
    options = {provider: FIXED for provider in plan.placement.values()}
    with running_serve() as url:
        serve.run(build_app(AppOptions(run_dir=out, providers=options, router=router)))
        with Client(url, timeout_s=120) as client:
            answers = {planned.id: client.predict("reader", images, path=planned.id) for planned in plan.paths}
            first = client.predict("reader", images, path="original")
    service = own_services["reader"]
    with torch.no_grad():
        expected = nn.Sequential(*service.blocks)(service.preprocess(images)).numpy()
    assert relative_difference(first.logits, expected) < 1e-3
    assert first.labels == [LABELS[i] for i in expected.argmax(1)]
    assert np.mean([LABELS[i] == label for i, label in zip(digits.test.labels, first.labels, strict=False)]) > 0.8
    assert all(set(answer.labels) <= set(LABELS) for answer in answers.values())


def test_the_worked_example_leaves_a_service_and_a_search_that_can_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["own_model", "--out", str(tmp_path), "--epochs", "0"])
    own_model.main()
    inputs = load_inputs(read_config(tmp_path / "search.yaml"))
    assert inputs.services[own_model.NAME].num_blocks == 6
    assert len(inputs.data.train) == 810
    assert len(inputs.space) > 100


def test_code_is_imported_only_where_the_operator_allows_it(own_services: dict[str, Service], monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_services
    get_service.cache_clear()
    monkeypatch.setenv("CODE_RAY_MODELS", "other:function, another:one")
    with pytest.raises(ServiceError, match=r"code of somebody's own.* set CODE_RAY_MODELS=somebodys_reader:make_reader in the environment"):
        get_service("reader")


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        ("resnet18", {}, "names no library; there are: torchvision, timm, transformers, python"),
        ("torchvision:resnet19", {}, "torchvision has no classifier 'resnet19'"),
        ("timm:hf-hub:somebody/model", {}, "timm has no model 'hf-hub:somebody/model'"),
        ("timm:resnet18", {"checkpoint_path": "/tmp/x.pth"}, "arguments are numbers, or lists of numbers"),
        ("timm:resnet18", {"pretrained": True}, "cannot be built with"),
        ("torchvision:resnet18", {"weights": True}, "cannot be built with"),
        ("torchvision:resnet18", {"classes": 10}, "cannot be built with"),
        ("transformers:nobody", {}, "cannot be built with"),
        ("python:os:system", {}, "code of somebody's own"),
    ],
)
def test_a_name_builds_an_architecture_of_a_library_and_nothing_else(model: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        build_model(model, args)


def test_a_builder_of_another_model_is_refused(reader: nn.Module, digits: DataSet) -> None:
    with pytest.raises(ServiceError, match=r"builds another model than the one given .*; mend 'built_by' or 'model_args'"):
        code_ray.make_service("reader", reader, BUILT_BY, digits.train.images, GREY, LABELS, {"classes": 10, "width": 8}, num_blocks=4)


def test_data_comes_back_as_it_was_saved(data_file: Path, digits: DataSet) -> None:
    data = load_data(str(data_file))
    assert data.labels == LABELS
    assert (len(data.train), len(data.validation), len(data.test)) == (810, 90, 597)
    assert {*data.train.indices, *data.validation.indices} == {*range(900)}
    np.testing.assert_array_equal(data.train.images, digits.train.images[data.train.indices])
    np.testing.assert_array_equal(data.test.images, digits.test.images)


class _Pictures(Dataset[tuple[Any, int]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return torch.full((3, 5, 6), index / 4), index % 2


def test_colour_images_with_channels_first_are_turned() -> None:
    data = code_ray.make_data("two", ("even", "odd"), _Pictures(), _Pictures(), _Pictures())
    assert data.train.images.shape == (4, 5, 6, 3)
    assert data.train.images[1].max() == 64


BAD_DATA = {
    "normalised": ((torch.randn(4, 8, 8), torch.zeros(4)), "give uint8, or floats in 0..1, not normalised"),
    "a label too high": ((np.zeros((2, 8, 8), np.uint8), np.array([0, 2])), "below 2; number them from 0"),
    "a label less": ((np.zeros((2, 8, 8), np.uint8), np.array([0])), "not one number for each of 2 images"),
    "vectors": ((np.zeros((2, 8), np.uint8), np.array([0, 1])), r"not uint8 \(n, H, W\) or"),
}


@pytest.mark.parametrize(("samples", "message"), BAD_DATA.values(), ids=BAD_DATA.keys())
def test_data_of_another_form_is_refused(samples: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        code_ray.make_data("bad", ("no", "yes"), samples, samples)


def test_a_file_of_something_else_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    for file in (tmp_path / "x.safetensors", tmp_path / "missing.safetensors"):
        with pytest.raises(DataError, match=r"is no data set .*; write it with code_ray.save_data"):
            load_data(str(file))
