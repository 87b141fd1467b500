"""Blocks: cutting, freezing, hashing, boundaries, and fast copies that compute the same."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import alexnet

from code_ray.blocks import ExecutionMode, content_hash, cut_layers, freeze, measure_boundaries, optimise
from code_ray.errors import ServiceError
from code_ray.service import Service
from code_ray.zoo import ZOO, build_fashion_cnn, get_service


def test_the_papers_four_convolutions_are_torchvisions() -> None:
    blocks = cut_layers(alexnet(weights=None).features, [0, 3, 6, 8, 10])
    counts = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    assert counts[:4] == [23_296, 307_392, 663_936, 884_992]
    assert sum(counts[:4]) == 1_879_616


@pytest.mark.parametrize("starts", [[], [1, 2], [0, 2, 2], [0, 3, 1], [0, 4]])
def test_a_cut_that_is_none_is_refused(starts: list[int]) -> None:
    model = nn.Sequential(*(nn.ReLU() for _ in range(4)))
    with pytest.raises(ServiceError, match="do not cut 4 layers; give increasing indices from 0"):
        cut_layers(model, starts)


def test_a_cut_keeps_every_layer_in_order() -> None:
    layers = [nn.ReLU() for _ in range(5)]
    blocks = cut_layers(nn.Sequential(*layers), [0, 1, 4])
    assert [len(list(block.children())) for block in blocks] == [1, 3, 1]
    assert [layer for block in blocks for layer in block.children()] == layers


def test_boundaries_are_shapes_and_signs() -> None:
    torch.manual_seed(0)
    blocks = nn.ModuleList([nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()])
    boundaries = measure_boundaries(blocks, torch.rand(2, 1, 6, 6))
    assert [b.shape for b in boundaries] == [(1, 6, 6), (4, 4, 4), (4, 4, 4), (64,)]
    assert [b.nonnegative for b in boundaries] == [True, False, True, True]


class _Pair(nn.Module):
    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return value, value


class _BatchMean(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return value.mean(0, keepdim=True)


@pytest.mark.parametrize("block", [_Pair(), _BatchMean()])
def test_a_block_must_return_one_batched_tensor(block: nn.Module) -> None:
    with pytest.raises(ServiceError, match="block 2 does not return one tensor of batch size 2; cut elsewhere"):
        measure_boundaries(nn.ModuleList([nn.ReLU(), block]), torch.rand(2, 3))


def test_the_hash_sees_every_change_and_nothing_else() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = content_hash(module)
    assert content_hash(copy.deepcopy(module)) == before
    assert content_hash(module.to(memory_format=torch.channels_last)) == before
    changed = copy.deepcopy(module)
    with torch.no_grad():
        changed.get_parameter("0.weight").view(-1)[0] += 1e-6
    counted = copy.deepcopy(module)
    counted.get_buffer("1.running_mean").add_(1)
    renamed = nn.Sequential()
    renamed.add_module("convolution", module[0])
    renamed.add_module("1", module[1])
    assert len({before, *map(content_hash, (changed, counted, renamed))}) == 4


def test_frozen_modules_neither_learn_nor_drop() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    freeze(module)
    value = torch.rand(3, 4)
    assert torch.equal(module(value), module(value))
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("name", ZOO)
def test_folded_batch_norms_compute_the_same(name: str) -> None:
    service = get_service(name)
    torch.manual_seed(0)
    # Statistics away from 0 and 1, so that a fold that forgets one of them shows.
    value = service.boundaries[0].noise(2)
    for block, boundary in zip(service.blocks, service.boundaries[1:], strict=True):
        folded = optimise(block, ExecutionMode())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        with torch.inference_mode():
            expected, found = block(value), folded(value)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        assert found.shape[1:] == boundary.shape
        value = expected


def test_a_fold_uses_every_statistic() -> None:
    torch.manual_seed(0)
    blocks = build_fashion_cnn(10, width=4)
    for module in blocks.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
    freeze(blocks)
    model = nn.Sequential(*blocks)
    value = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(optimise(model, ExecutionMode())(value), model(value), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mode", [ExecutionMode(), ExecutionMode(channels_last=True), ExecutionMode("bfloat16", channels_last=True)], ids=str
)
def test_fast_copies_leave_the_original_as_it_was(tiny_service: Service, mode: ExecutionMode) -> None:
    block = tiny_service.blocks[1]
    before = content_hash(block)
    value = torch.rand(4, *tiny_service.boundaries[1].shape)
    fast = optimise(block, mode)(mode.cast(value))
    assert content_hash(block) == before
    assert fast.dtype == mode.torch_dtype
    tolerance = 0.02 if mode.dtype == "bfloat16" else 1e-5
    with torch.inference_mode():
        torch.testing.assert_close(fast.float(), block(value), rtol=tolerance, atol=tolerance)


def test_a_mode_casts_maps_to_its_layout_and_leaves_vectors_alone() -> None:
    mode = ExecutionMode("bfloat16", channels_last=True)
    assert str(mode) == "bfloat16+channels_last"
    assert mode.cast(torch.rand(2, 3, 4, 4)).is_contiguous(memory_format=torch.channels_last)
    assert mode.cast(torch.rand(2, 3)).dtype == torch.bfloat16
