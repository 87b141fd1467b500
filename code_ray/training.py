"""Train and evaluate the links of one path (DESIGN 3.4).

Frozen blocks run as fast copies in the mode their server uses; what lies before the first link is constant and computed
once. Every link starts from the least-squares fit that makes it reproduce what the next block expects, then all links of
the path are trained together on cross-entropy mixed with distillation from the original service's logits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from code_ray.blocks import ExecutionMode, optimise
from code_ray.data import DataSet, Split
from code_ray.links import Link, fit_link
from code_ray.path import InferencePath, LinkSlot
from code_ray.runner import LegRunner, PathRunner, Placement, make_links
from code_ray.service import Service

MAX_CACHED_VALUES = 200_000_000
"""Larger sets of activations (800 MB of float32) are computed batch by batch instead of kept."""


class Recipe(BaseModel):
    """How links are trained. The same recipe serves every path, host and control.

    After the least-squares fit, ``steps`` train the last link alone, on activations computed once (what lies before it is
    constant then, which makes a step many times cheaper), and ``joint_steps`` train all links together.
    Least-squares links are validated on the first ``screen_samples`` validation images, trained ones on all.
    ``fit_entry``: an entry link into hin > 1 is fitted to what the host's own blocks make of calibration images, so the host
    must see ``fit_samples`` of them; off, such links start at random.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(12_000, ge=1)
    fit_samples: int = Field(1_000, ge=2)
    screen_samples: int = Field(1_500, ge=1)
    steps: int = Field(300, ge=0)
    learning_rate: float = Field(1e-3, gt=0)
    joint_steps: int = Field(150, ge=0)
    joint_learning_rate: float = Field(5e-4, gt=0)
    batch_size: int = Field(32, ge=1)
    distillation: float = Field(0.9, ge=0, le=1)
    temperature: float = Field(2.0, gt=0)
    fit_entry: bool = True


@dataclass(frozen=True)
class TrainedPath:
    """Links of a path after training, with the validation accuracy before (``accuracy_fit``) and after."""

    path: InferencePath
    links: Mapping[str, Link]
    accuracy_fit: float
    accuracy: float
    seconds: float


