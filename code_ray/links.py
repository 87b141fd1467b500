"""Links: the small trained modules between segments (DESIGN 2.2); ``link_fit`` has their closed-form start.

A link maps the tensor at one boundary to the shape of another. Between maps it is one 3x3 convolution with bias that
runs at the smaller of the two resolutions: after down-sampling, before up-sampling. *Reduced* to r filters it is two
convolutions C_in -> r -> C_out. Into vectors (logits among them) it pools to at most 3x3 and is linear. Between sequences of one length
it is linear, position by position, and passes the mask on; out of a sequence it is linear in mean and maximum over the positions that
the mask leaves. Token ids of one vocabulary are handed on as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from code_ray.blocks import Boundary, Shape
from code_ray.errors import LinkError
from code_ray.sequences import pack, pooled, unpack

HEAD_GRID = 3
"""Maps are pooled to at most this many cells a side before a linear link."""

MAX_FIT_ROWS = 16_000
"""Least squares sees at most this many positions: more cost seconds and hundreds of megabytes, and change little."""

FIT_GRID = 7
"""Of larger maps it sees about this many positions a side, so that the rows come from many images: neighbours say the same."""


@dataclass(frozen=True)
class LinkSpec:
    """Everything that decides a link's modules: shapes per sample, rank, activation, how it down-samples; whether it hands token ids
    on, and whether the last channel of its sequences is a mask.
    """

    in_shape: Shape
    out_shape: Shape
    rank: int | None = None
    relu: bool = True
    pool: Literal["avg", "max"] = "avg"
    tokens: bool = False
    masked: bool = False

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
    def is_sequence(self) -> bool:
        """Whether the link leads from sequences to sequences."""
        return len(self.in_shape) == 2 and len(self.out_shape) == 2

    @property
    def design(self) -> tuple[object, ...]:
        """What decides the features that the link's trained part sees of its inputs."""
        return self.in_shape, self.is_conv, self.is_sequence, self.masked, self.grid if len(self.in_shape) == 3 else None, self.pool

    @property
    def fit_stride(self) -> tuple[int, int]:
        """At which stride a convolution's positions take part in least squares."""
        return max(1, self.grid[0] // FIT_GRID), max(1, self.grid[1] // FIT_GRID)

    @property
    def max_fit_samples(self) -> int:
        """How many samples least squares looks at."""
        if self.is_sequence:
            # Where there is a mask about every second position is padding.
            return max(1, (2 if self.masked else 1) * MAX_FIT_ROWS // self.in_shape[0])
        if not self.is_conv:
            return MAX_FIT_ROWS
        (height, width), (down, across) = self.grid, self.fit_stride
        return max(1, MAX_FIT_ROWS // (-(-height // down) * -(-width // across)))


def link_spec(source: Boundary, target: Boundary, *, rank: int | None, to_input: bool, to_logits: bool, skip: bool) -> LinkSpec:
    """The link between two boundaries.

    ReLU stands where the next block expects what a ReLU made: never into a network's input or logits, and not into
    linear bottlenecks such as MobileNet's. Reduced links on skips down-sample by max-pool (the paper's experiment 2).
    """
    tokens = target.vocabulary is not None
    return LinkSpec(
        in_shape=source.shape,
        out_shape=target.shape,
        rank=None if to_logits or tokens else rank,
        relu=target.nonnegative and not to_input and not to_logits,
        pool="max" if skip and rank is not None else "avg",
        tokens=tokens,
        masked=source.masked,
    )


def joins(source: str | None, target: str | None) -> bool:
    """Whether a link leads from boundaries of one form to those of another (see ``Boundary.form``): from each to its like, so between
    sequences of one length and token ids of one vocabulary, and out of sequences into vectors and maps. None: of unknown form.
    """
    if source is None or target is None:
        return True
    return source == target or ("sequence" in source.split() and target == "values")


class Link(nn.Module):
    """The module of a ``LinkSpec``: float (n, *in_shape) -> (n, *out_shape)."""

    def __init__(self, spec: LinkSpec) -> None:
        super().__init__()
        self.spec = spec
        _require_ends(spec)
        if spec.tokens:
            self.body = nn.Sequential()
        elif spec.is_sequence:
            channels_in, channels_out = _num_features(spec), spec.out_shape[1] - spec.masked
            first_map = nn.Linear(channels_in, spec.rank or channels_out)
            self.body = nn.Sequential(first_map) if spec.rank is None else nn.Sequential(first_map, nn.Linear(spec.rank, channels_out))
        elif spec.is_conv:
            channels_in, channels_out = spec.in_shape[0], spec.out_shape[0]
            first = nn.Conv2d(channels_in, spec.rank or channels_out, 3, padding=1)
            self.body = nn.Sequential(first) if spec.rank is None else nn.Sequential(first, nn.Conv2d(spec.rank, channels_out, 1))
        else:
            features, outputs = _num_features(spec), int(torch.Size(spec.out_shape).numel())
            first_linear = nn.Linear(features, spec.rank or outputs)
            self.body = nn.Sequential(first_linear) if spec.rank is None else nn.Sequential(first_linear, nn.Linear(spec.rank, outputs))

    def forward(self, value: Tensor) -> Tensor:
        if self.spec.tokens:
            return value
        if self.spec.is_sequence:
            return self._along(value)
        value = self.body(resample(self.spec, value))
        if self.spec.relu:
            value = functional.relu(value)
        if not self.spec.is_conv:
            return value.view(-1, *self.spec.out_shape)
        if value.shape[2:] != self.spec.out_shape[1:]:
            value = functional.interpolate(value, self.spec.out_shape[1:], mode="bilinear")
        return value

    def _along(self, sequence: Tensor) -> Tensor:
        values, mask = unpack(sequence) if self.spec.masked else (sequence, None)
        values = self.body(values)
        if self.spec.relu:
            values = functional.relu(values)
        return values if mask is None else pack(values, mask)


def resample(spec: LinkSpec, value: Tensor) -> Tensor:
    """What a link's trained part sees of (n, *in_shape): down-sampled maps, or flat features before a linear link; of sequences mean
    and maximum over their positions.
    """
    if len(spec.in_shape) == 2:
        return pooled(value) if spec.masked else torch.cat([value.mean(1), value.amax(1)], -1)
    if len(spec.in_shape) == 3 and spec.grid != spec.in_shape[1:]:
        pool = functional.adaptive_max_pool2d if spec.pool == "max" else functional.adaptive_avg_pool2d
        value = pool(value, spec.grid)
    return value if spec.is_conv else value.flatten(1)


def _require_ends(spec: LinkSpec) -> None:
    """Raises ``LinkError`` where no link leads from the one shape to the other; ``joins`` says so of boundaries, before it comes to that."""
    along = len(spec.in_shape) == 2
    if spec.tokens:
        fits = spec.in_shape == spec.out_shape
    elif len(spec.out_shape) == 2:
        fits = along and spec.in_shape[0] == spec.out_shape[0]
    else:
        fits = len(spec.in_shape) in (1, 2, 3) and len(spec.out_shape) in (1, 3)
    if not fits:
        raise LinkError(
            f"no link leads from shape {spec.in_shape} to {spec.out_shape}; between vectors and maps one does, between sequences of one "
            "length, out of sequences into vectors and maps, and token ids are handed on as they are"
        )


def _num_features(spec: LinkSpec) -> int:
    if len(spec.in_shape) == 1:
        return spec.in_shape[0]
    if len(spec.in_shape) == 2:
        return (spec.in_shape[1] - spec.masked) * (1 if spec.is_sequence else 2)
    return spec.in_shape[0] * spec.grid[0] * spec.grid[1]
