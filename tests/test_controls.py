"""Controls: the same path without what a host is said to bring (DESIGN 1)."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import GREY
from torch import Tensor, nn

from code_ray.controls import RANDOM_SUFFIX, control_paths, random_host, with_trained_hosts
from code_ray.data import DataSet
from code_ray.errors import IntegrityError
from code_ray.path import Segment, parse_path, path_from_vector
from code_ray.service import Service, build_service
from code_ray.zoo import BUILDERS, get_service

CROSS = path_from_vector((1, 2, 4, 5), "tiny", 6, "host", 6, rank=3)


@pytest.fixture(scope="module")
def normed_host(digits: DataSet) -> Service:
    """A small host with batch norms and a dropout, as the networks of the zoo have them."""
    torch.manual_seed(0)
    args = {"num_classes": 10, "width": 4}
    blocks = BUILDERS["fashion_cnn"](**args)
    nn.Sequential(*blocks)(GREY.apply(digits.train.images[:64]))
    return build_service("host", "fashion_cnn", args, blocks, GREY, digits.labels, digits.train.images[:16])


@pytest.fixture(scope="module")
def control(normed_host: Service, digits: DataSet) -> Service:
    return random_host(normed_host, digits.train.images[:128])


def test_a_random_host_changes_the_host_alone() -> None:
    expected = path_from_vector((1, 2, 4, 5), "tiny", 6, f"host{RANDOM_SUFFIX}", 6, rank=3)
    assert control_paths(CROSS)["random_host"] == expected


def test_a_random_host_stands_for_the_trained_one_unless_it_is_a_service_itself() -> None:
    control = control_paths(CROSS)["random_host"]
    assert with_trained_hosts(control) == CROSS
    assert with_trained_hosts(control, {"tiny", f"host{RANDOM_SUFFIX}"}) == control


def test_links_only_keeps_the_links_and_no_host_block() -> None:
    control = control_paths(CROSS)["links_only"]
    assert control.segments == (Segment("tiny", 0, 1), Segment("host", 1, 1), Segment("tiny", 5, 6))
    assert [slot.target for slot in control.link_slots] == [slot.target for slot in CROSS.link_slots]
    assert control.rank == CROSS.rank


def test_the_skip_leaves_out_what_the_cross_leaves_out() -> None:
    assert control_paths(CROSS)["skip"] == path_from_vector((1, 5), "tiny", 6, rank=3)


def test_a_probe_replaces_no_skip() -> None:
    assert set(control_paths(path_from_vector((1, 2, 4), "tiny", 6, "host", 6))) == {"random_host", "links_only"}


def test_every_host_of_a_path_is_replaced() -> None:
    controls = control_paths(parse_path("tiny[0:1] > host[2:4] > second[1:3] > tiny[5:6]", 6))
    assert {name: str(path) for name, path in controls.items()} == {
        "random_host": "tiny[0:1] > host-random[2:4] > second-random[1:3] > tiny[5:6]",
        "links_only": "tiny[0:1] > host[2:2] > second[1:1] > tiny[5:6]",
        "skip": "tiny[0:1] > tiny[5:6]",
    }


def test_a_random_host_is_a_service_of_the_same_shapes(control: Service, normed_host: Service) -> None:
    control.verify()
    assert control.name == "host-random"
    assert [boundary.shape for boundary in control.boundaries] == [boundary.shape for boundary in normed_host.boundaries]
    assert not any(parameter.requires_grad for parameter in control.blocks.parameters())


@pytest.mark.parametrize("name", ["alexnet-digits", "fashion-cnn"])
def test_a_random_host_has_nothing_of_the_host_not_even_its_initial_weights(name: str, digits: DataSet) -> None:
    host = get_service(name)
    # The zoo is trained from seed 0.
    control = random_host(host, digits.train.images[:16], seed=0)
    weights = [pair for pair in zip(control.blocks.parameters(), host.blocks.parameters(), strict=True) if pair[0].dim() > 1]
    assert len(weights) >= host.num_blocks
    for ours, theirs in weights:
        # No more alike than any two random tensors of that size.
        alike = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), 0)
        assert abs(float(alike)) < 5 / ours.numel() ** 0.5


def test_a_seed_gives_one_random_host_and_another_seed_another(control: Service, normed_host: Service, digits: DataSet) -> None:
    images = digits.train.images[:128]
    assert random_host(normed_host, images, seed=0).content_hash == control.content_hash
    assert random_host(normed_host, images, seed=1).content_hash != control.content_hash


def test_making_a_control_leaves_the_host_as_it_was(normed_host: Service, digits: DataSet) -> None:
    random_host(normed_host, digits.train.images[:16])
    normed_host.verify()


def test_making_a_control_draws_none_of_the_random_numbers_of_what_follows(normed_host: Service, digits: DataSet) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    random_host(normed_host, digits.train.images[:16])
    assert torch.equal(torch.rand(3), expected)


def inputs_of_norms(service: Service, value: Tensor) -> Iterator[tuple[Tensor, nn.BatchNorm2d]]:
    """What each batch norm of a service sees, in order, with the batch norm itself."""
    seen: list[tuple[Tensor, nn.BatchNorm2d]] = []
    norms = [module for module in service.blocks.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(lambda module, inputs: seen.append((inputs[0], module))) for norm in norms]
    with torch.inference_mode():
        nn.Sequential(*service.blocks)(value)
    for hook in hooks:
        hook.remove()
    return iter(seen)


def test_batch_norms_of_a_random_host_are_calibrated_on_the_images(control: Service, digits: DataSet) -> None:
    value = control.preprocess(digits.train.images[:128])
    for seen, norm in inputs_of_norms(control, value):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        spread = norm.running_var.sqrt()
        assert float(((norm.running_mean - seen.mean((0, 2, 3))) / spread).abs().max()) < 0.1
        torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), rtol=0.15, atol=1e-6)


def test_a_random_host_does_not_fade_to_a_constant(control: Service, digits: DataSet) -> None:
    value = control.preprocess(digits.test.images[:64])
    with torch.inference_mode():
        for block in control.blocks[:-1]:
            value = block(value)
    assert float(value.std(0).mean()) > 0.1 * float(value.abs().mean())


def test_a_host_without_batch_norms_has_a_control_too(tiny_services: dict[str, Service], digits: DataSet) -> None:
    control = random_host(tiny_services["host"], digits.train.images[:16])
    assert control.num_blocks == 6
    assert control.content_hash != tiny_services["host"].content_hash


def test_a_changed_random_host_is_found_like_any_service(normed_host: Service, digits: DataSet) -> None:
    control = random_host(normed_host, digits.train.images[:16])
    with torch.no_grad():
        next(control.blocks[0].parameters()).view(-1)[0] += 1
    with pytest.raises(IntegrityError, match="block 1 of 'host-random'"):
        control.verify()


def test_a_colour_host_is_calibrated_on_grey_images(digits: DataSet) -> None:
    torch.manual_seed(0)
    colour = GREY.model_copy(update={"channels": 3, "size": (32, 32), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2)})
    colour = colour.model_copy(update={"image_shape": (32, 32, 3)})
    args = {"num_classes": 1000}
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    labels = tuple(map(str, range(1000)))
    host = build_service("lite0", "efficientnet_lite0", args, BUILDERS["efficientnet_lite0"](**args), colour, labels, images)
    control = random_host(host, digits.train.images[:16])
    assert control.boundaries[0].shape == (3, 32, 32)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in control.blocks.state_dict().values())
