"""Any model as blocks: ``split(model, example)``.

A model can be cut at its *places*: where a single tensor crosses, batch first. Blocks between them are made to take about equal
measured time; the last is the task head.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from code_ray.course import Recording, Ref
from code_ray.errors import SplitError
from code_ray.graph_blocks import BlockMaker, measure_steps
from code_ray.grouping import equal_groups
from code_ray.recording import record, the_logits


@dataclass(frozen=True)
class Place:
    """Where a model can be cut: behind step number ``step`` only ``value`` is needed further on.

    ``names``: of the modules that it leaves, the outermost first, or what made it. ``shape``: of the tensor, per sample. ``closes``: what
    follows begins with weights; between two places that are not so apart there are only normalisations, activations and pools.
    """

    step: int
    value: Ref
    names: tuple[str, ...]
    shape: tuple[int, ...]
    closes: bool

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def has_positions(self) -> bool:
        """Whether the tensor still is a map or a sequence, not one vector."""
        return len(self.shape) > 1 and torch.Size(self.shape).numel() > max(self.shape[0], self.shape[-1])


@dataclass(frozen=True)
class SplitModel:
    """A model as blocks 1..N. ``boundaries``: the names of the N - 1 places between them; the same model is cut alike by them.

    ``seconds``: of each block, measured on the example. ``places``: all there are.
    """

    blocks: nn.ModuleList
    boundaries: tuple[str, ...]
    seconds: tuple[float, ...]
    places: tuple[Place, ...]


def split(model: nn.Module, example: Tensor, num_blocks: int = 6, boundaries: Sequence[str] | None = None) -> SplitModel:
    """Cut ``model`` into ``num_blocks`` blocks of about equal time, the last of them its head, or at ``boundaries``.

    ``example`` is a batch of inputs, (n, *shape), on the CPU. ``boundaries`` name modules whose outputs cross from one block to the next.
    The model is left as it is: blocks hold copies of its weights, frozen, in eval mode. That they compose to the model is proven: on
    ``example``, and on other random inputs in a batch of another size, their outputs are those of the model to the bit.

    Raises:
        SplitError: for a model that cannot be followed or has too few places, for a boundary that is none, and for blocks that do not
            compose to the model.
    """
    if example.dim() < 1 or len(example) < 1:
        raise SplitError(f"an example of shape {tuple(example.shape)} holds no sample; give a batch of inputs, (n, *shape)")
    if boundaries is None and num_blocks < 2:
        raise SplitError(f"{num_blocks} blocks are no cut; a service has two at least, the last of them its head")
    followed = _follow(copy.deepcopy(model), example)
    seconds = measure_steps(followed.maker.whole(), example)
    chosen = _choose(followed.places, seconds, num_blocks) if boundaries is None else _find_all(followed.places, boundaries)
    blocks = _cut(followed, chosen, example)
    prove(followed.model, blocks, example)
    edges = [0, *(place.step + 1 for place in chosen), len(seconds)]
    times = tuple(sum(seconds[start:stop]) for start, stop in pairwise(edges))
    return SplitModel(blocks, tuple(place.name for place in chosen), times, followed.places)


def cut_at(model: nn.Module, example: Tensor, boundaries: Sequence[str]) -> nn.ModuleList:
    """The blocks that ``split`` makes of ``model`` with these boundaries, out of its own modules, without a proof.

    Raises:
        SplitError: for a model that cannot be followed, or a boundary that is none.
    """
    followed = _follow(model, example)
    return _cut(followed, _find_all(followed.places, boundaries), example)


@dataclass(frozen=True)
class _Followed:
    """A model with its steps known."""

    model: nn.Module
    recording: Recording
    maker: BlockMaker
    places: tuple[Place, ...]


def _follow(model: nn.Module, example: Tensor) -> _Followed:
    model.eval()
    model.requires_grad_(False)
    recording = record(model, example)
    maker = BlockMaker(model, recording)
    return _Followed(model, recording, maker, find_places(recording, maker))


def _cut(followed: _Followed, chosen: Sequence[Place], example: Tensor) -> nn.ModuleList:
    maker, recording = followed.maker, followed.recording
    stops = [*(place.step + 1 for place in chosen), len(recording.steps)]
    values = [Ref(0), *(place.value for place in chosen), recording.output]
    blocks, value = nn.ModuleList(), example
    for (start, stop), (source, output) in zip(pairwise([0, *stops]), pairwise(values), strict=True):
        block = maker.block(start, stop, source, output)
        if _writes_into(block, value):
            block = maker.block(start, stop, source, output, on_copy=True)
        blocks.append(block)
        with torch.no_grad():
            value = block(value.clone())
    return blocks


@torch.no_grad()
def prove(model: nn.Module, blocks: nn.ModuleList, example: Tensor) -> None:
    """Check that ``blocks`` compose to ``model``: the same to the bit on ``example`` and on one random input more.

    Raises:
        SplitError: where they do not, or the model's answers are no numbers, which would prove nothing.
    """
    for batch in (example, _another(example)):
        expected, found = the_logits(model(batch.clone())), batch.clone()
        for block in blocks:
            found = block(found)
        if not bool(expected.isfinite().all()):
            raise SplitError("the model answers with NaN or infinity, which proves nothing of its blocks; give it weights that compute")
        if found.shape != expected.shape or not torch.equal(found, expected):
            raise SplitError(
                f"the blocks do not compose to the model on {len(batch)} samples (largest difference "
                f"{_difference(found, expected)}): its course depends on values or on the batch; split by hand inside of that part"
            )


def find_places(recording: Recording, maker: BlockMaker) -> tuple[Place, ...]:
    """Where a single tensor crosses, in the order in which the model runs; each tensor once, where it is the only one first."""
    last_use = {ref: number for number, step in enumerate(recording.steps) for ref in maker.refs(step)}
    last_use[recording.output] = len(recording.steps)
    alive: set[Ref] = {Ref(0)}
    found: dict[Ref, int] = {}
    dependent = [number for number, step in enumerate(recording.steps) if maker.depends(step.made)]
    for number in dependent:
        alive.add(recording.steps[number].made)
        alive = {ref for ref in alive if last_use.get(ref, -1) > number}
        if len(alive) == 1:
            (value,) = alive
            if value in recording.shapes and value not in (Ref(0), recording.output):
                found.setdefault(value, number)
    names = _names(recording)
    numbers = list(found.values())
    weighty = [number for number in dependent if maker.has_weights(recording.steps[number])]
    places = []
    for (value, number), following in zip(found.items(), [*numbers, len(recording.steps)][1:], strict=True):
        closes = any(number < w <= following for w in weighty)
        places.append(Place(number, value, names[value], recording.shapes[value], closes))
    return tuple(places)


def _names(recording: Recording) -> dict[Ref, tuple[str, ...]]:
    """Names of every value, each unlike all others: of modules, and of what made it."""
    taken = {name for names in recording.names.values() for name in names}
    named: dict[Ref, tuple[str, ...]] = {}
    for step in recording.steps:
        if step.made in recording.names:
            named[step.made] = tuple(reversed(recording.names[step.made]))
            continue
        function = step.target if isinstance(step.target, str) else getattr(step.target, "__name__", "step")
        base = name = f"{step.path}.{function}" if step.path else function
        count = 1
        while name in taken:
            count += 1
            name = f"{base}@{count}"
        taken.add(name)
        named[step.made] = (name,)
    return named


def _choose(places: Sequence[Place], seconds: Sequence[float], num_blocks: int) -> list[Place]:
    """The places between blocks of about equal time and the head behind them.

    The head begins at the last place that has positions and weights behind it; where no place has positions, at the last with weights.
    """
    if not places:
        raise SplitError(
            "nowhere does a single tensor cross: two streams or more run side by side through the whole model; it has no blocks"
        )
    places = [place for place in places if len(place.shape) <= 3]  # vectors, sequences and maps
    behind = [place for place in places if place.closes or any(p.closes for p in places if p.step > place.step)]
    heads = [place for place in behind if place.has_positions] or [place for place in behind if place.closes]
    inner = [place for place in places if heads and place.closes and place.step < heads[-1].step]
    if len(inner) < num_blocks - 2 or not heads:
        most = len(inner) + 2 if heads else 1
        raise SplitError(
            f"{len(places)} tensors cross alone in this model, which makes {most} blocks at most, not {num_blocks}; "
            "ask for fewer, or name 'boundaries' by hand"
        )
    head = heads[-1]
    ends = [place.step + 1 for place in inner]
    return [*(inner[i] for i in equal_groups(seconds[: head.step + 1], ends, num_blocks - 1)), head]


def _find_all(places: Sequence[Place], names: Sequence[str]) -> list[Place]:
    chosen = [_find(places, name) for name in names]
    if not names or any(a.step >= b.step for a, b in pairwise(chosen)):
        raise SplitError(
            f"boundaries {list(names)} are not in the order in which the model runs; name one at least, each once, in that order"
        )
    return chosen


def _find(places: Sequence[Place], name: str) -> Place:
    for place in places:
        if name in place.names:
            return place
    close = difflib.get_close_matches(name, [known for place in places for known in place.names], n=5, cutoff=0.3)
    raise SplitError(
        f"no single tensor crosses behind {name!r}; it does behind {len(places)} others, such as "
        f"{', '.join(close) or ', '.join(place.name for place in places[:5]) or 'none'}"
    )


@torch.no_grad()
def _writes_into(block: nn.Module, value: Tensor) -> bool:
    """Whether a block changes the tensor it is given: caches of activations would be spoilt."""
    given = value.clone()
    version = given._version
    block(given)
    return given._version != version


def _another(example: Tensor) -> Tensor:
    """Random inputs in the range of the example's, one sample more."""
    shape = (len(example) + 1, *example.shape[1:])
    generator = torch.Generator().manual_seed(0)
    low, high = example.min(), example.max()
    if example.is_floating_point():
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=example.dtype)
    return torch.randint(int(low), int(high) + 1, shape, generator=generator, dtype=example.dtype)


def _difference(found: Tensor, expected: Tensor) -> str:
    return f"{float((found - expected).abs().max()):.3g}" if found.shape == expected.shape else f"in shape, {tuple(found.shape)}"
