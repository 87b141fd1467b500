"""Train and evaluate the links of one path (DESIGN 3.4).

Frozen blocks run as fast copies in the mode their server uses; what lies before the first link is constant and computed
once. Every link starts from the least-squares fit that makes it reproduce what the next block expects, then all links of
the path are trained together on cross-entropy mixed with distillation from the original service's logits.

Blocks and links belong to parties (see ``party.py``). Here, at the local service, are images, labels, the teacher and the loss; where
hosts are parties of their own, nothing but activations and gradients goes to them and comes back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from code_ray.activations import Activations, run_blocks
from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet, Split
from code_ray.link_inputs import Images, LinkInputs
from code_ray.links import Link
from code_ray.own_party import OwnParty
from code_ray.party import Party, Traffic, writeable
from code_ray.path import InferencePath, LinkSlot
from code_ray.recipe import Recipe
from code_ray.relay import OWN, Parties, Relay
from code_ray.runner import PathRunner, Payload, Placement, walk
from code_ray.service import Service
from code_ray.trunk import Trunk, trunk_of

WINDOW = 1024
"""Images that are shuffled together."""


class Trainer:
    """Trains paths of one local service; keeps what is constant between them.

    Everything held is a cache: a new trainer with the same arguments gives the same links. ``device`` is torch's; links come
    back on the CPU. ``teacher`` are the original's logits on the training images, (n, classes) float32, where they are known.
    ``parties``: providers whose services are not among ``services``, since they stay elsewhere. ``trunks``: those of another service's
    paths, with their links by slot key: paths that begin with one take them as they are and train what follows. ``payload``: how
    activations cross where a whole path answers as it is served (``Relay.logits``); links are trained as if nothing was rounded.
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
        parties: Mapping[str, Party] | None = None,
        trunks: Mapping[Trunk, Mapping[str, Link]] | None = None,
        payload: Payload | None = None,
    ) -> None:
        self.services = dict(services)
        self.local = services[local]
        self.data = data
        self.placement = placement
        self.modes = modes
        self.recipe = recipe
        self.device = device
        self.train = data.train.head(recipe.samples)
        self.splits = {"train": self.train, "validation": data.validation, "test": data.test}
        self.activations = Activations(self.local, self.train.images, modes(placement[local]), device)
        self._teacher = teacher
        self._trunks = trunks or {}
        images = Images(self.local, self.splits)
        own = placement if not parties else {name: placement[name] for name in services}
        self.own = OwnParty(self.services, own, modes, device, images)
        self.parties = Parties(self.own, images, placement, parties or {}, payload)

    def crosses(self, path: InferencePath) -> bool:
        """Whether other parties than the local service's take part in ``path``."""
        return self.parties.take_part(path) != (OWN,)

    def given_links(self, path: InferencePath) -> Mapping[str, Link]:
        """The links of ``path`` that are another service's too, and so not to be trained, by slot key."""
        trunk = trunk_of(path)
        return {} if trunk is None else self._trunks.get(trunk, {})

    @property
    def link_inputs(self) -> LinkInputs:
        """Inputs of the last link of the path whose training is at work, where that link is here."""
        return self.own.inputs[1]

    def teacher(self, indices: Tensor) -> Tensor:
        """Logits of the original for training images ``indices``, (n, classes) float32: what links are distilled from."""
        return self.activations.logits(indices) if self._teacher is None else self._teacher[indices]

    @cached_property
    def screen_logits(self) -> Tensor:
        """Logits of the original on the first ``screen_samples`` validation images: what cheap measurements are compared with."""
        inputs = self.local.preprocess(self.data.validation.head(self.recipe.screen_samples).images)
        return run_blocks(self.local, 0, self.local.num_blocks, inputs, self.own.mode(self.local.name), self.device)

    @property
    def screen_accuracy(self) -> float:
        """Accuracy of the original on those images."""
        labels = self.data.validation.head(self.recipe.screen_samples).labels
        return float((self.screen_logits.argmax(1).numpy() == labels).mean())

    def may_fit(self, slot: LinkSlot) -> bool:
        """Whether what the link at ``slot`` should make may be known: a host has to see images for it."""
        if slot.target[0] == self.local.name:
            return True
        shown = self.recipe.fit_entry
        return shown if shown is not None else self.parties.of(slot.target[0]) == OWN

    def accuracy(self, path: InferencePath, links: Mapping[str, Link], split: Split) -> float:
        """Share of ``split`` that ``path`` classifies right, run in the servers' execution modes."""
        return float((self.logits(path, links, split).argmax(1) == split.labels).mean())

    def logits(self, path: InferencePath, links: Mapping[str, Link], split: Split) -> npt.NDArray[np.float32]:
        """What a path answers to the images of ``split``: (n, classes). Its blocks and links are all here."""
        runner = PathRunner(walk(path, self.placement), self.services, links, self.modes, self.device)
        return np.asarray(runner(self.local.preprocess(split.images)).numpy())


