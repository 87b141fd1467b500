"""Blocks out of the steps of a recorded model, as ``torch.fx`` graphs over the model's own modules."""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from code_ray.course import BatchSize, Held, OfModel, Recording, Ref, Step, parts, with_parts

LIKE = "_like"
"""An empty tensor of a block that is cast and moved with it: in its number format and where it is, other tensors are made."""

REPEATS = 3


class BlockMaker:
    """Makes blocks of one model. What does not depend on the input is computed in each block that needs it."""

    def __init__(self, model: nn.Module, recording: Recording) -> None:
        self._model = model
        self._steps = recording.steps
        self._output = recording.output
        self._by_ref = {step.made: step for step in recording.steps}
        self._dependent = {Ref(0)}
        for step in recording.steps:
            if any(ref in self._dependent for ref in self.refs(step)):
                self._dependent.add(step.made)
        for name, value in recording.constants.items():
            model.register_buffer(name, value)
        model.register_buffer(LIKE, torch.empty(0, dtype=_number_format(model)))

    def refs(self, step: Step) -> set[Ref]:
        """The values that a step takes."""
        return {value for value in parts((step.args, step.kwargs)) if isinstance(value, Ref)}

    def depends(self, ref: Ref) -> bool:
        """Whether a value depends on the model's input."""
        return ref in self._dependent

    def has_weights(self, step: Step) -> bool:
        """Whether a step mixes its inputs by weights: a convolution, a linear layer; no normalisation or scale."""
        if step.kind == "module":
            held = list(self._model.get_submodule(str(step.target)).parameters())
        else:
            names = self._held_behind(step)
            held = [dict(self._model.named_parameters(remove_duplicate=False))[name] for name in names if self._is_parameter(name)]
        return any(sum(size > 1 for size in tensor.shape) > 1 for tensor in held)

    def whole(self) -> fx.GraphModule:
        """All steps as one block."""
        return self.block(0, len(self._steps), Ref(0), self._output)

    def block(self, start: int, stop: int, source: Ref, output: Ref, *, on_copy: bool = False) -> fx.GraphModule:
        """Steps ``start`` to ``stop``, the last not included, as a module from ``source`` to ``output``.

        ``on_copy``: of its input, for a block that writes into it.
        """
        writer = _Writer(self._by_ref, source, on_copy)
        for number in range(start, stop):
            if self._steps[number].made in self._dependent:
                writer.write(self._steps[number], number)
        writer.graph.output(writer.value(output))
        writer.graph.lint()
        return fx.GraphModule(self._model, writer.graph, "Block").eval()

    def _is_parameter(self, name: str) -> bool:
        parent, _, leaf = name.rpartition(".")
        return isinstance(getattr(self._model.get_submodule(parent), leaf, None), nn.Parameter)

    def _held_behind(self, step: Step) -> Iterator[str]:
        for value in parts((step.args, step.kwargs)):
            if isinstance(value, Held):
                yield value.name
            elif isinstance(value, Ref) and value not in self._dependent:
                yield from self._held_behind(self._by_ref[value])


class _Writer:
    """One graph on its way."""

    def __init__(self, steps: dict[Ref, Step], source: Ref, on_copy: bool) -> None:
        self.graph = fx.Graph()
        self._steps = steps
        self._given = self.graph.placeholder("value")
        self._nodes = {source: self.graph.call_method("clone", (self._given,)) if on_copy else self._given}
        self._held: dict[str, fx.Node] = {}
        self._sizes: dict[BatchSize, Any] = {}

    def write(self, step: Step, number: int | None = None) -> fx.Node:
        args, kwargs = self.value(step.args), self.value(step.kwargs)
        if step.kind == "module":
            node = self.graph.call_module(str(step.target), args, kwargs)
        elif step.kind == "method":
            node = self.graph.call_method("reshape" if _is_plain_view(step) else str(step.target), args, kwargs)
        else:
            assert not isinstance(step.target, str)
            node = self.graph.call_function(step.target, args, kwargs)
        if number is not None:
            node.meta["step"] = number
        self._nodes[step.made] = node
        return node

    def value(self, described: Any) -> Any:
        """What a step is given: nodes for all that is known only when the block runs."""
        return with_parts(described, self._node)

    def _node(self, part: Any) -> Any:
        if isinstance(part, Ref):
            return self._nodes[part] if part in self._nodes else self.write(self._steps[part])
        if isinstance(part, Held):
            return self._get(part.name)
        if isinstance(part, OfModel):
            return self.graph.call_function(getattr, (self._get(LIKE), part.what))
        if isinstance(part, BatchSize):
            return self._size(part)
        return part

    def _get(self, name: str) -> fx.Node:
        if name not in self._held:
            self._held[name] = self.graph.get_attr(name)
        return self._held[name]

    def _size(self, wanted: BatchSize) -> Any:
        if wanted not in self._sizes:
            size: Any = self.graph.call_method("size", (self._given, 0))
            if wanted.times != 1:
                size = self.graph.call_function(operator.mul, (size, wanted.times))
            if wanted.plus:
                size = self.graph.call_function(operator.add, (size, wanted.plus))
            self._sizes[wanted] = size
        return self._sizes[wanted]


@torch.no_grad()
def measure_steps(whole: fx.GraphModule, example: Tensor) -> list[float]:
    """Seconds that each step takes on ``example``: the median of three runs, after one."""
    timer = _Timer(whole)
    runs = []
    for _ in range(REPEATS + 1):
        timer.seconds = {}
        timer.run(example.clone())
        runs.append(timer.seconds)
    count = max(timer.seconds, default=-1) + 1
    return [statistics.median(run.get(number, 0.0) for run in runs[1:]) for number in range(count)]


class _Timer(fx.Interpreter):
    """Runs a block node by node; what a step needs computed first counts with the step."""

    seconds: dict[int, float]

    def run_node(self, n: fx.Node) -> Any:
        started = time.perf_counter()
        result = super().run_node(n)
        if "step" in n.meta:
            self.seconds[n.meta["step"]] = time.perf_counter() - started
        return result


def _number_format(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _is_plain_view(step: Step) -> bool:
    """``view`` to a shape: not always possible in other memory layouts than the one it was recorded in; ``reshape`` is."""
    return step.target == "view" and not any(isinstance(value, (torch.dtype, OfModel)) for value in parts((step.args, step.kwargs)))
