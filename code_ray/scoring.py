"""Score paths without training: closed-form links, shared as far as paths agree (fidelity 0 of a search).

Paths that begin alike share everything up to where they part: activations of fit and validation images, one pass through a
host for all its stops, and the factorised normal matrix of all links that see the same features. Done one by one, the same
scores cost as much as a short training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from code_ray.activations import in_batches
from code_ray.link_fit import LinkFit
from code_ray.links import Link
from code_ray.path import InferencePath, LinkSlot
from code_ray.runner import LegRunner, slot_spec
from code_ray.training import LinkTraining, Trainer, explained

EXPLAINED_SAMPLES = 128
"""Images on which the explained variance is computed: each has thousands of values."""


@dataclass(frozen=True)
class Score:
    """What least-squares links say of a path, on the first ``screen_samples`` validation images.

    ``accuracy`` a fraction; ``loss_points`` what is lost against the original on the same images; ``divergence`` the mean
    KL(original || path) in nats, much less noisy than the accuracy; ``explained`` the share of the variance of what the last
    link should make that it does make; ``seconds`` the path's share of what its batch took.
    """

    accuracy: float
    loss_points: float
    divergence: float
    explained: float
    seconds: float


@dataclass(frozen=True)
class _Values:
    """What the images that links are fitted to, and those they are validated on, have become."""

    fit: Tensor
    screen: Tensor

    def map(self, run: Callable[[Tensor], Tensor]) -> _Values:
        return _Values(in_batches(run, self.fit), in_batches(run, self.screen))


class Scorer:
    """Scores batches of paths of a trainer's local service."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._fit_images = trainer.train.images[: trainer.recipe.fit_samples]
        self._screen = trainer.data.validation.head(trainer.recipe.screen_samples)
        self._runners: dict[tuple[str, int, int], LegRunner] = {}
        self._targets: dict[tuple[str, int, int], _Values] = {}

    @torch.no_grad()
    def score(self, paths: Sequence[InferencePath]) -> dict[InferencePath, Score]:
        """Fit and validate the links of ``paths``; the more they share, the less each costs.

        Raises:
            LinkError: where a link cannot be fitted.
        """
        crossing = [path for path in paths if self._trainer.crosses(path)]
        here = [path for path in paths if path not in crossing]
        return (self._score_here(here) if here else {}) | {path: self._score_crossing(path) for path in crossing}

    def _score_here(self, paths: list[InferencePath]) -> dict[InferencePath, Score]:
        started = time.monotonic()
        local = self._trainer.local
        inputs = _Values(local.preprocess(self._fit_images), local.preprocess(self._screen.images))
        found = dict(self._behind(inputs, 0, 0, paths))
        self._targets.clear()
        seconds = (time.monotonic() - started) / max(1, len(found))
        original = self._trainer.screen_accuracy
        return {p: Score(a, 100 * (original - a), divergence, share, seconds) for p, (a, divergence, share) in found.items()}

    def _score_crossing(self, path: InferencePath) -> Score:
        """Fit and validate links at other parties, one path at a time."""
        started = time.monotonic()
        training = LinkTraining(self._trainer, path, seed=0)
        training.fit()
        accuracy, divergence = self._compare(torch.from_numpy(training.logits("validation", len(self._screen))))
        share = training.explained(EXPLAINED_SAMPLES)
        lost = 100 * (self._trainer.screen_accuracy - accuracy)
        return Score(accuracy, lost, divergence, share, time.monotonic() - started)

    def _behind(self, values: _Values, depth: int, start: int, paths: list[InferencePath]) -> Iterator[_Found]:
        """Run segment ``depth`` of ``paths``, which agree up to its start, once for all its stops."""
        service, position = paths[0].segments[depth].service, start
        for stop, group in _grouped(paths, lambda path: path.segments[depth].stop):
            values = values.map(self._runner(service, position, stop))
            position = stop
            yield from self._links(values, depth, group)

    def _links(self, values: _Values, depth: int, paths: list[InferencePath]) -> Iterator[_Found]:
        """The links that leave segment ``depth`` of ``paths``, which agree up to its stop; ``values`` is what leaves it."""
        yield from ((path, (*self._compare(values.screen), 1.0)) for path in paths if len(path.link_slots) == depth)
        fits: dict[object, LinkFit] = {}
        further = [path for path in paths if len(path.link_slots) > depth]
        for slot, alike in _grouped(further, lambda path: path.link_slots[depth]):
            for given, group in self._by_given(slot, alike):
                link = Link(slot_spec(slot, group[0], self._trainer.services))
                targets = self._link_targets(link, slot) if given is None else None
                if given is not None:
                    link.load_state_dict(given.state_dict())
                elif targets is not None:
                    if link.spec.design not in fits:
                        fits[link.spec.design] = LinkFit(link.spec, _numbers(values.fit[: len(targets.fit)].to(self._trainer.device)))
                    fits[link.spec.design].fit(link, targets.fit)
                yield from self._behind_link(link, slot, values, targets, depth, group)

    def _by_given(self, slot: LinkSlot, paths: Iterable[InferencePath]) -> list[tuple[Link | None, list[InferencePath]]]:
        """Paths by the link of another service's trunk that they have at ``slot``; None: it is theirs to fit."""
        found: dict[int, tuple[Link | None, list[InferencePath]]] = {}
        for path in paths:
            link = self._trainer.given_links(path).get(slot.key)
            found.setdefault(id(link), (link, []))[1].append(path)
        return list(found.values())

    def _behind_link(
        self, link: Link, slot: LinkSlot, values: _Values, targets: _Values | None, depth: int, paths: list[InferencePath]
    ) -> Iterator[_Found]:
        """Paths that share a fitted link; those that end with the next segment need it for the screened images alone."""
        name, position = slot.target
        run = LegRunner([link], self._trainer.own.mode(name), self._trainer.device).run
        ending = [path for path in paths if len(path.link_slots) == depth + 1]
        if ending:
            made = in_batches(run, values.screen)
            share = 0.0 if targets is None else explained(_numbers(made[: len(targets.screen)].cpu()), targets.screen)
            accuracy, divergence = self._compare(in_batches(self._runner(name, position, self._trainer.services[name].num_blocks), made))
            yield from ((path, (accuracy, divergence, share)) for path in ending)
        if through := [path for path in paths if len(path.link_slots) > depth + 1]:
            yield from self._behind(values.map(run), depth + 1, position, through)

    def _compare(self, logits: Tensor) -> tuple[float, float]:
        """Accuracy, and divergence from the original, of the screened images' logits."""
        logits = logits.cpu().float()
        accuracy = (logits.argmax(1).numpy() == self._screen.labels).mean()
        divergence = functional.kl_div(
            functional.log_softmax(logits, 1),
            functional.log_softmax(self._trainer.screen_logits, 1),
            reduction="batchmean",
            log_target=True,
        )
        return float(accuracy), float(divergence)

    def _link_targets(self, link: Link, slot: LinkSlot) -> _Values | None:
        """What a link should make; None where the host may not see the images, and the link stays random."""
        name, position = slot.target
        if not self._trainer.may_fit(slot):
            return None
        count = min(len(self._fit_images), link.spec.max_fit_samples)
        if (name, position, count) not in self._targets:
            # Goes on from the nearest boundary already computed.
            before = max((p for n, p, c in self._targets if (n, c) == (name, count) and p < position), default=0)
            values = self._targets.get((name, before, count)) or self._own_inputs(name, count)
            self._targets[name, position, count] = values.map(lambda value: _numbers(self._runner(name, before, position)(value).cpu()))
        return self._targets[name, position, count]

    def _own_inputs(self, name: str, count: int) -> _Values:
        """What a service itself would be given of the images that links are fitted to, and of those on which fits are judged."""
        preprocess = self._trainer.services[name].preprocess
        return _Values(preprocess(self._fit_images[:count]), preprocess(self._screen.images[:EXPLAINED_SAMPLES]))

    def _runner(self, service: str, start: int, stop: int) -> Callable[[Tensor], Tensor]:
        if start == stop:
            return lambda value: value
        key = service, start, stop
        if key not in self._runners:
            blocks: list[nn.Module] = list(self._trainer.services[service].blocks[start:stop])
            self._runners[key] = LegRunner(blocks, self._trainer.own.mode(service), self._trainer.device)
        return self._runners[key].run


_Key = TypeVar("_Key", int, LinkSlot)
_Found = tuple[InferencePath, tuple[float, float, float]]


def _numbers(value: Tensor) -> Tensor:
    """In float32, but for token ids."""
    return value.float() if value.is_floating_point() else value


def _grouped(paths: Iterable[InferencePath], key: Callable[[InferencePath], _Key]) -> list[tuple[_Key, list[InferencePath]]]:
    return [(k, list(group)) for k, group in groupby(sorted(paths, key=key), key)]