class LinkTraining:
    """The links of one path on their way: fitted, then trained from rung to rung; of one that begins with a trunk of another service
    those behind it.

    ``advance`` can be called any number of times; where it pauses leaves no trace in the links. ``times``: how many times as long
    as the trainer's recipe says.
    """

    def __init__(self, trainer: Trainer, path: InferencePath, seed: int, times: int = 1) -> None:
        self.path = path
        self.steps = 0
        self.recipe = trainer.recipe.longer(times)
        self._trainer = trainer
        self._seed = seed
        self._relay = Relay(trainer.parties, path, seed)
        self._labels = torch.from_numpy(trainer.train.labels)
        given = trainer.given_links(path)
        for key, link in given.items():
            self._relay.links[key].load_state_dict(link.state_dict())
        self._first = len(given)

    @property
    def links(self) -> dict[str, Link]:
        """The links that are here: all, unless hosts are parties of their own."""
        return self._relay.links

    @property
    def traffic(self) -> Traffic:
        """What went to other parties so far, and came back."""
        return self._relay.traffic

    def fit(self) -> None:
        """Start every link from least squares, where what it should make may be known.

        Raises:
            LinkError: where a link cannot be fitted.
        """
        trainer, images = self._trainer, self._trainer.train.images[: self._trainer.recipe.fit_samples]
        for number, slot in enumerate(self.path.link_slots):
            if number >= self._first and trainer.may_fit(slot):
                if slot.target == (trainer.local.name, trainer.local.num_blocks):
                    # What it is distilled from it is fitted to, and that is computed once.
                    trainer.own.keep(*slot.target, images, trainer.teacher(torch.arange(len(images))))
                self._relay.fit(number, images)

    def advance(self, steps: int) -> None:
        """Train until ``steps`` batches of the recipe's total have been seen."""
        recipe, last = self.recipe, len(self.path.link_slots) - 1
        if last < 0:
            return
        if self.steps:
            self._relay.resume()
        while self.steps < min(steps, recipe.total_steps):
            if self.steps == 0 and recipe.steps > 0:
                self._begin(last, recipe.steps, recipe.learning_rate, self._seed)
            elif self.steps == recipe.steps:
                self._begin(self._first, recipe.joint_steps, recipe.joint_learning_rate, self._seed + 1)
            self._step()
            self.steps += 1
        self._relay.rest()

    def screen_accuracy(self) -> float:
        """Accuracy on the first ``screen_samples`` validation images."""
        return self.accuracy("validation", self._trainer.recipe.screen_samples)

    def accuracy(self, split: Literal["validation", "test"], count: int | None = None) -> float:
        """What ``Trainer.accuracy`` says of the links as they are, on the first ``count`` images (default: all) of a split."""
        labels = self._trainer.splits[split].head(count or sys.maxsize).labels
        return float((self.logits(split, count).argmax(1) == labels).mean())

    def logits(self, split: Literal["validation", "test"], count: int | None = None) -> npt.NDArray[np.float32]:
        """What ``Trainer.logits`` says of them; what reaches the last link is run once for all paths that begin alike."""
        images = self._trainer.splits[split].head(count or sys.maxsize)
        if not self.path.link_slots:
            return self._trainer.logits(self.path, {}, images)
        return self._relay.answers(split, len(images))

    def explained(self, count: int) -> float:
        """Which share of the variance of what the last link should make it does make, on the first ``count`` validation images.

        For paths whose last link is at another party: what it makes comes here.
        """
        images = self._trainer.data.validation.head(count).images
        made = torch.from_numpy(writeable(self._relay.made("validation", len(images))))
        return explained(made, self._trainer.own.expected(*self.path.link_slots[-1].target, images))

    def save(self, identifier: str, stores_dir: str) -> dict[str, str]:
        """Have every party write its links into its store below ``stores_dir``; returns the hash of each by slot key.

        Raises:
            ArtifactError: where a store cannot be written.
        """
        return self._relay.save(identifier, stores_dir)

    def _begin(self, first: int, steps: int, learning_rate: float, seed: int) -> None:
        """Train the links from number ``first`` on from here."""
        self._relay.descend(first, steps, learning_rate)
        self._order = _order(len(self._labels), seed)
        self._begun = self.steps

    def _step(self) -> None:
        recipe, size = self.recipe, self.recipe.batch_size
        batch = self._order[(torch.arange(size) + (self.steps - self._begun) * size) % len(self._order)]
        logits = self._relay.forward(batch.numpy()).requires_grad_()
        labels = self._labels[batch]
        if recipe.distillation > 0:
            loss = distillation_loss(logits, self._trainer.teacher(batch), labels, recipe)
        else:
            loss = functional.cross_entropy(logits, labels)
        loss.backward()
        assert logits.grad is not None
        self._relay.backward(logits.grad)


def _order(count: int, seed: int) -> Tensor:
    """In which order ``count`` images are looked at, shuffled within windows: what a link is given is computed window by window, so
    that a training which is stopped early has not paid for images it never saw. Data sets come shuffled.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in torch.arange(count).split(WINDOW)])


def explained(made: Tensor, wanted: Tensor) -> float:
    """1 - residual variance / variance."""
    return 1 - float((made - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean().clamp_min(1e-12))


def distillation_loss(logits: Tensor, teacher: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Cross-entropy mixed with distillation; both averaged over the batch."""
    t = recipe.temperature
    distilled = functional.kl_div(
        functional.log_softmax(logits / t, 1), functional.log_softmax(teacher / t, 1), reduction="batchmean", log_target=True
    )
    return recipe.distillation * t * t * distilled + (1 - recipe.distillation) * functional.cross_entropy(logits, labels)
