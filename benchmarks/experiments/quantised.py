"""The local service in int8, on the processor's own kernels: a rival that asks nobody."""

from __future__ import annotations

import time
import warnings

import numpy as np
import torch
from torch import nn

from benchmarks.jobs import Record
from code_ray.data import DataSet
from code_ray.profiling import median_seconds
from code_ray.service import Service

CALIBRATION_IMAGES = 256
BATCH_SIZES = (32, 64)


def int8_rival(service: Service, data: DataSet, seed: int) -> Record:
    """Weights by channel, activations by tensor, ranges from 256 training images drawn by ``seed``: accuracy, and ms an image."""
    started = time.monotonic()
    model = calibrated(service, data, seed)
    row: Record = {"seconds": time.monotonic() - started}
    for name, split in (("validation", data.validation), ("test", data.test)):
        with torch.inference_mode():
            answers = torch.cat([model(part).argmax(1) for part in service.preprocess(split.images).split(256)])
        row[f"accuracy_{name}"] = float((answers.numpy() == split.labels).mean())
    times = []
    for size in BATCH_SIZES:
        batch = service.preprocess(data.train.images[:size])
        with torch.inference_mode():
            times.append(median_seconds(lambda batch=batch: model(batch)) / size)  # type: ignore[misc]
    return {**row, "tau_local_ms": 1e3 * min(times)}


def calibrated(service: Service, data: DataSet, seed: int) -> nn.Module:
    """The whole service in int8, floats (n, *in_shape) to logits, with ranges from training images drawn by ``seed``."""
    drawn = np.random.default_rng(seed).choice(len(data.train), CALIBRATION_IMAGES, replace=False)
    return quantise(nn.Sequential(*service.blocks), service.preprocess(data.train.images[drawn]))


def quantise(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """A copy of ``model`` whose convolutions and linear layers compute in int8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls this way of quantising old; its successor is a package of its own
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        prepared = prepare_fx(model.eval(), get_default_qconfig_mapping("x86"), (images[:1],))
        with torch.inference_mode():
            for part in images.split(64):
                prepared(part)
        return nn.Module.eval(convert_fx(prepared))
