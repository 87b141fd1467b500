"""The steps of a model from its input to its output, and what two runs of it say together.

What differs between two runs, of 2 samples in float32 and of 3 in float64, depends on the batch or on the number format; all else
is constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from code_ray.errors import SplitError


@dataclass(frozen=True)
class Ref:
    """The value that a step made; number 0 is the model's input."""

    number: int


@dataclass(frozen=True)
class Held:
    """A parameter or buffer of the model, or a constant that was found in it, by name."""

    name: str


@dataclass(frozen=True)
class BatchSize:
    """``times`` * batch size + ``plus``."""

    times: int
    plus: int


@dataclass(frozen=True)
class OfModel:
    """The model's number format, or where it is."""

    what: Literal["dtype", "device"]


@dataclass(frozen=True, eq=False)
class Stray:
    """A tensor that no step made and that is no parameter: a constant, or what passed by torch's dispatch in module ``path``."""

    value: Tensor
    path: str


@dataclass(frozen=True)
class Step:
    """One call. ``target``: a function, the name of a tensor's method, or the path of a module.

    ``args`` and ``kwargs`` hold ``Ref``, ``Held``, ``BatchSize`` and ``OfModel`` where values stood. ``path``: the module that called.
    """

    kind: Literal["function", "method", "module"]
    target: Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: Ref
    path: str


@dataclass(frozen=True)
class Recording:
    """The steps of a model. ``shapes``: of tensors that have the batch first and can be passed on, per sample.

    ``names``: of values that leave modules, those modules' paths, the outermost last; a module's second call is ``path@2``.
    """

    steps: tuple[Step, ...]
    output: Ref
    shapes: dict[Ref, tuple[int, ...]]
    names: dict[Ref, tuple[str, ...]]
    constants: dict[str, Tensor]


def parts(described: Any) -> Iterator[Any]:
    """What stands in arguments, out of their tuples, lists, dictionaries and slices."""
    if isinstance(described, (tuple, list)):
        for entry in described:
            yield from parts(entry)
    elif isinstance(described, dict):
        yield from parts(tuple(described.values()))
    elif isinstance(described, slice):
        yield from parts((described.start, described.stop, described.step))
    else:
        yield described


def with_parts(described: Any, change: Callable[[Any], Any]) -> Any:
    """The same tuples, lists, dictionaries and slices with ``change`` made to each of their ``parts``."""
    if isinstance(described, (tuple, list)):
        entries = [with_parts(entry, change) for entry in described]
        return entries if isinstance(described, list) else tuple(entries)
    if isinstance(described, dict):
        return {key: with_parts(entry, change) for key, entry in described.items()}
    if isinstance(described, slice):
        return slice(*(with_parts(part, change) for part in (described.start, described.stop, described.step)))
    return change(described)


class Untraceable(Exception):
    """Something in module ``path`` cannot be followed; called whole it may do no harm."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path


@dataclass
class Run:
    """One run, as it was seen."""

    batch_size: int
    dtype: torch.dtype
    steps: list[Step] = field(default_factory=list)
    output: Any = None
    shapes: dict[Ref, tuple[int, ...]] = field(default_factory=dict)
    names: dict[Ref, list[str]] = field(default_factory=dict)


def unify(first: Run, second: Run) -> Recording:
    """One recording of two runs; see the head of this file.

    Raises:
        SplitError: where the runs took different courses.
    """
    unifier = _Unifier(first, second)
    if len(first.steps) != len(second.steps):
        raise SplitError(
            f"the model takes {len(first.steps)} steps for {first.batch_size} samples and {len(second.steps)} for {second.batch_size}: "
            "its course depends on the batch; rewrite that part over whole batches"
        )
    steps = []
    for one, other in zip(first.steps, second.steps, strict=True):
        if (one.kind, one.made, one.path) != (other.kind, other.made, other.path) or one.target != other.target:
            raise SplitError(f"in module {one.path!r} the model's course depends on the batch size; rewrite that part over whole batches")
        args, kwargs = unifier.unify(one.args, other.args, one.path), unifier.unify(one.kwargs, other.kwargs, one.path)
        steps.append(Step(one.kind, one.target, args, kwargs, one.made, one.path))
    output = unifier.unify(first.output, second.output, "")
    if not isinstance(output, Ref):
        raise SplitError(
            "what the model returns does not come from its input by steps that can be followed; return a tensor computed from it"
        )
    shapes = {ref: shape for ref, shape in first.shapes.items() if second.shapes.get(ref) == shape}
    return Recording(tuple(steps), output, shapes, {ref: tuple(names) for ref, names in first.names.items()}, unifier.constants)


class _Unifier:
    """Holds two described values against each other."""

    def __init__(self, first: Run, second: Run) -> None:
        self._runs = first, second
        self.constants: dict[str, Tensor] = {}

    def unify(self, one: Any, other: Any, path: str) -> Any:
        """What both say, ``BatchSize`` or ``OfModel`` where they differ.

        Raises:
            Untraceable: where the difference has another reason.
        """
        if isinstance(one, torch.device):
            return OfModel("device")
        if isinstance(one, Stray):
            return self._constant(one, other)
        if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)) and len(one) == len(other):
            entries = [self.unify(a, b, path) for a, b in zip(one, other, strict=True)]
            return entries if isinstance(one, list) else tuple(entries)
        if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
            return {key: self.unify(value, other[key], path) for key, value in one.items()}
        if isinstance(one, slice) and isinstance(other, slice):
            parts = ((getattr(one, name), getattr(other, name)) for name in ("start", "stop", "step"))
            return slice(*(self.unify(a, b, path) for a, b in parts))
        if type(one) is type(other) and one == other:
            return one
        first, second = self._runs
        if type(one) is int and type(other) is int:
            # The batches differ by one sample.
            return BatchSize(other - one, one - (other - one) * first.batch_size)
        if isinstance(one, torch.dtype) and (one, other) == (first.dtype, second.dtype):
            return OfModel("dtype")
        raise Untraceable(path, f"{_short(one)} with {first.batch_size} samples is {_short(other)} with {second.batch_size}")

    def _constant(self, one: Stray, other: Any) -> Held:
        if not isinstance(other, Stray) or one.value.shape != other.value.shape or not _same(one.value, other.value):
            raise Untraceable(one.path, "it makes a tensor by other means than torch's functions")
        for name, known in self.constants.items():
            if known.dtype == one.value.dtype and known.shape == one.value.shape and torch.equal(known, one.value):
                return Held(name)
        name = f"constant_{len(self.constants)}"
        self.constants[name] = one.value
        return Held(name)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.is_floating_point() or one.is_complex():
        return torch.allclose(one, other.to(one.dtype), rtol=1e-4, atol=1e-6, equal_nan=True)
    return torch.equal(one, other)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
