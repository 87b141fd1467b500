"""Hosts that die, hang or are taken out of use under load: no request fails, the original path answers (DESIGN 3.5)."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve
from serving import BATCH, FIXED, LOCAL, Load, Run, eventually, exported, handle_of, replica_id, running_serve

from code_ray.client import Client
from code_ray.data import DataSet
from code_ray.errors import ConfigError
from code_ray.policy import ORIGINAL
from code_ray.wire import decode_response, encode_request
from deployments import build_app
from deployments.config import AppOptions, RouterOptions, RouterSettings

PATH_DEADLINE_S = 2.0
MARKED = {"X-Request-ID": "one-that-hangs"}
LIMITS = RouterOptions(path_deadline_s=PATH_DEADLINE_S, request_deadline_s=60, steering="plan")
# A load must not run into the bucket of borrowed seconds: what is shown here is something else.
HOST_OPTIONS = FIXED.model_copy(update={"burst_s": 1000.0})


@pytest.fixture(scope="module")
def url(served_run: Run) -> Iterator[str]:
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=served_run.root, providers={"alpha": FIXED, "beta": HOST_OPTIONS}, router=LIMITS)))
        yield base


@pytest.fixture(autouse=True)
def only_the_cross_path(url: str, served_run: Run) -> None:
    """Besides the original only the cross path is in use, and its host is up."""
    use_only(served_run.id_of("cross"))
    eventually(lambda: share(url, served_run.id_of("cross")) > 0, "the cross path has no share")


def use_only(*paths: str) -> None:
    handle_of("router").reconfigure.remote(RouterSettings(use=paths, steering="plan").model_dump(mode="json")).result(timeout_s=60)


def router_log() -> list[str]:
    """What the router's replicas have written."""
    folder = Path("/tmp/ray", ray.get_runtime_context().get_session_name(), "logs", "serve")
    return [line for file in folder.glob("replica_default_router_*.log") for line in file.read_text().splitlines()]


def share(url: str, path: str) -> float:
    with Client(url) as client:
        return next(float(p["share"]) for p in client.metadata(LOCAL)["parameters"]["paths"] if p["id"] == path)


def test_a_killed_host_costs_no_request_and_comes_back(url: str, served_run: Run, digits: DataSet) -> None:
    cross = served_run.id_of("cross")
    killed = replica_id("provider-beta")
    with Load(url, LOCAL, digits.test.images[:BATCH]) as load:
        eventually(lambda: cross in load.since(0.0), "no request took the cross path")
        # Stopped for a moment first, so that requests are surely under way on the host when it dies.
        os.kill(killed, signal.SIGSTOP)
        eventually(lambda: time.monotonic() - load.answers[-1][1] > 0.5, "no request waits for the host", PATH_DEADLINE_S)
        os.kill(killed, signal.SIGKILL)
        moment = time.monotonic()
        eventually(lambda: ORIGINAL in load.since(moment), "nothing was answered during the outage")
        eventually(lambda: cross in load.since(moment), "the cross path did not come back")
        back = next(begin for begin, _, path in load.answers if path == cross and begin > moment)
    assert load.failures == []
    assert replica_id("provider-beta") != killed
    assert {path for begin, end, path in load.answers if begin < moment < end} == {ORIGINAL}
    assert {path for begin, end, path in load.answers if begin > moment and end < back} == {ORIGINAL}


