"""What a model asks of torch, written down: the steps from its input to its output, batch size left open.

The model is run as it is, with tensors, so whatever runs can be followed: loops, conditions on shapes, functions of other
libraries. Each call of a torch function is a *step*, and so is each call of one of torch's own modules.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import container, transformer
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from code_ray.course import Held, Recording, Ref, Run, Step, Stray, Untraceable, parts, unify, with_parts
from code_ray.errors import SplitError

CONTAINERS = (
    *(nn.Module, container.Sequential, container.ModuleList, container.ModuleDict, container.ParameterList, container.ParameterDict),
    *(transformer.Transformer, transformer.TransformerEncoder, transformer.TransformerDecoder),
)
"""Modules of torch that are looked into; all others are called whole, as ``torch.fx`` does."""

METHODS = {value: name for name in dir(Tensor) if callable(value := getattr(Tensor, name))}
"""Names of tensors' methods; some go by the name of another (``__pow__`` says it is ``pow``)."""

READS = {"item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__contains__", "equal", "allclose"}
"""Functions that tell Python what a tensor holds: what follows may depend on it, unseen."""

FIRST_BATCH, SECOND_BATCH = 2, 3


def record(model: nn.Module, example: Tensor) -> Recording:
    """The steps that take a batch like ``example`` to the output of ``model``, which is in eval mode.

    Raises:
        SplitError: where the model does not run, or its course depends on what cannot be followed.
    """
    whole: set[type[nn.Module]] = set()
    while True:
        try:
            first = _run(model, _batch(example, FIRST_BATCH), whole)
            return unify(first, _run_again(model, example, whole))
        except Untraceable as error:
            kind = type(model.get_submodule(error.path))
            if kind in whole or not error.path:
                where = f"module {error.path!r}" if error.path else "the model's own forward"
                raise SplitError(
                    f"{where} cannot be followed: {error}; give it as a module of its own, or write it with torch functions"
                ) from error
            whole.add(kind)  # what is so in one layer is so in all like it


def write_at(value: Tensor, index: Any, new: Any) -> Tensor:
    """``value[index] = new`` as a function of what it changes."""
    value[index] = new
    return value


def _behind(value: Tensor, _: Tensor) -> Tensor:
    return value


def _batch(example: Tensor, size: int) -> Tensor:
    return example[torch.arange(size) % len(example)].clone()


def _run_again(model: nn.Module, example: Tensor, whole: set[type[nn.Module]]) -> Run:
    """The second run, in double precision where the model allows that."""
    batch = _batch(example, SECOND_BATCH)
    try:
        return _run(copy.deepcopy(model).double(), batch.double() if batch.is_floating_point() else batch, whole)
    except SplitError:
        return _run(model, batch, whole)


