"""What chunks took of the heap does not stay with the server."""

import os
import platform
import time
from typing import Any

import numpy as np
import pytest

from benchmarks.serving.memory import own_bytes
from code_ray.metering import ComputeBucket
from deployments import worker
from deployments.worker import Array, HostedLeg, LegWorker, QueueLimits

BLOCK, BLOCKS = 64 * 1024, 3000
"""Less than what glibc asks the system for by itself."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_memory_that_chunks_freed_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    def call(value: Array) -> Array:
        if value[0] > 0:
            blocks = [np.ones(BLOCK, np.uint8) for _ in range(BLOCKS)]
            kept.append(np.ones(BLOCK, np.uint8))  # above all that is freed: the heap cannot shrink from its end
            del blocks
        return value

    def ask(size: float) -> int:
        future = server.submit("leg", np.array([size]))
        future.result(30)  # type: ignore[union-attr]
        while not server.is_idle:
            time.sleep(0.001)
        return own_bytes(os.getpid())

    leg = HostedLeg(call, "", (), guest=False, position=0, batch_size=1, seconds=0.0)
    server = LegWorker({"leg": leg}, ComputeBucket(1.0, 1.0, 0.0), QueueLimits(10.0, 0.02, 0.06, 0.5), threads=1)
    monkeypatch.setattr(worker, "GIVE_BACK_EVERY_S", 0.0)
    before = ask(0)  # what other tests left would be used again
    monkeypatch.setattr(worker, "GIVE_BACK_EVERY_S", 1000.0)
    assert ask(1) - before > BLOCK * BLOCKS / 2
    monkeypatch.setattr(worker, "GIVE_BACK_EVERY_S", 0.0)
    assert ask(0) - before < BLOCK * BLOCKS / 10
