"""Two routers, and servers that are killed under load: clients that try again lose no answer (DESIGN 3.5)."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
from ray import serve
from serving import BATCH, FIXED, LOCAL, Load, Run, eventually, process_ids, replica_id, running_serve

from code_ray.client import RETRIES, Client
from code_ray.data import DataSet
from code_ray.errors import RequestError
from code_ray.policy import ORIGINAL
from deployments import build_app
from deployments.config import AppOptions, RouterOptions


@pytest.fixture(scope="module")
def url(served_run: Run) -> Iterator[str]:
    router = RouterOptions(replicas=2, path_deadline_s=2, request_deadline_s=8, steering="plan")
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=served_run.root, providers={"alpha": FIXED, "beta": FIXED}, router=router)))
        yield base


@pytest.mark.parametrize("deployment", ["router", "provider-alpha", "provider-beta"], ids=["a router", "the local service", "the host"])
def test_no_answer_is_lost_with_a_server(deployment: str, url: str, digits: DataSet) -> None:
    title = f"ray::ServeReplica:default:{deployment}"
    with Load(url, LOCAL, digits.test.images[:BATCH], clients=4, retries=RETRIES, timeout_s=120) as load:
        eventually(lambda: len(load.answers) > 20, "nothing is answered")
        before = process_ids(title)
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        moment = time.monotonic()
        eventually(lambda: len(process_ids(title) - {killed}) == len(before), "it is not replaced", 90)
        eventually(lambda: len(load.since(moment)) > 20, "nothing is answered any more", 90)
    assert load.failures == []


def test_without_its_local_service_a_router_says_so_at_once_and_recovers(url: str, digits: DataSet) -> None:
    images = digits.test.images[:BATCH]
    local = replica_id("provider-alpha")
    with Client(url, retries=0, timeout_s=60) as client:
        # Stopped and not killed: Serve replaces it late, so that there is time to look.
        os.kill(local, signal.SIGSTOP)
        try:
            eventually(lambda: not client.is_ready(), "the service is still called ready")
            time.sleep(6.0)  # until both routers have asked twice
            for _ in range(6):
                begin = time.monotonic()
                with pytest.raises(RequestError, match="is not up now; send the request again") as caught:
                    client.predict(LOCAL, images)
                assert caught.value.status == 503
                assert caught.value.retry_after_s == 1
                assert time.monotonic() - begin < 1.0
        finally:
            os.kill(local, signal.SIGCONT)
    with Client(url, timeout_s=120) as client:
        assert client.predict(LOCAL, images, path=ORIGINAL).path == ORIGINAL
