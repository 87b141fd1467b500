"""The closed-form start of links: ridge-regularised least squares (DESIGN 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from code_ray.errors import LinkError
from code_ray.links import Link, LinkSpec, resample
from code_ray.sequences import unpack

GRAM_STRIPS = 8

RIDGE = 1e-3
"""Ridge of the least-squares fit relative to the mean squared feature: 1e-3 was best, 0.1 cost 1-4 points."""


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
        if spec.tokens:
            return
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
        if link.spec.tokens:
            return
        outputs = _fit_outputs(link.spec, targets[: link.spec.max_fit_samples].to(self._centred.device))
        if len(outputs) != len(self._centred):
            raise LinkError(
                f"{len(self._centred)} tokens reach a link whose targets have {len(outputs)}; the masks of both services differ"
            )
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
    """What the trained part sees, a row a sample, or a position where it is a convolution or leads along a sequence; not padding."""
    if spec.is_sequence:
        return _positions(spec, inputs)
    if not spec.is_conv:
        return resample(spec, inputs)
    patches = functional.unfold(resample(spec, inputs), 3, padding=1, stride=spec.fit_stride).transpose(1, 2)
    return patches.reshape(-1, patches.shape[2])


def _fit_outputs(spec: LinkSpec, targets: Tensor) -> Tensor:
    """What it should give, in the rows of ``_fit_features``."""
    if spec.is_sequence:
        return _positions(spec, targets)
    if not spec.is_conv:
        return targets.flatten(1)
    if targets.shape[2:] != spec.grid:
        targets = functional.adaptive_avg_pool2d(targets, spec.grid)
    return targets[:, :, :: spec.fit_stride[0], :: spec.fit_stride[1]].permute(0, 2, 3, 1).reshape(-1, targets.shape[1])


def _positions(spec: LinkSpec, sequence: Tensor) -> Tensor:
    if not spec.masked:
        return sequence.flatten(0, 1)
    values, mask = unpack(sequence)
    return values[mask]


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
