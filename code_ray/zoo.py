"""Services by name: the built-in ones, and those of one's own below ``services_dir()``.

========================  ======================================================  ==============
name                      what it is                                              weights
========================  ======================================================  ==============
``fashion-cnn``           7 blocks, Fashion-MNIST; the headline local service     in the package
``alexnet-fashion``       6 blocks, AlexNet at 28x28, Fashion-MNIST (the paper)   in the package
``alexnet-digits``        6 blocks, AlexNet at 28x28, scikit-learn's digits       in the package
``efficientnet-lite0``    10 blocks, ImageNet, at 56x56; the headline host        PyPI, converted
``sentence-cnn``          6 blocks, moods of sentences of 48 tokens               in the package
``minilm``                8 blocks, all-MiniLM-L6-v2, of 48 tokens; a host        PyPI, converted
========================  ======================================================  ==============
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from code_ray.blocks import cut_layers
from code_ray.errors import ServiceError
from code_ray.own_service import BUILDER, build_split_model
from code_ray.service import Builder, Service, ServiceSpec, load_service, read_spec, services_dir
from code_ray.text_blocks import build_sentence_cnn, build_text_encoder

_NAME = re.compile(r"\w[\w.-]*")

WEIGHTS_DIR = Path(__file__).parent / "weights"
EFFICIENTNET_DESCRIPTION = Path(__file__).parent / "efficientnet_lite0.json"
MINILM_DESCRIPTION = Path(__file__).parent / "minilm.json"


class Residual(nn.Module):
    """relu(x + f(x)), f two 3x3 convolutions with batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, value: Tensor) -> Tensor:
        return torch.relu(value + self.body(value))


def _conv(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]


def build_fashion_cnn(num_classes: int, width: int = 96) -> nn.ModuleList:
    """Seven blocks for 1x28x28 inputs: at each of three resolutions a convolution and a residual pair, then a head."""
    w = width
    return nn.ModuleList(
        [
            nn.Sequential(*_conv(1, w)),
            Residual(w),
            nn.Sequential(*_conv(w, 2 * w), nn.MaxPool2d(2)),
            Residual(2 * w),
            nn.Sequential(*_conv(2 * w, 3 * w), nn.MaxPool2d(2)),
            Residual(3 * w),
            nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(3 * w * 9, num_classes)),
        ]
    )


def build_alexnet(num_classes: int, widths: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)) -> nn.ModuleList:
    """AlexNet's five convolutions and a head at 1x28x28: strides and kernels shrunk, widths torchvision's."""
    a, b, c, d, e = widths
    layers: list[nn.Module] = [nn.Conv2d(1, a, 3, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(b, c, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(c, d, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3)]
    layers += [nn.Flatten(), nn.Dropout(0.5), nn.Linear(e * 4, 2 * e), nn.ReLU(), nn.Linear(2 * e, num_classes)]
    return cut_layers(nn.Sequential(*layers), [0, 2, 5, 7, 9, 12])


def build_efficientnet_lite0(num_classes: int = 1000) -> nn.ModuleList:
    """timm's ``tf_efficientnet_lite0`` as nine stages and a head.

    Raises:
        ServiceError: where timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ServiceError("efficientnet-lite0 needs timm; install the extra 'demo': pip install -e '.[demo]' in the repository") from error
    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=num_classes)
    stages = [nn.Sequential(model.conv_stem, model.bn1), *model.blocks, nn.Sequential(model.conv_head, model.bn2)]
    return nn.ModuleList([*stages, nn.Sequential(model.global_pool, model.classifier)])


BUILDERS: dict[str, Builder] = {
    "fashion_cnn": build_fashion_cnn,
    "alexnet": build_alexnet,
    "efficientnet_lite0": build_efficientnet_lite0,
    "sentence_cnn": build_sentence_cnn,
    "text_encoder": build_text_encoder,
    BUILDER: build_split_model,
}


def cache_dir() -> Path:
    """Where converted services are kept: ``$CODE_RAY_CACHE`` or ``~/.cache/code_ray``."""
    return Path(os.environ.get("CODE_RAY_CACHE", Path.home() / ".cache/code_ray"))


def _packaged(name: str) -> Callable[[], Path]:
    return lambda: WEIGHTS_DIR / name


def _efficientnet_dir() -> Path:
    from code_ray.efficientnet import convert_efficientnet_lite0

    return convert_efficientnet_lite0(cache_dir() / "efficientnet-lite0")


def _minilm_dir() -> Path:
    from code_ray.minilm import convert_minilm

    return convert_minilm(cache_dir() / "minilm")


ZOO: dict[str, Callable[[], Path]] = {
    "fashion-cnn": _packaged("fashion-cnn"),
    "alexnet-fashion": _packaged("alexnet-fashion"),
    "alexnet-digits": _packaged("alexnet-digits"),
    "efficientnet-lite0": _efficientnet_dir,
    "sentence-cnn": _packaged("sentence-cnn"),
    "minilm": _minilm_dir,
}

DESCRIPTIONS = {"efficientnet-lite0": EFFICIENTNET_DESCRIPTION, "minilm": MINILM_DESCRIPTION}
"""Of the services whose weights do not ship with the package."""


def named_folder(name: str) -> Path | None:
    """The folder of the service that goes by that name here, if there is one."""
    if name in ZOO:
        return ZOO[name]()
    own = services_dir() / name
    return own if _NAME.fullmatch(name) and (own / "service.json").is_file() else None


def description_file(name: str) -> Path | None:
    """The ``service.json`` of the service that goes by that name, if there is one; those of built-in ones ship with the package whether
    their weights are here or not.
    """
    if name in ZOO:
        return DESCRIPTIONS.get(name, WEIGHTS_DIR / name / "service.json")
    own = named_folder(name)
    return None if own is None else own / "service.json"


@lru_cache(maxsize=8)
def get_service(name_or_folder: str) -> Service:
    """The service of that name, built in or of one's own, or the one in that folder.

    Raises:
        ServiceError: for a name that is neither, or a folder that is not a service.
    """
    folder = named_folder(name_or_folder) or Path(name_or_folder)
    if folder.is_dir():
        return load_service(folder, BUILDERS)
    raise ServiceError(
        f"no service is called {name_or_folder!r}; there are: {', '.join(ZOO)}, or give a service folder; those in {services_dir()} go by their names"
    )


def load_stored_service(name: str, store_dir: Path) -> Service:
    """A provider's own service: from its store where it is there, else by its name.

    Raises:
        ServiceError: for a service that is neither, or not whole.
    """
    folder = _folder_in_store(name, store_dir)
    return get_service(str(folder) if folder.exists() else name)


def stored_spec(name: str, store_dir: Path) -> ServiceSpec:
    """The description of a service without its weights.

    Raises:
        ServiceError: as ``load_stored_service``.
    """
    folder = _folder_in_store(name, store_dir)
    named = None if folder.exists() else description_file(name)
    return read_spec(named or folder / "service.json")


def _folder_in_store(name: str, store_dir: Path) -> Path:
    return store_dir / "services" / name
