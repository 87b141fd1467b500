"""Blocks: consecutive pieces of a frozen network, the tensors between them, and how they are run.

A *boundary* is the single tensor that crosses between two blocks; boundary 0 is the service's input and
boundary N its logits. The *execution mode* is how blocks are run: number format and memory layout.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from code_ray.errors import ServiceError

Shape = tuple[int, ...]

NOISE_TOKENS = 1000
"""Every vocabulary has so many."""


@dataclass(frozen=True, order=True)
class ExecutionMode:
    """Number format and memory layout in which a server runs its blocks."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    def __str__(self) -> str:
        return f"{self.dtype}{'+channels_last' if self.channels_last else ''}"

    def cast(self, value: Tensor) -> Tensor:
        """``value`` in this mode's number format and, where it is a batch of maps, its memory layout; token ids stay whole numbers."""
        if value.is_floating_point():
            value = value.to(self.torch_dtype)
        if self.channels_last and value.dim() == 4:
            value = value.contiguous(memory_format=torch.channels_last)
        return value


@dataclass(frozen=True)
class Boundary:
    """What crosses between two blocks: shape per sample, and whether it is never negative (post-ReLU).

    ``vocabulary``: of token ids, their vocabulary's name. ``masked``: of sequences, whether the last channel is a mask (``sequences``).
    """

    shape: Shape
    nonnegative: bool
    vocabulary: str | None = None
    masked: bool = False

    @property
    def form(self) -> str:
        """What decides between which boundaries links lead (``links.joins``): token ids, a sequence, or the values of a vector or map."""
        if self.vocabulary is not None:
            return f"tokens {self.shape[0]} {self.vocabulary}"
        if len(self.shape) == 2:
            return f"{'masked ' if self.masked else ''}sequence {self.shape[0]}"
        return "values"

    def noise(self, count: int) -> Tensor:
        """``count`` samples that say nothing, (count, *shape), to be timed: ids of tokens, or floats in 0..1."""
        if self.vocabulary is not None:
            return torch.randint(1, NOISE_TOKENS, (count, *self.shape), dtype=torch.int32)
        return torch.rand(count, *self.shape)


def cut_layers(model: nn.Sequential, starts: Sequence[int]) -> nn.ModuleList:
    """Cut a sequential model into blocks that begin at the given layers (``splitting`` cuts any other).

    Raises:
        ServiceError: if ``starts`` is not increasing from 0 within the model.
    """
    edges = [*starts, len(model)]
    if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(edges)):
        raise ServiceError(f"block starts {list(starts)} do not cut {len(model)} layers; give increasing indices from 0")
    return nn.ModuleList(model[a:b] for a, b in pairwise(edges))


def freeze(module: nn.Module) -> None:
    """Put ``module`` in eval mode for good and take its parameters out of training."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def content_hash(module: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of every parameter and buffer, in state-dict order."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def measure_boundaries(blocks: nn.ModuleList, example: Tensor, vocabulary: str | None = None) -> tuple[Boundary, ...]:
    """Boundaries 0..N of ``blocks`` for a batch of example inputs; token ids of a ``vocabulary``, where they are that.

    Raises:
        ServiceError: where a block returns something other than one batched tensor.
    """
    boundaries = [Boundary(tuple(example.shape[1:]), nonnegative=bool((example >= 0).all()), vocabulary=vocabulary)]
    value = example
    for number, block in enumerate(blocks, start=1):
        value = block(value)
        if not isinstance(value, Tensor) or value.shape[0] != example.shape[0]:
            raise ServiceError(f"block {number} does not return one tensor of batch size {example.shape[0]}; cut elsewhere")
        masked = vocabulary is not None and value.dim() == 3
        boundaries.append(Boundary(tuple(value.shape[1:]), nonnegative=bool((value >= 0).all()), masked=masked))
    return tuple(boundaries)


def optimise(module: nn.Module, mode: ExecutionMode) -> nn.Module:
    """A frozen copy of ``module`` for inference in ``mode``: batch norms folded into convolutions, cast, laid out.

    The folded copy equals the original to rounding; hashes are always taken of the original.
    """
    optimised = copy.deepcopy(module)
    freeze(optimised)
    _fold_batch_norms(optimised)
    optimised = optimised.to(mode.torch_dtype)
    if mode.channels_last:
        optimised = optimised.to(memory_format=torch.channels_last)
    freeze(optimised)
    return optimised


def _fold_batch_norms(root: nn.Module) -> None:
    for parent, conv_name, norm_name in list(_conv_norm_pairs(root)):
        conv, norm = parent.get_submodule(conv_name), parent.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        parent.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        # timm's BatchNormAct2d is a batch norm that also applies the activation: keep that half.
        activation = getattr(norm, "act", None)
        parent.set_submodule(norm_name, activation if isinstance(activation, nn.Module) else nn.Identity())


def _conv_norm_pairs(root: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Convolutions whose next registered sibling is a batch norm of as many channels: in the zoo's networks
    registration order is execution order (the tests compare folded with original outputs). In blocks of other models it may not be;
    they have graphs, which say who follows whom.
    """
    if isinstance(root, fx.GraphModule):
        yield from _pairs_in_graph(root)
        return
    children = list(root.named_children())
    for (name, child), (next_name, following) in pairwise(children):
        if isinstance(child, nn.Conv2d) and isinstance(following, nn.BatchNorm2d) and child.out_channels == following.num_features:
            yield root, name, next_name
    for _, child in children:
        yield from _conv_norm_pairs(child)


def _pairs_in_graph(block: fx.GraphModule) -> Iterator[tuple[nn.Module, str, str]]:
    """Plain convolutions with a batch norm as the only taker of what they make, each called once."""
    calls = Counter(node.target for node in block.graph.nodes if node.op == "call_module")
    for node in block.graph.nodes:
        if node.op != "call_module" or not node.all_input_nodes or node.all_input_nodes[0].op != "call_module":
            continue
        before = node.all_input_nodes[0]
        conv, norm = block.get_submodule(str(before.target)), block.get_submodule(str(node.target))
        # Subclasses may do more, but for timm's norm with an activation behind it.
        plain = type(conv) is nn.Conv2d and (type(norm) is nn.BatchNorm2d or type(norm).__name__ == "BatchNormAct2d")
        alone = len(before.users) == 1 and calls[before.target] == calls[node.target] == 1
        if plain and alone and norm.running_var is not None:
            yield block, str(before.target), str(node.target)
