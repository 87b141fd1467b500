"""Train and evaluate the links of one path (DESIGN 3.4).

Frozen blocks run as fast copies in the mode their server uses; what lies before the first link is constant and computed
once. Every link starts from the least-squares fit that makes it reproduce what the next block expects, then all links of
the path are trained together on cross-entropy mixed with distillation from the original service's logits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from code_ray.activations import Activations, in_batches
from code_ray.blocks import ExecutionMode, optimise
from code_ray.data import DataSet, Split
from code_ray.link_inputs import LinkInputs
from code_ray.links import Link, fit_link
from code_ray.path import InferencePath, LinkSlot
from code_ray.recipe import Recipe
from code_ray.runner import PathRunner, Placement, make_links, walk, walk_apart
from code_ray.service import Service

WARM_UP_STEPS = 50
"""AdamW's first steps are as long as the learning rate whatever the gradient: without a warm-up they undo the least-squares
start, which cost 0.3 to 2.9 points at the end."""

WINDOW = 1024
"""Images that are shuffled together."""

MAX_TARGET_VALUES = 10_000_000
"""What links are fitted to is kept up to 40 MB a block."""


class Trainer:
    """Trains paths of one local service; keeps what is constant between them.

    Everything held is a cache: a new trainer with the same arguments gives the same links. ``device`` is torch's; links come
    back on the CPU. ``teacher`` are the original's logits on the training images, (n, classes) float32, where they are known.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        local: str,
        data: DataSet,
        placement: Placement,
        modes: Callable[[str], ExecutionMode],
        recipe: Recipe,
        device: str = "cpu",
        teacher: Tensor | None = None,
    ) -> None:
        self.services = services
        self.local = services[local]
        self.data = data
        self.placement = placement
        self.modes = modes
        self.recipe = recipe
        self.device = device
        self.train = data.train.head(recipe.samples)
        self.activations = Activations(services, local, self.train.images, placement, modes, device)
        self._teacher = teacher
        splits = {"train": self.train, "validation": data.validation, "test": data.test}
        self.link_inputs = LinkInputs(services, local, splits, placement, modes, device)
        self._fit_targets: dict[tuple[str, int, int], Tensor] = {}

    def teacher(self, indices: Tensor) -> Tensor:
        """Logits of the original for training images ``indices``, (n, classes) float32: what links are distilled from."""
        if self._teacher is not None:
            return self._teacher[indices]
        return self.activations.behind(self.local.num_blocks, indices)

    @cached_property
    def screen_logits(self) -> Tensor:
        """Logits of the original on the first ``screen_samples`` validation images: what cheap measurements are compared with."""
        images = self.data.validation.head(self.recipe.screen_samples).images
        return self.activations.run(self.local.name, 0, self.local.num_blocks, self.local.preprocess(images)).cpu().float()

    @property
    def screen_accuracy(self) -> float:
        """Accuracy of the original on those images."""
        labels = self.data.validation.head(self.recipe.screen_samples).labels
        return float((self.screen_logits.argmax(1).numpy() == labels).mean())

    def may_fit(self, slot: LinkSlot) -> bool:
        """Whether what the link at ``slot`` should make may be known: a host may have to see images for it."""
        name, position = slot.target
        return name == self.local.name or position == 0 or self.recipe.fit_entry

    def fit_target(self, slot: LinkSlot, count: int) -> Tensor | None:
        """What the block behind a link expects for the first ``count`` training images, None where nobody may know. Small ones are
        kept, since many paths lead to one block.
        """
        if not self.may_fit(slot):
            return None
        name, position = slot.target
        if (name, position) == (self.local.name, self.local.num_blocks):
            return self.teacher(torch.arange(count))
        target = self._fit_targets.get((name, position, count))
        if target is None:
            images = self.services[name].preprocess(self.train.images[:count])
            target = self.activations.run(name, 0, position, images)
            if target.numel() <= MAX_TARGET_VALUES:
                self._fit_targets[name, position, count] = target
        return target

    def accuracy(self, path: InferencePath, links: Mapping[str, Link], split: Split) -> float:
        """Share of ``split`` that ``path`` classifies right, run in the servers' execution modes."""
        return float((self.logits(path, links, split).argmax(1) == split.labels).mean())

    def logits(self, path: InferencePath, links: Mapping[str, Link], split: Split) -> npt.NDArray[np.float32]:
        """What a path answers to the images of ``split``: (n, classes)."""
        runner = PathRunner(walk(path, self.placement), self.services, links, self.modes, self.device)
        return np.asarray(runner(self.local.preprocess(split.images)).numpy())


