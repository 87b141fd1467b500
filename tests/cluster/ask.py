"""A client on a host of its own: asks again and again, never twice for the same answer, and says what came of it.

python ask.py URL KEY SECONDS CLIENTS: the plan's own canary images; a line of JSON per request, [begun, seconds, path, labels] or
[begun, seconds, null, what went wrong], in seconds since 1970.
"""

from __future__ import annotations

import json
import sys
import threading
import time

from code_ray.canaries import load_canaries
from code_ray.client import Client
from code_ray.errors import RequestError
from deployments.config import DEFAULT_RUN_DIR
from deployments.stores import open_plan


def main(url: str, key: str, seconds: float, clients: int) -> None:
    """Keep ``clients`` requests under way for ``seconds``."""
    run, plan = open_plan(DEFAULT_RUN_DIR)
    assert plan.canaries is not None
    images = load_canaries(run.canaries_file, plan.canaries).images
    end = time.monotonic() + seconds

    def ask() -> None:
        with Client(url, key=key, retries=0) as client:
            while time.monotonic() < end:
                begun, started = time.time(), time.monotonic()
                try:
                    answer = client.predict(plan.local, images)
                except RequestError as error:
                    told: list[object] = [None, f"{error.status}: {error}"]
                else:
                    told = [answer.path, answer.labels]
                print(json.dumps([begun, time.monotonic() - started, *told]), flush=True)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
