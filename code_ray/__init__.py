"""code_ray: deep-learning services borrow each other's idle blocks (CoDE)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from code_ray.client import AsyncClient, Client, Prediction

if TYPE_CHECKING:
    from code_ray.own_data import make_data, save_data
    from code_ray.own_service import make_service
    from code_ray.preprocessing import Preprocessing
    from code_ray.service import services_dir
    from code_ray.splitting import split

__all__ = ["AsyncClient", "Client", "Prediction", "Preprocessing", "make_data", "make_service", "save_data", "services_dir", "split"]

_WITH_TORCH = {
    "Preprocessing": "preprocessing",
    "make_data": "own_data",
    "make_service": "own_service",
    "save_data": "own_data",
    "services_dir": "service",
    "split": "splitting",
}


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:  # a client needs no torch
        return getattr(import_module(f"code_ray.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module 'code_ray' has no attribute {name!r}")