def test_a_path_that_hangs_is_answered_by_the_original_within_the_same_request(url: str, served_run: Run, digits: DataSet) -> None:
    images, cross = digits.test.images[:BATCH], served_run.id_of("cross")
    host = replica_id("provider-beta")
    with Client(url, retries=0, timeout_s=60) as client:
        assert client.predict(LOCAL, images, path=cross).path == cross
        os.kill(host, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            body, headers = encode_request(images, path=cross)
            answer = httpx.post(f"{url}/v2/models/{LOCAL}/infer", content=body, headers=headers | MARKED, timeout=60, trust_env=False)
            seconds = time.monotonic() - begin
        finally:
            os.kill(host, signal.SIGCONT)
        assert decode_response(answer.content, dict(answer.headers))[2] == ORIGINAL
        assert seconds >= PATH_DEADLINE_S
        assert answer.headers["X-Request-ID"] == MARKED["X-Request-ID"]
        said = [line for line in router_log() if MARKED["X-Request-ID"] in line]
        assert any(f"path {cross} of {LOCAL} failed: no answer within {PATH_DEADLINE_S:.1f} s" in line for line in said), said
        assert client.metadata(LOCAL)["parameters"]["breakers"] == {"beta": "open"}
        eventually(lambda: client.predict(LOCAL, images, path=cross).path == cross, "the cross path did not come back")
        assert client.metadata(LOCAL)["parameters"]["breakers"] == {"beta": "closed"}
    assert replica_id("provider-beta") == host


def test_a_hanging_host_is_asked_once_and_not_by_every_request(url: str, served_run: Run, digits: DataSet) -> None:
    host = replica_id("provider-beta")
    with Load(url, LOCAL, digits.test.images[:BATCH]) as load:
        eventually(lambda: served_run.id_of("cross") in load.since(0.0), "no request took the cross path")
        os.kill(host, signal.SIGSTOP)
        try:
            time.sleep(PATH_DEADLINE_S + 1.0)
            moment = time.monotonic()
            time.sleep(2.0)
        finally:
            os.kill(host, signal.SIGCONT)
    assert load.failures == []
    swift = [end - begin for begin, end, _ in load.answers if begin > moment and end - begin < PATH_DEADLINE_S]
    assert len(swift) > len(load.since(moment)) / 2


def test_prometheus_hears_of_an_open_breaker_while_the_host_says_nothing(url: str, served_run: Run, digits: DataSet) -> None:
    images, cross = digits.test.images[:BATCH], served_run.id_of("cross")

    def breaker() -> float:
        return max((value for labels, value in exported()["breaker"] if labels["provider"] == "beta"), default=0.0)

    with Client(url, retries=0, timeout_s=60) as client:
        host = replica_id("provider-beta")
        os.kill(host, signal.SIGSTOP)
        try:
            assert client.predict(LOCAL, images, path=cross).path == ORIGINAL
            eventually(lambda: breaker() > 0, "an open breaker is not exported", 25)
        finally:
            os.kill(host, signal.SIGCONT)
        eventually(lambda: client.predict(LOCAL, images, path=cross).path == cross, "the cross path did not come back")


def test_reconfigure_changes_the_paths_under_load_without_losing_a_request(url: str, served_run: Run, digits: DataSet) -> None:
    with Load(url, LOCAL, digits.test.images[:BATCH]) as load:
        for name in ("cross", "exit", "skip"):
            use_only(served_run.id_of(name))
            moment = time.monotonic()
            eventually(lambda moment=moment, name=name: served_run.id_of(name) in load.since(moment), f"{name} is not used")  # type: ignore[misc]
            assert set(load.since(moment)) <= {ORIGINAL, served_run.id_of(name)}
        use_only()
        moment = time.monotonic()
        time.sleep(1.0)
        assert set(load.since(moment)) == {ORIGINAL}
    assert load.failures == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"use": ["nowhere"]}, r"'use' names \['nowhere'\]"), ({"usage": []}, "user_config is malformed at usage")],
)
def test_settings_that_make_no_sense_are_a_config_error_and_change_nothing(
    settings: dict[str, list[str]], message: str, url: str, served_run: Run
) -> None:
    before = share(url, served_run.id_of("cross"))
    with pytest.raises(ConfigError, match=message) as caught:
        handle_of("router").reconfigure.remote(settings).result(timeout_s=60)
    assert isinstance(caught.value, ray.exceptions.RayTaskError)
    assert before > 0
    assert share(url, served_run.id_of("cross")) > 0
