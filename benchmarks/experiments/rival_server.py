"""Rivals that are no path, as their owner would serve them: plain Ray Serve behind FastAPI, one core."""

# No deferred annotations here: FastAPI looks at them.

from pathlib import Path

import numpy as np
import torch
from fastapi import FastAPI, Request, Response
from ray import serve
from ray.serve import Application
from safetensors.torch import load_file
from torch import nn

from benchmarks.experiments.quantised import calibrated
from code_ray.blocks import ExecutionMode
from code_ray.data import load_data
from code_ray.distillation import small_network
from code_ray.gating import confidence
from code_ray.runner import LegRunner
from code_ray.zoo import get_service

TOGETHER = 4
"""Requests that are answered at once where there are so many: what a gate makes again is a batch of a useful size then."""

_app = FastAPI()


class Int8:
    """The service in int8."""

    def __init__(self, name: str, data: str) -> None:
        self._service = get_service(name)
        self._model = calibrated(self._service, load_data(data), seed=0)

    def logits(self, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> torch.Tensor:
        with torch.inference_mode():
            answers: torch.Tensor = self._model(self._service.preprocess(images))
        return answers


class Distilled:
    """A small network; what it is not sure of, the service answers."""

    def __init__(self, name: str, channels: int, weights: Path, threshold: float, mode: ExecutionMode) -> None:
        self._service, self._threshold = get_service(name), threshold
        network: nn.Module = small_network(self._service, channels)
        network.load_state_dict(load_file(weights))
        self._small, self._original = LegRunner([network.eval()], mode), LegRunner(list(self._service.blocks), mode)

    def logits(self, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> torch.Tensor:
        with torch.inference_mode():
            answers = self._small(self._service.preprocess(images)).float()
            again = np.flatnonzero(confidence(answers.numpy()) < self._threshold)
            if len(again):
                answers[again] = self._original(self._service.preprocess(images[again])).float()
        return answers


@serve.deployment(name="rival", ray_actor_options={"num_cpus": 1}, max_ongoing_requests=256, logging_config={"enable_access_log": False})
@serve.ingress(_app)
class Rival:
    """Requests are raw uint8 images (n, ...), answers raw float32 logits (n, classes)."""

    def __init__(self, name: str, data: str, distilled: tuple[int, Path, float] | None, mode: ExecutionMode) -> None:
        torch.set_num_threads(1)
        self._shape = get_service(name).spec.preprocessing.sample_shape
        self._model = Int8(name, data) if distilled is None else Distilled(name, *distilled, mode)

    @serve.batch(max_batch_size=TOGETHER, batch_wait_timeout_s=0.0)
    async def _together(self, bodies: list[bytes]) -> list[bytes]:
        parts = [np.frombuffer(body, np.uint8).reshape(-1, *self._shape) for body in bodies]
        logits = np.asarray(self._model.logits(np.concatenate(parts)).numpy(), np.float32)
        return [part.tobytes() for part in np.split(logits, np.cumsum([len(part) for part in parts])[:-1])]

    @_app.post("/infer")
    async def infer(self, request: Request) -> Response:
        """Logits of the images in the body."""
        return Response(await self._together(await request.body()))


def int8_app(name: str, data: str) -> Application:
    """The service in int8, with ranges from images of ``data``."""
    deployment: serve.Deployment = Rival  # type: ignore[assignment]
    return deployment.bind(name, data, None, ExecutionMode())


def distilled_app(name: str, data: str, channels: int, weights: Path, threshold: float, mode: ExecutionMode) -> Application:
    """A small network with ``weights``, gated below a confidence of ``threshold``."""
    deployment: serve.Deployment = Rival  # type: ignore[assignment]
    return deployment.bind(name, data, (channels, weights, threshold), mode)
