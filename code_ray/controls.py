"""Controls: what a claim about a host has to beat (DESIGN 1)."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import nn

from code_ray.data import SampleArray
from code_ray.path import InferencePath, Segment
from code_ray.service import Service, build_service
from code_ray.zoo import BUILDERS

RANDOM_SUFFIX = "-random"

RANDOM_SEEDS = 982_451_653
"""Random hosts draw from seeds of their own: from the seed a host was trained with they would be its initial weights."""


def random_host(host: Service, images: SampleArray | None, seed: int = 0) -> Service:
    """The host's architecture with fresh random weights, its batch norms calibrated on ``images``.

    images: uint8 (n, H, W) or (n, H, W, 3), or token ids, the local service's calibration images; noise where the host may not see them. Without
    calibration a deep random network fades to a constant and the control would be too easy to beat.
    """
    with torch.random.fork_rng():
        torch.manual_seed(RANDOM_SEEDS + seed)
        blocks = BUILDERS[host.spec.builder](**host.spec.builder_args)
    blocks.eval()  # dropout would draw random numbers; batch norms are put in training one by one
    inputs = host.preprocess(host.spec.preprocessing.noise(256) if images is None else images)
    norms = [module for module in blocks.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the calibration batches
        norm.train()
    with torch.no_grad():
        for batch in inputs.split(64):
            value = batch
            for block in blocks:
                value = block(value)
    spec = host.spec
    noise, name = spec.preprocessing.noise(8), host.name + RANDOM_SUFFIX
    return build_service(name, spec.builder, spec.builder_args, blocks, spec.preprocessing, spec.labels, noise)


def control_paths(path: InferencePath) -> dict[str, InferencePath]:
    """The controls of a cross path by name: random_host, links_only and, where there is one, the skip it replaces."""
    controls = {
        "random_host": InferencePath(path.num_blocks, tuple(_randomised(s, path.local) for s in path.segments), path.rank),
        "links_only": InferencePath(path.num_blocks, tuple(_emptied(s, path.local) for s in path.segments), path.rank),
    }
    if path.ends_in_head:
        controls["skip"] = InferencePath(path.num_blocks, tuple(s for s in path.segments if s.service == path.local), path.rank)
    return controls


def with_trained_hosts(path: InferencePath, services: Container[str] = ()) -> InferencePath:
    """``path`` with every random host replaced by the one it stands for; what is one of ``services`` stands for itself."""

    def trained(name: str) -> str:
        return name if name in services else name.removesuffix(RANDOM_SUFFIX)

    return InferencePath(path.num_blocks, tuple(Segment(trained(s.service), s.start, s.stop) for s in path.segments), path.rank)


def _randomised(segment: Segment, local: str) -> Segment:
    return segment if segment.service == local else Segment(segment.service + RANDOM_SUFFIX, segment.start, segment.stop)


def _emptied(segment: Segment, local: str) -> Segment:
    return segment if segment.service == local else Segment(segment.service, segment.start, segment.start)