class LinkTraining:
    """The links of one path on their way: fitted, then trained from rung to rung.

    ``advance`` can be called any number of times; where it pauses leaves no trace in the links. ``times``: how many times as long
    as the trainer's recipe says.
    """

    def __init__(self, trainer: Trainer, path: InferencePath, seed: int, times: int = 1) -> None:
        torch.manual_seed(seed)
        self.path = path
        self.links = make_links(path, trainer.services)
        self.steps = 0
        self.recipe = trainer.recipe.longer(times)
        self._trainer = trainer
        self._seed = seed
        self._stages = self._make_stages()
        self._descent: _Descent | None = None

    def fit(self) -> None:
        """Start every link from least squares.

        Raises:
            LinkError: where a link cannot be fitted.
        """
        images = min(self._trainer.recipe.fit_samples, len(self._trainer.train))
        for number, stage in enumerate(self._stages):
            count = min(images, stage.link.spec.max_fit_samples)
            target = self._trainer.fit_target(stage.slot, count)
            if target is not None:
                fit_link(stage.link, self._inputs(number)(torch.arange(count)).to(self._trainer.device), target)

    def advance(self, steps: int) -> None:
        """Train until ``steps`` batches of the recipe's total have been seen."""
        recipe = self.recipe
        if not self._stages:
            return
        for stage in self._stages:
            stage.move(self._trainer.device)
        # Another path may have been trained since the last pause.
        self._trainer.link_inputs.turn_to(self.path, self.links)
        while self.steps < min(steps, recipe.total_steps):
            if self.steps == 0 and recipe.steps > 0:
                self._descent = _Descent(self, len(self._stages) - 1, recipe.steps, recipe.learning_rate, self._seed)
            elif self.steps == recipe.steps:
                self._descent = _Descent(self, 0, recipe.joint_steps, recipe.joint_learning_rate, self._seed + 1)
            assert self._descent is not None
            self._descent.step()
            self.steps += 1
        for stage in self._stages:
            stage.move("cpu")

    def screen_accuracy(self) -> float:
        """Accuracy on the first ``screen_samples`` validation images."""
        return self.accuracy("validation", self._trainer.recipe.screen_samples)

    def accuracy(self, split: Literal["validation", "test"], count: int | None = None) -> float:
        """What ``Trainer.accuracy`` says of the links as they are, on the first ``count`` images (default: all) of a split."""
        labels = self._trainer.link_inputs.splits[split].head(count or sys.maxsize).labels
        return float((self.logits(split, count).argmax(1) == labels).mean())

    def logits(self, split: Literal["validation", "test"], count: int | None = None) -> npt.NDArray[np.float32]:
        """What ``Trainer.logits`` says of them; what reaches the last link is run once for all paths that begin alike."""
        trainer = self._trainer
        inputs, images = trainer.link_inputs, trainer.link_inputs.splits[split].head(count or sys.maxsize)
        if not self.path.link_slots:
            return trainer.logits(self.path, self.links, images)
        inputs.turn_to(self.path, self.links)
        _, legs = walk_apart(self.path, trainer.placement)
        runner = PathRunner(legs, trainer.services, self.links, trainer.modes, trainer.device)
        logits = in_batches(lambda indices: runner(inputs.rows(split, indices)), torch.arange(len(images)))
        return np.asarray(logits.numpy())

    def _make_stages(self) -> list[_Stage]:
        """Each link with the frozen blocks behind it (none behind a link to the logits)."""
        trainer, stages = self._trainer, []
        for slot, segment in zip(self.path.link_slots, (*self.path.segments[1:], None), strict=False):
            blocks = [] if segment is None else list(trainer.services[segment.service].blocks[segment.start : segment.stop])
            mode = _training_mode(blocks, trainer.activations.mode(segment.service)) if segment else ExecutionMode()
            stages.append(_Stage(slot, self.links[slot.key], optimise(nn.Sequential(*blocks), mode), mode))
        return stages

    def _inputs(self, number: int) -> Callable[[Tensor], Tensor]:
        """Training image indices -> what reaches link ``number``, with the links before it as they are now; no gradients."""
        trainer = self._trainer
        if number == len(self._stages) - 1:
            trainer.link_inputs.turn_to(self.path, self.links)
            return partial(trainer.link_inputs.rows, "train")

        @torch.no_grad()
        def compute(indices: Tensor) -> Tensor:
            value = trainer.activations.behind(self.path.lout, indices)
            for stage in self._stages[:number]:
                value = in_batches(stage, value)
            return value

        return compute


