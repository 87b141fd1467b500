"""A small network of a service's own, distilled from it: what its owner would try before borrowing anything (DESIGN 4).

Three convolutions that halve the resolution each, with batch norms and ReLUs, and a linear layer; for text embeddings, a convolution over
three tokens, and a linear layer on what is left of all tokens. Gated like a path: what it is not
sure of the original answers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from code_ray.activations import in_batches
from code_ray.data import Split
from code_ray.profiling import BATCH_SIZES, fastest_size, time_modules
from code_ray.runner import LegRunner
from code_ray.service import Service
from code_ray.text_blocks import PooledHead, Stem
from code_ray.tokenizer import get_tokenizer
from code_ray.training import Trainer, distillation_loss

CHANNELS = (16, 32)
"""Of the first convolution of each network that is tried; the second has twice, the third four times as many."""

EPOCHS, BATCH_SIZE, LEARNING_RATE = 6, 64, 5e-3

HEAD_GRID = 4
"""Maps are pooled to so many cells a side before the linear layer."""


@dataclass(frozen=True, eq=False)
class SmallNetwork:
    """A distilled network, seconds an image on one core at its best batch size, what it answers to the validation images, (n, classes),
    and what it took to make.
    """

    network: nn.Module
    seconds: float
    logits: npt.NDArray[np.float32]
    parameters: int
    training_seconds: float


def small_network(service: Service, channels: int) -> nn.Sequential:
    """An untrained one for what ``service`` takes, (n, *in_shape) floats or token ids, to its logits."""
    if service.boundaries[0].vocabulary is not None:
        return _small_text_network(service, service.boundaries[0].vocabulary, channels)
    widths = (service.boundaries[0].shape[0], channels, 2 * channels, 4 * channels)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    classes = service.boundaries[-1].shape[0]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(HEAD_GRID), nn.Flatten(), nn.Linear(widths[-1] * HEAD_GRID**2, classes))


def _small_text_network(service: Service, vocabulary: str, channels: int) -> nn.Sequential:
    stem = Stem(len(get_tokenizer(vocabulary)), channels, 4 * channels)
    return nn.Sequential(stem, PooledHead(4 * channels, service.boundaries[-1].shape[0]))


def distil(trainer: Trainer, channels: int, seed: int, epochs: int = EPOCHS) -> SmallNetwork:
    """Train a small network on the training images of ``trainer``'s recipe, with the recipe's loss; measure it on one thread."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    service, train = trainer.local, trainer.train
    network = small_network(service, channels)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    steps = epochs * -(-len(train) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    labels = torch.from_numpy(train.labels)
    for _ in range(epochs):
        for batch in torch.randperm(len(train)).split(BATCH_SIZE):
            images = service.preprocess(train.images[batch.numpy()])
            loss = distillation_loss(network(images), trainer.teacher(batch), labels[batch], trainer.recipe)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    spent = time.perf_counter() - started
    network.eval().requires_grad_(requires_grad=False)
    mode = trainer.modes(trainer.placement[service.name])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds, _ = fastest_size(partial(time_modules, [network], service.boundaries[0], mode), BATCH_SIZES)
    torch.set_num_threads(threads)
    logits = _answers(LegRunner([network], mode), service, trainer.data.validation)
    return SmallNetwork(network, seconds, logits, sum(p.numel() for p in network.parameters()), spent)


def _answers(runner: LegRunner, service: Service, split: Split) -> npt.NDArray[np.float32]:
    def answer(indices: Tensor) -> Tensor:
        return runner(service.preprocess(split.images[indices.numpy()]))

    return np.asarray(in_batches(answer, torch.arange(len(split))).numpy())