class Trainer:
    """Trains paths of one local service; keeps what is constant between them.

    Everything held is a cache: a new trainer with the same arguments gives the same links. ``device`` is torch's; links are
    fitted, and come back, on the CPU.
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
    ) -> None:
        self.services = services
        self.local = services[local]
        self.data = data
        self.placement = placement
        self.modes = modes
        self.recipe = recipe
        self.device = device
        self.train = data.train.head(recipe.samples)
        self._prefixes: dict[int, Tensor] = {}

    def train_path(self, path: InferencePath, seed: int, *, fit_only: bool = False) -> TrainedPath:
        """Fit, train and validate the links of ``path``; ``fit_only`` stops after least squares.

        Raises:
            LinkError: where a link cannot be built or fitted.
        """
        started = time.monotonic()
        torch.manual_seed(seed)
        links = make_links(path, self.services)
        stages = self._stages(path, links)
        self._fit(path, stages)
        accuracy_fit = accuracy = self.accuracy(path, links, self.data.validation.head(self.recipe.screen_samples))
        if stages and not fit_only:
            _move(stages, self.device)
            last = len(stages) - 1
            self._descend(path, stages, last, self.recipe.steps, self.recipe.learning_rate, seed)
            self._descend(path, stages, 0, self.recipe.joint_steps, self.recipe.joint_learning_rate, seed + 1)
            _move(stages, "cpu")
            accuracy = self.accuracy(path, links, self.data.validation)
        return TrainedPath(path, links, accuracy_fit, accuracy, time.monotonic() - started)

    def accuracy(self, path: InferencePath, links: Mapping[str, Link], split: Split) -> float:
        """Share of ``split`` that ``path`` classifies right, run in the servers' execution modes."""
        return float((self.predictions(path, links, split) == split.labels).mean())

    def predictions(self, path: InferencePath, links: Mapping[str, Link], split: Split) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Predicted class of each image of ``split``."""
        runner = PathRunner(path, self.services, links, self.placement, self.modes, self.device)
        return np.asarray(runner(self.local.preprocess(split.images)).argmax(1).numpy())

    def _mode(self, service: str) -> ExecutionMode:
        return self.modes(self.placement[service])

    def _stages(self, path: InferencePath, links: Mapping[str, Link]) -> list[_Stage]:
        """Each link with the frozen blocks behind it (none behind a link to the logits)."""
        stages = []
        for slot, segment in zip(path.link_slots, (*path.segments[1:], None), strict=False):
            blocks = [] if segment is None else list(self.services[segment.service].blocks[segment.start : segment.stop])
            mode = _training_mode(blocks, self.modes(self.placement[segment.service])) if segment else ExecutionMode()
            stages.append(_Stage(slot, links[slot.key], optimise(nn.Sequential(*blocks), mode), mode))
        return stages

    def _prefix(self, lout: int, indices: Tensor) -> Tensor:
        """Activations behind local block ``lout`` for training images ``indices``, (n, *shape) float32."""
        if not self._is_kept(self.local.boundaries[lout].shape):
            return self._run(self.local, 0, lout, self.local.preprocess(self.train.images[indices.numpy()]))
        if lout not in self._prefixes:
            # Input and logits serve every path, of the rest one at a time is enough: paths come in any order.
            self._prefixes = {k: v for k, v in self._prefixes.items() if k in (0, self.local.num_blocks)}
            self._prefixes[lout] = self._run(self.local, 0, lout, self.local.preprocess(self.train.images))
        return self._prefixes[lout][indices]

    def _is_kept(self, shape: tuple[int, ...]) -> bool:
        return len(self.train) * int(torch.Size(shape).numel()) <= MAX_CACHED_VALUES

    def _run(self, service: Service, start: int, stop: int, value: Tensor) -> Tensor:
        """Blocks start..stop-1 in the mode of their server, without gradients."""
        if start == stop:
            return value
        return _in_batches(LegRunner(list(service.blocks[start:stop]), self._mode(service.name), self.device), value)

    def _activations(self, path: InferencePath, stages: list[_Stage]) -> Callable[[Tensor], Tensor]:
        """Training image indices -> activations behind ``stages``, whose links are as they are now; no gradients."""

        @torch.no_grad()
        def compute(indices: Tensor) -> Tensor:
            value = self._prefix(path.lout, indices)
            for stage in stages:
                value = stage(value)
            return value

        return compute

    def _fit(self, path: InferencePath, stages: list[_Stage]) -> None:
        count = min(self.recipe.fit_samples, len(self.train))
        for number, stage in enumerate(stages):
            target = self._fit_target(stage.slot, count)
            if target is not None:
                value = _in_batches(self._activations(path, stages[:number]), torch.arange(count))
                fit_link(stage.link, value, target)

    def _fit_target(self, slot: LinkSlot, count: int) -> Tensor | None:
        """What the block behind a link expects for the first ``count`` training images, None where nobody may know."""
        name, position = slot.target
        service = self.services[name]
        if service is not self.local and position > 0 and not self.recipe.fit_entry:
            return None
        return self._run(service, 0, position, service.preprocess(self.train.images[:count]))

    def _descend(self, path: InferencePath, stages: list[_Stage], first: int, steps: int, learning_rate: float, seed: int) -> None:
        """Train the links from number ``first`` on for ``steps`` batches, the learning rate falling to 0 by a cosine."""
        if steps == 0:
            return
        recipe = self.recipe
        before = self._activations(path, stages[:first])
        if first > 0 and self._is_kept(stages[first].link.spec.in_shape):
            before = _in_batches(before, torch.arange(len(self.train))).__getitem__
        labels = torch.from_numpy(self.train.labels)
        parameters = [parameter for stage in stages[first:] for parameter in stage.link.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        for step in range(steps):
            batch = order[(torch.arange(recipe.batch_size) + step * recipe.batch_size) % len(order)]
            value = before(batch)
            for stage in stages[first:]:
                value = stage(value)
            teacher = self._prefix(self.local.num_blocks, batch)
            loss = _loss(value, teacher.to(value.device), labels[batch].to(value.device), recipe)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()


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


def _move(stages: list[_Stage], device: str) -> None:
    for stage in stages:
        stage.link.to(device)
        stage.frozen.to(device)


def _training_mode(blocks: list[nn.Module], served: ExecutionMode) -> ExecutionMode:
    """The served mode, but float32 through depthwise convolutions: on CPUs their bf16 backward pass is the slower one."""
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for block in blocks for m in block.modules())
    return ExecutionMode("float32", served.channels_last) if depthwise else served


def _loss(logits: Tensor, teacher: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Cross-entropy mixed with distillation; both averaged over the batch."""
    t = recipe.temperature
    distilled = functional.kl_div(
        functional.log_softmax(logits / t, 1), functional.log_softmax(teacher / t, 1), reduction="batchmean", log_target=True
    )
    return recipe.distillation * t * t * distilled + (1 - recipe.distillation) * functional.cross_entropy(logits, labels)


def _in_batches(run: Callable[[Tensor], Tensor], value: Tensor, batch_size: int = 64) -> Tensor:
    return torch.cat([run(part) for part in value.split(batch_size)])
