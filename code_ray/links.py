"""Links: the small trained modules between segments, and their closed-form start (DESIGN 2.2, 3.4).

A link maps the tensor at one boundary to the shape of another. Between maps it is one 3x3 convolution with bias that
runs at the smaller of the two resolutions: after down-sampling, before up-sampling. *Reduced* to r filters it is two
convolutions C_in -> r -> C_out. Into vectors (logits among them) it pools to at most 3x3 and is linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from code_ray.blocks import Boundary, Shape
from code_ray.errors import LinkError

HEAD_GRID = 3
"""Maps are pooled to at most this many cells a side before a linear link."""

MAX_FIT_ROWS = 16_000
"""Least squares sees at most this many positions: more cost seconds and hundreds of megabytes, and change little."""

FIT_GRID = 7
"""Of larger maps it sees about this many positions a side, so that the rows come from many images: neighbours say the same."""

RIDGE = 1e-3
"""Ridge of the least-squares fit relative to the mean squared feature: 1e-3 was best, 0.1 cost 1-4 points."""


@dataclass(frozen=True)
class LinkSpec:
    """Everything that decides a link's modules: shapes per sample, rank, activation, how it down-samples."""

    in_shape: Shape
    out_shape: Shape
    rank: int | None = None
    relu: bool = True
    pool: Literal["avg", "max"] = "avg"

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width at which the convolution runs (or to which a map is pooled before a linear link)."""
        (height, width) = self.in_shape[1:]
        if len(self.out_shape) == 3:
            return min(height, self.out_shape[1]), min(width, self.out_shape[2])
        return min(height, HEAD_GRID), min(width, HEAD_GRID)


def link_spec(source: Boundary, target: Boundary, *, rank: int | None, to_input: bool, to_logits: bool, skip: bool) -> LinkSpec:
    """The link between two boundaries.

    ReLU stands where the next block expects what a ReLU made: never into a network's input or logits, and not into
    linear bottlenecks such as MobileNet's. Reduced links on skips down-sample by max-pool (the paper's experiment 2).
    """
    return LinkSpec(
        in_shape=source.shape,
        out_shape=target.shape,
        rank=None if to_logits else rank,
        relu=target.nonnegative and not to_input and not to_logits,
        pool="max" if skip and rank is not None else "avg",
    )


class Link(nn.Module):
    """The module of a ``LinkSpec``: float (n, *in_shape) -> (n, *out_shape)."""

    def __init__(self, spec: LinkSpec) -> None:
        super().__init__()
        self.spec = spec
        if len(spec.in_shape) not in (1, 3) or len(spec.out_shape) not in (1, 3):
            raise LinkError(f"no link leads from shape {spec.in_shape} to {spec.out_shape}; boundaries must be vectors or maps")
        self.is_conv = len(spec.in_shape) == 3 and len(spec.out_shape) == 3
        if self.is_conv:
            channels_in, channels_out = spec.in_shape[0], spec.out_shape[0]
            first = nn.Conv2d(channels_in, spec.rank or channels_out, 3, padding=1)
            self.body = nn.Sequential(first) if spec.rank is None else nn.Sequential(first, nn.Conv2d(spec.rank, channels_out, 1))
        else:
            features, outputs = _num_features(spec), int(torch.Size(spec.out_shape).numel())
            first_linear = nn.Linear(features, spec.rank or outputs)
            self.body = nn.Sequential(first_linear) if spec.rank is None else nn.Sequential(first_linear, nn.Linear(spec.rank, outputs))

    def resample_in(self, value: Tensor) -> Tensor:
        """What the trained part sees: down-sampled maps, or flat features before a linear link."""
        if len(self.spec.in_shape) == 3:
            pool = functional.adaptive_max_pool2d if self.spec.pool == "max" else functional.adaptive_avg_pool2d
            if self.spec.grid != self.spec.in_shape[1:]:
                value = pool(value, self.spec.grid)
        return value if self.is_conv else value.flatten(1)

    def forward(self, value: Tensor) -> Tensor:
        value = self.body(self.resample_in(value))
        if self.spec.relu:
            value = functional.relu(value)
        if not self.is_conv:
            return value.view(-1, *self.spec.out_shape)
        if value.shape[2:] != self.spec.out_shape[1:]:
            value = functional.interpolate(value, self.spec.out_shape[1:], mode="bilinear")
        return value


def _num_features(spec: LinkSpec) -> int:
    if len(spec.in_shape) == 1:
        return spec.in_shape[0]
    return spec.in_shape[0] * spec.grid[0] * spec.grid[1]


@torch.no_grad()
def fit_link(link: Link, inputs: Tensor, targets: Tensor, ridge: float = RIDGE) -> None:
    """Set ``link`` to the ridge-regularised least-squares map from ``inputs`` to ``targets`` (DESIGN 3.4).

    inputs (n, *in_shape), targets (n, *out_shape), float32. Before an up-sampling the target is what averages to it.
    A reduced link gets the best rank-r approximation of the full map (truncated singular values).

    Raises:
        LinkError: where shapes do not fit the link, or a value is not finite.
    """
    if tuple(inputs.shape[1:]) != link.spec.in_shape or tuple(targets.shape[1:]) != link.spec.out_shape or len(inputs) != len(targets):
        raise LinkError(
            f"cannot fit a link {link.spec.in_shape} -> {link.spec.out_shape} to {tuple(inputs.shape)} -> {tuple(targets.shape)}"
        )
    features, outputs = _fit_rows(link, inputs, targets)
    weight, bias = _ridge_regression(features.double(), outputs.double(), ridge)
    if not bool(torch.isfinite(weight).all()):
        raise LinkError("least squares met values that are not finite; check the activations of both services")
    _assign(link, weight, bias)


def _fit_rows(link: Link, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What the trained part sees and should give, a row a sample, or a position where it is a convolution."""
    if not link.is_conv:
        return link.resample_in(inputs), targets.flatten(1)
    height, width = link.spec.grid
    stride = max(1, height // FIT_GRID), max(1, width // FIT_GRID)
    keep = max(1, MAX_FIT_ROWS // (-(-height // stride[0]) * -(-width // stride[1])))
    features, targets = link.resample_in(inputs[:keep]), targets[:keep]
    if targets.shape[2:] != features.shape[2:]:
        targets = functional.adaptive_avg_pool2d(targets, link.spec.grid)
    outputs = targets[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1).reshape(-1, targets.shape[1])
    return functional.unfold(features, 3, padding=1, stride=stride).transpose(1, 2).reshape(len(outputs), -1), outputs


def _ridge_regression(features: Tensor, outputs: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight (outputs, features) and bias of the ridge regression on centred data, solved in its smaller dimension."""
    feature_mean, output_mean = features.mean(0), outputs.mean(0)
    centred, wanted = features - feature_mean, outputs - output_mean
    penalty = ridge * centred.square().sum(0).mean() + 1e-12
    few_rows = len(centred) < centred.shape[1]
    gram = centred @ centred.T if few_rows else centred.T @ centred
    gram.diagonal().add_(penalty)
    solved = centred.T @ torch.linalg.solve(gram, wanted) if few_rows else torch.linalg.solve(gram, centred.T @ wanted)
    weight = solved.T
    return weight, output_mean - weight @ feature_mean


def _assign(link: Link, weight: Tensor, bias: Tensor) -> None:
    first, rank = link.body[0], link.spec.rank
    assert isinstance(first, nn.Conv2d | nn.Linear) and first.bias is not None
    if rank is None:
        first.weight.copy_(weight.reshape(first.weight.shape))
        first.bias.copy_(bias)
        return
    last = link.body[1]
    assert isinstance(last, nn.Conv2d | nn.Linear) and last.bias is not None
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    kept = min(rank, len(s))
    first.weight.zero_()
    last.weight.zero_()
    first.bias.zero_()
    first.weight[:kept] = (s[:kept].sqrt()[:, None] * vh[:kept]).reshape(kept, *first.weight.shape[1:]).float()
    last.weight[:, :kept] = (u[:, :kept] * s[:kept].sqrt()).reshape(-1, kept, *last.weight.shape[2:]).float()
    last.bias.copy_(bias)
