"""What a user of LitServe would write without this project, as a process of its own: python -m benchmarks.serving.lit_serve SERVICE MODE PORT.

Its requests are JSON: images and logits travel as base64. A request of many images is a batch already.
"""

from __future__ import annotations

import argparse
import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import litserve
import numpy as np
import torch

from code_ray.profiling import Execution
from code_ray.runner import LegRunner
from code_ray.zoo import get_service
from deployments.config import ProviderOptions
from examples.demo import free_port
from examples.load import Images

START_S = 60.0


class Api(litserve.LitAPI):  # type: ignore[misc]
    """The same service in the same mode as this project's provider runs it in."""

    def __init__(self, service: str, mode: str) -> None:
        super().__init__()
        self._names = service, mode

    def setup(self, device: str) -> None:
        """In the worker, before its first request."""
        service, mode = self._names
        torch.set_num_threads(1)
        self._service = get_service(service)
        execution = ProviderOptions.model_validate({"mode": mode}).execution_mode
        assert execution is not None
        self._runner = LegRunner(list(self._service.blocks), execution)

    def decode_request(self, request: dict[str, str]) -> Images:
        """uint8 images (n, ...)."""
        return np.frombuffer(base64.b64decode(request["images"]), np.uint8).reshape(-1, *self._service.spec.preprocessing.sample_shape)

    def predict(self, images: Images) -> bytes:
        """Logits, float32."""
        with torch.inference_mode():
            return np.asarray(self._runner(self._service.preprocess(images)).numpy(), np.float32).tobytes()

    def encode_response(self, logits: bytes) -> dict[str, str]:
        """As JSON."""
        return {"logits": base64.b64encode(logits).decode()}


@dataclass(frozen=True)
class Running:
    """Where it answers, and its first process."""

    url: str
    process: int


@contextmanager
def lit_serve(service: str, best: Execution) -> Iterator[Running]:
    """A server of it on a port of this machine."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.lit_serve", service, str(best.mode), str(port)], start_new_session=True
    )
    try:
        running = Running(f"http://127.0.0.1:{port}", process.pid)
        _wait(f"{running.url}/health")
        yield running
    finally:
        # Its workers outlive their parent.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(url: str) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            if httpx.get(url, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > end:
            raise SystemExit(f"LitServe does not answer at {url} after {START_S:.0f} s")
        time.sleep(0.2)


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service")
    parser.add_argument("mode")
    parser.add_argument("port", type=int)
    options = parser.parse_args()
    server = litserve.LitServer(Api(options.service, options.mode), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