@torch.no_grad()
def _run(model: nn.Module, batch: Tensor, whole: set[type[nn.Module]]) -> Run:
    recorder = _Recorder(model, batch, whole)
    try:
        return recorder.run()
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, AttributeError, NotImplementedError) as error:
        if isinstance(error, SplitError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise SplitError(
            f"the model does not run on {len(batch)} samples of shape {tuple(batch.shape[1:])}, {batch.dtype} "
            f"({type(error).__name__}: {reason}); give an example that it takes, the batch first"
        ) from error


class _Recorder(TorchFunctionMode):
    """Sees each torch function while the model runs, and its modules through torch's global hooks."""

    def __init__(self, model: nn.Module, batch: Tensor, whole: set[type[nn.Module]]) -> None:
        super().__init__()
        self._model, self._batch = model, batch
        self._paths = {module: path for path, module in reversed(list(model.named_modules()))}
        self._whole = {module for module, path in self._paths.items() if path and (type(module) in whole or _is_torchs_own(module))}
        self._held = {id(t): name for name, t in (*model.named_buffers(), *model.named_parameters())}
        self._refs: dict[int, Ref] = {}
        self._dependent: set[Ref] = set()  # on the input
        self._alive: list[Tensor] = []  # an id is a tensor's own only while the tensor is there
        self._origin: dict[int, str] = {}  # of stray tensors that left a module: which one
        self._stack: list[str] = []
        self._depth = 0
        self._calls: dict[str, int] = {}
        self._thread = threading.get_ident()  # torch's hooks hear of other threads' modules too
        self._next = 0
        self._watching = False
        dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
        self._run = Run(len(batch), dtypes[0] if dtypes else torch.get_default_dtype())

    def run(self) -> Run:
        self._dependent.add(self._made())
        self._register(self._batch, Ref(0))
        hooks = register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave, with_kwargs=True)
        try:
            self._watch(True)
            output = self._model(self._batch)
        finally:
            self._watch(False)
            for hook in hooks:
                hook.remove()
        self._run.output = self._described(the_logits(output))
        return self._run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        described = self._described(args), self._described(kwargs)
        if name in READS and self._depends(described):
            raise Untraceable(self._path, f"its course may depend on values, which it reads by {name.strip('_')!r}")
        version = args[0]._version if args and isinstance(args[0], Tensor) else 0
        result = func(*args, **kwargs)
        written = bool(args) and isinstance(args[0], Tensor) and args[0]._version != version
        if name == "__setitem__":
            self._note("function", write_at, described, args[0], written)
        elif not _holds_tensors(result):
            pass
        elif name == "__get__":
            self._note("function", getattr, ((described[0][0], func.__self__.__name__), {}), result)
        elif func in METHODS:
            self._note("method", METHODS[func], described, result, written)
        else:
            self._note("function", func, described, result, written)
        return result

    def _watch(self, on: bool) -> None:
        if on != self._watching:
            self._watching = on
            self.__enter__() if on else self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        if self._depth or module in self._whole:
            # Whoever is called whole runs as it would alone: torch's modules have fast ways that a watcher keeps them from.
            self._watch(False)
            self._depth += 1
        else:
            self._stack.append(self._paths.get(module, self._path))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        if self._depth > 1:
            self._depth -= 1
            return
        path = self._paths.get(module, "")
        if self._depth:
            self._depth = 0
            self._note("module", path, (self._described(args), self._described(kwargs)), output)
            self._watch(True)  # only now: what the note looks at is no step of the model
        else:
            self._stack.pop()
        if path:
            self._calls[path] = self._calls.get(path, 0) + 1
            self._name(output, path if self._calls[path] == 1 else f"{path}@{self._calls[path]}", path)

    @property
    def _path(self) -> str:
        return self._stack[-1] if self._stack else ""

    def _name(self, output: Any, name: str, path: str) -> None:
        if isinstance(output, Tensor) and id(output) in self._refs:
            self._run.names.setdefault(self._refs[id(output)], []).append(name)
        for value in _tensors(output):
            if id(value) not in self._refs and id(value) not in self._held:
                self._alive.append(value)
                self._origin.setdefault(id(value), path)

    def _note(self, kind: Any, target: Any, described: tuple[Any, Any], result: Any, written: bool = False) -> None:
        made = self._made()
        if self._depends(described):
            self._dependent.add(made)
        self._run.steps.append(Step(kind, target, tuple(described[0]), dict(described[1]), made, self._path))
        if isinstance(result, Tensor):
            self._register(result, made)
            base = result._base
            if written and base is not None and id(base) in self._refs:
                # Written through a view: what it is a view of is another from here on.
                self._note("function", _behind, ((self._refs[id(base)], made), {}), base)
        else:
            for key, value in result.items() if isinstance(result, dict) else enumerate(result):
                if _holds_tensors(value):
                    self._note("function", _item, ((made, key), {}), value)

    def _made(self) -> Ref:
        self._next += 1
        return Ref(self._next - 1)

    def _depends(self, described: Any) -> bool:
        return any(part in self._dependent for part in parts(described) if isinstance(part, Ref))

    def _register(self, value: Tensor, made: Ref) -> None:
        self._refs[id(value)] = made
        self._alive.append(value)
        passes_on = value.dim() > 1 and len(value) == self._run.batch_size and (value.is_floating_point() or made.number == 0)
        if passes_on:
            self._run.shapes[made] = tuple(value.shape[1:])

    def _described(self, value: Any) -> Any:
        return with_parts(value, self._named)

    def _named(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in self._refs:
            return self._refs[id(value)]
        if id(value) in self._held:
            return Held(self._held[id(value)])
        return Stray(value.detach().clone(), self._origin.get(id(value), self._path))


def the_logits(output: Any) -> Tensor:
    """The one tensor that a model answers with; ``logits`` of what Hugging Face's models return.

    Raises:
        SplitError: for anything else.
    """
    logits = output.get("logits") if isinstance(output, dict) else output
    if not isinstance(logits, Tensor):
        raise SplitError(
            f"the model returns {type(output).__name__}, not one tensor or 'logits'; wrap it in a module that returns its logits"
        )
    return logits


def _item(values: Any, key: Any) -> Any:
    return values[key]


def _is_torchs_own(module: nn.Module) -> bool:
    """Whether the module, or what it was derived from, is a layer of torch; scripted modules cannot be looked into either."""
    bases = type(module).__mro__
    layer = any(base.__module__.startswith("torch.nn.modules.") and base not in CONTAINERS for base in bases)
    return layer or isinstance(module, torch.jit.ScriptModule)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry)


def _holds_tensors(value: Any) -> bool:
    return next(_tensors(value), None) is not None
