"""What a user of Ray Serve would write without this project: one deployment behind FastAPI, with and without ``@serve.batch``."""

# No deferred annotations here: FastAPI looks at them.

import numpy as np
import torch
from fastapi import FastAPI, Request, Response
from ray import serve
from ray.serve import Application

from code_ray.profiling import Execution
from code_ray.runner import LegRunner
from code_ray.zoo import get_service

_alone, _batched = FastAPI(), FastAPI()


class _Model:
    """The same service in the same mode as this project's provider runs it in; requests are raw uint8 images (n, ...)."""

    def __init__(self, service: str, best: Execution) -> None:
        torch.set_num_threads(1)
        self._service = get_service(service)
        self._runner = LegRunner(list(self._service.blocks), best.mode)
        self._shape = self._service.spec.preprocessing.sample_shape

    def decode(self, body: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return np.frombuffer(body, np.uint8).reshape(-1, *self._shape)

    def logits(self, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        with torch.inference_mode():
            return np.asarray(self._runner(self._service.preprocess(images)).numpy(), np.float32)


@serve.deployment(name="plain", ray_actor_options={"num_cpus": 1}, max_ongoing_requests=256, logging_config={"enable_access_log": False})
@serve.ingress(_alone)
class Plain:
    """One request, one call of the model."""

    def __init__(self, service: str, best: Execution) -> None:
        self._model = _Model(service, best)

    @_alone.post("/infer")
    async def infer(self, request: Request) -> Response:
        """Logits of the images in the body, float32."""
        return Response(self._model.logits(self._model.decode(await request.body())).tobytes())


@serve.deployment(name="batched", ray_actor_options={"num_cpus": 1}, max_ongoing_requests=256, logging_config={"enable_access_log": False})
@serve.ingress(_batched)
class Batched:
    """Requests of one image each, put together by Serve."""

    def __init__(self, service: str, best: Execution) -> None:
        self._model = _Model(service, best)
        self._together.set_max_batch_size(best.batch_size)  # type: ignore[attr-defined]

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def _together(self, bodies: list[bytes]) -> list[bytes]:
        logits = self._model.logits(np.concatenate([self._model.decode(body) for body in bodies]))
        return [row.tobytes() for row in logits]

    @_batched.post("/infer")
    async def infer(self, request: Request) -> Response:
        """Logits of the image in the body, float32."""
        return Response(await self._together(await request.body()))


def plain_app(service: str, best: Execution, num_replicas: int = 1) -> Application:
    """Without batching."""
    deployment: serve.Deployment = Plain  # type: ignore[assignment]
    return deployment.options(num_replicas=num_replicas).bind(service, best)


def batched_app(service: str, best: Execution) -> Application:
    """With ``@serve.batch``."""
    deployment: serve.Deployment = Batched  # type: ignore[assignment]
    return deployment.bind(service, best)