class _Descent:
    """Training of the links from number ``first`` on for ``steps`` batches."""

    def __init__(self, training: LinkTraining, first: int, steps: int, learning_rate: float, seed: int) -> None:
        trainer = training._trainer
        self._trainer = trainer
        self._stages = training._stages[first:]
        self._inputs = training._inputs(first)
        self._labels = torch.from_numpy(trainer.train.labels)
        parameters = [parameter for stage in self._stages for parameter in stage.link.parameters()]
        self._optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-4)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, lambda step: _rate(step, steps))
        self._order = _order(len(self._labels), seed)
        self._done = 0

    def step(self) -> None:
        recipe = self._trainer.recipe
        batch = self._order[(torch.arange(recipe.batch_size) + self._done * recipe.batch_size) % len(self._order)]
        value = self._inputs(batch)
        for stage in self._stages:
            value = stage(value)
        labels = self._labels[batch].to(value.device)
        if recipe.distillation > 0:
            loss = distillation_loss(value, self._trainer.teacher(batch).to(value.device), labels, recipe)
        else:
            loss = functional.cross_entropy(value, labels)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._optimiser.step()
        self._schedule.step()
        self._done += 1


@dataclass(frozen=True)
class _Stage:
    """A link in training and the frozen blocks behind it; gradients pass through both."""

    slot: LinkSlot
    link: Link
    frozen: nn.Module
    mode: ExecutionMode

    def __call__(self, value: Tensor) -> Tensor:
        device = next(self.link.parameters()).device
        output: Tensor = self.frozen(self.mode.cast(self.link(value.to(device))))
        return output.float()

    def move(self, device: str) -> None:
        self.link.to(device)
        self.frozen.to(device)


def _order(count: int, seed: int) -> Tensor:
    """In which order ``count`` images are looked at, shuffled within windows: what a link is given is computed window by window, so
    that a training which is stopped early has not paid for images it never saw. Data sets come shuffled.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in torch.arange(count).split(WINDOW)])


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate at a step: up in a line over ``WARM_UP_STEPS`` (a quarter of short trainings), to 0 by a cosine."""
    warm_up = max(1, min(WARM_UP_STEPS, steps // 4))
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def _training_mode(blocks: list[nn.Module], served: ExecutionMode) -> ExecutionMode:
    """The served mode, but float32 through depthwise convolutions: on CPUs their bf16 backward pass is the slower one."""
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for block in blocks for m in block.modules())
    return ExecutionMode("float32", served.channels_last) if depthwise else served


def distillation_loss(logits: Tensor, teacher: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Cross-entropy mixed with distillation; both averaged over the batch."""
    t = recipe.temperature
    distilled = functional.kl_div(
        functional.log_softmax(logits / t, 1), functional.log_softmax(teacher / t, 1), reduction="batchmean", log_target=True
    )
    return recipe.distillation * t * t * distilled + (1 - recipe.distillation) * functional.cross_entropy(logits, labels)
