"""Models by name, untrained: ``torchvision:resnet18``, ``timm:...``, ``transformers:...``, or a function that an operator has allowed.

A name comes from a service folder, which may be anybody's: it chooses among the architectures of installed libraries, with numbers as
arguments. So a folder can have no file read, nothing downloaded, nothing unpickled and no code imported but what the operator allows:
``CODE_RAY_MODELS``, import paths of functions separated by commas, is read from the environment of whoever loads the service.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from code_ray.errors import ServiceError

ALLOWED = "CODE_RAY_MODELS"


def build_model(name: str, args: Mapping[str, Any]) -> nn.Module:
    """The model called ``name``, with random weights.

    Raises:
        ServiceError: for a name that nobody knows or has allowed, a library that is not installed, or arguments that do not fit.
    """
    source, _, rest = name.partition(":")
    if source not in SOURCES:
        raise ServiceError(f"model {name!r} names no library; there are: {', '.join(SOURCES)}, as in 'torchvision:resnet18'")
    if wrong := [key for key, value in args.items() if not _is_plain(value)]:
        raise ServiceError(f"argument {wrong[0]!r} of model {name!r} is {args[wrong[0]]!r}; arguments are numbers, or lists of numbers")
    try:
        return SOURCES[source](rest, dict(args))
    except ImportError as error:
        raise ServiceError(f"model {name!r} cannot be built ({error}); install what it needs") from error
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, KeyError) as error:
        if isinstance(error, ServiceError):
            raise
        raise ServiceError(
            f"model {name!r} cannot be built with {dict(args)} ({type(error).__name__}: {error}); mend its arguments"
        ) from error


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, (list, tuple)) else value is None or isinstance(value, (bool, int, float))


def _torchvision(name: str, args: dict[str, Any]) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(models):
        raise ServiceError(f"torchvision has no classifier {name!r}; see torchvision.models.list_models(torchvision.models)")
    model: nn.Module = models.get_model(name, weights=None, **args)
    return model


def _timm(name: str, args: dict[str, Any]) -> nn.Module:
    import timm

    if not timm.is_model(name):  # 'hf-hub:...' and 'local-dir:...' would be opened
        raise ServiceError(f"timm has no model {name!r}; see timm.list_models()")
    model: nn.Module = timm.create_model(name, pretrained=False, **args)
    return model


def _transformers(name: str, args: dict[str, Any]) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(name, **args)
    for kind in (transformers.AutoModelForImageClassification, transformers.AutoModelForSequenceClassification):
        if type(config) in kind._model_mapping:
            model: nn.Module = kind.from_config(config)  # type: ignore[no-untyped-call]
            return model
    raise ServiceError(f"transformers has no classifier of images or sequences called {name!r}")


def _python(name: str, args: dict[str, Any]) -> nn.Module:
    allowed = [entry.strip() for entry in os.environ.get(ALLOWED, "").split(",")]
    module, _, function = name.partition(":")
    if name not in allowed or not function:
        raise ServiceError(
            f"model 'python:{name}' is code of somebody's own, which a folder may not name by itself; "
            f"where you trust it, set {ALLOWED}={name} in the environment of the search and of the servers"
        )
    model = getattr(importlib.import_module(module), function)(**args)
    if not isinstance(model, nn.Module):
        raise ServiceError(f"{name} returns {type(model).__name__}, not a torch module; return the untrained model")
    return model


SOURCES: dict[str, Callable[[str, dict[str, Any]], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    "python": _python,
}
