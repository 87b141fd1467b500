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

GRAM_STRIPS = 8

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

    @property
    def is_conv(self) -> bool:
        """Whether the link leads from maps to maps."""
        return len(self.in_shape) == 3 and len(self.out_shape) == 3

    @property
    def design(self) -> tuple[object, ...]:
        """What decides the features that the link's trained part sees of its inputs."""
        return self.in_shape, self.is_conv, self.grid if len(self.in_shape) == 3 else None, self.pool

    @property
    def fit_stride(self) -> tuple[int, int]:
        """At which stride a convolution's positions take part in least squares."""
        return max(1, self.grid[0] // FIT_GRID), max(1, self.grid[1] // FIT_GRID)

    @property
    def max_fit_samples(self) -> int:
        """How many samples least squares looks at."""
        if not self.is_conv:
            return MAX_FIT_ROWS
        (height, width), (down, across) = self.grid, self.fit_stride
        return max(1, MAX_FIT_ROWS // (-(-height // down) * -(-width // across)))


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
        if spec.is_conv:
            channels_in, channels_out = spec.in_shape[0], spec.out_shape[0]
            first = nn.Conv2d(channels_in, spec.rank or channels_out, 3, padding=1)
            self.body = nn.Sequential(first) if spec.rank is None else nn.Sequential(first, nn.Conv2d(spec.rank, channels_out, 1))
        else:
            features, outputs = _num_features(spec), int(torch.Size(spec.out_shape).numel())
            first_linear = nn.Linear(features, spec.rank or outputs)
            self.body = nn.Sequential(first_linear) if spec.rank is None else nn.Sequential(first_linear, nn.Linear(spec.rank, outputs))

    def forward(self, value: Tensor) -> Tensor:
        value = self.body(resample(self.spec, value))
        if self.spec.relu:
            value = functional.relu(value)
        if not self.spec.is_conv:
            return value.view(-1, *self.spec.out_shape)
        if value.shape[2:] != self.spec.out_shape[1:]:
            value = functional.interpolate(value, self.spec.out_shape[1:], mode="bilinear")
        return value


def resample(spec: LinkSpec, value: Tensor) -> Tensor:
    """What a link's trained part sees of (n, *in_shape): down-sampled maps, or flat features before a linear link."""
    if len(spec.in_shape) == 3 and spec.grid != spec.in_shape[1:]:
        pool = functional.adaptive_max_pool2d if spec.pool == "max" else functional.adaptive_avg_pool2d
        value = pool(value, spec.grid)
    return value if spec.is_conv else value.flatten(1)


def _num_features(spec: LinkSpec) -> int:
    if len(spec.in_shape) == 1:
        return spec.in_shape[0]
    return spec.in_shape[0] * spec.grid[0] * spec.grid[1]


class LinkFit:
    """Ridge-regularised least squares from one set of inputs, factorised once for every link that sees them alike.

    Links of equal ``LinkSpec.design`` share it: their normal matrix is the same and only the right-hand sides differ, so that
    the links from one boundary to many cost little more than the link to one. Computed on the device of the inputs; the link
    that is set and its targets may lie elsewhere.
    """

    @torch.no_grad()
    def __init__(self, spec: LinkSpec, inputs: Tensor, ridge: float = RIDGE) -> None:
        """inputs (n, *in_shape) float32.

        Raises:
            LinkError: where the inputs do not have the shape of ``spec``, or are not finite.
        """
        if tuple(inputs.shape[1:]) != spec.in_shape:
            raise LinkError(f"cannot fit a link {spec.in_shape} -> {spec.out_shape} to {tuple(inputs.shape)}")
        self.design = spec.design
        self._inputs_shape = tuple(inputs.shape)
        features = _fit_features(spec, inputs[: spec.max_fit_samples])
        self._feature_mean = features.mean(0)
        # Sums over rows in float32, twice as fast: their error lies far below the ridge. What is solved is in float64.
        self._centred = features - self._feature_mean
        # Solved in its smaller dimension.
        self._few_rows = len(features) < features.shape[1]
        gram = _lower_gram(self._centred.T if self._few_rows else self._centred).double()
        gram.diagonal().add_(ridge * gram.trace() / features.shape[1] + 1e-12)  # the trace is the sum of all squares
        if not bool(torch.isfinite(gram).all()):
            raise LinkError("least squares met values that are not finite; check the activations of both services")
        self._factor = torch.linalg.cholesky(gram)

    @torch.no_grad()
    def fit(self, link: Link, targets: Tensor) -> None:
        """Set ``link`` to the map from the inputs to ``targets`` (n, *out_shape) float32 (DESIGN 3.4).

        Before an up-sampling the target is what averages to it. A reduced link gets the best rank-r approximation of the
        full map (truncated singular values).

        Raises:
            LinkError: where the targets do not fit the link or the inputs, or are not finite.
        """
        if link.spec.design != self.design or tuple(targets.shape[1:]) != link.spec.out_shape or len(targets) != self._inputs_shape[0]:
            raise LinkError(
                f"cannot fit a link {link.spec.in_shape} -> {link.spec.out_shape} to {self._inputs_shape} -> {tuple(targets.shape)}"
            )
        outputs = _fit_outputs(link.spec, targets[: link.spec.max_fit_samples].to(self._centred.device))
        output_mean = outputs.mean(0)
        wanted = outputs - output_mean
        if self._few_rows:
            weight = (self._centred.T @ torch.cholesky_solve(wanted.double(), self._factor).float()).T
        else:
            weight = torch.cholesky_solve((self._centred.T @ wanted).double(), self._factor).float().T
        if not bool(torch.isfinite(weight).all()):
            raise LinkError("least squares met values that are not finite; check the activations of both services")
        _assign(link, weight, output_mean - weight @ self._feature_mean)


def fit_link(link: Link, inputs: Tensor, targets: Tensor, ridge: float = RIDGE) -> None:
    """Fit one link, see ``LinkFit``.

    Raises:
        LinkError: where shapes do not fit the link, or a value is not finite.
    """
    LinkFit(link.spec, inputs, ridge).fit(link, targets)


def _lower_gram(columns: Tensor) -> Tensor:
    """The lower triangle of ``columns.T @ columns`` (d, d), with zeros or numbers of no meaning above it: about half the work."""
    width = columns.shape[1]
    gram = columns.new_zeros(width, width)
    step = -(-width // GRAM_STRIPS)
    for at in range(0, width, step):
        gram[at:, at : at + step] = columns[:, at:].T @ columns[:, at : at + step]
    return gram


def _fit_features(spec: LinkSpec, inputs: Tensor) -> Tensor:
    """What the trained part sees, a row a sample, or a position where it is a convolution."""
    if not spec.is_conv:
        return resample(spec, inputs)
    patches = functional.unfold(resample(spec, inputs), 3, padding=1, stride=spec.fit_stride).transpose(1, 2)
    return patches.reshape(-1, patches.shape[2])


def _fit_outputs(spec: LinkSpec, targets: Tensor) -> Tensor:
    """What it should give, in the rows of ``_fit_features``."""
    if not spec.is_conv:
        return targets.flatten(1)
    if targets.shape[2:] != spec.grid:
        targets = functional.adaptive_avg_pool2d(targets, spec.grid)
    return targets[:, :, :: spec.fit_stride[0], :: spec.fit_stride[1]].permute(0, 2, 3, 1).reshape(-1, targets.shape[1])


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
