"""API keys over Ray Serve and HTTP: who is answered, from where, and what becomes of a key that is taken away."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from ray import serve
from serving import BATCH, FIXED, HOST, LOCAL, Run, eventually, running_serve

from code_ray.client import Client
from code_ray.data import DataSet
from code_ray.errors import RequestError
from deployments import build_app
from deployments.config import AppOptions, RouterOptions


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    make_key(file, "to be removed")
    return file


@pytest.fixture(scope="module")
def url(served_run: Run, keys_file: Path) -> Iterator[str]:
    """Listens on every interface."""
    router = RouterOptions(path_deadline_s=60, request_deadline_s=120, keys_file=keys_file)
    with running_serve(host="0.0.0.0") as base:
        serve.run(build_app(AppOptions(run_dir=served_run.root, providers={"alpha": FIXED, "beta": FIXED}, router=router)))
        yield base


def keys(*arguments: str, file: Path) -> str:
    command = [sys.executable, "-m", "deployments", "keys", *arguments, "--file", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def make_key(file: Path, name: str, *options: str) -> str:
    return keys("add", name, *options, file=file)


def from_elsewhere(url: str) -> str:
    """The same server by an address of this machine that is not loopback."""
    addresses = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; says by which address this machine would be seen
            addresses.add(probe.getsockname()[0])
        except OSError:
            pass
    outside = sorted(address for address in addresses if not address.startswith("127."))
    if not outside:
        pytest.skip("this machine has no address but loopback")
    return f"http://{outside[0]}:{urlsplit(url).port}"


def status_of(url: str, key: str | None, service: str = LOCAL) -> int:
    with Client(url, key=key, retries=0, timeout_s=60) as client:
        try:
            client.metadata(service)
        except RequestError as error:
            return error.status
    return 200


def test_a_key_is_answered_and_no_key_is_not(url: str, keys_file: Path, digits: DataSet) -> None:
    key = make_key(keys_file, "answered")
    eventually(lambda: status_of(url, key) == 200, "the router does not notice the new key")
    with Client(url, key=key, timeout_s=60) as client:
        assert len(client.predict(LOCAL, digits.test.images[:BATCH]).labels) == BATCH
    for other in (None, "cr_nobody"):
        with Client(url, key=other, retries=0) as client, pytest.raises(RequestError) as caught:
            client.predict(LOCAL, digits.test.images[:BATCH])
        assert caught.value.status == 401
    response = httpx.get(f"{url}/v2", trust_env=False)
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert httpx.get(f"{url}/v2/health/ready", trust_env=False).status_code == 200


def test_a_key_is_held_to_its_services_and_its_rate(url: str, keys_file: Path, digits: DataSet) -> None:
    key = make_key(keys_file, "held", "--services", HOST, "--images-per-second", str(BATCH))
    eventually(lambda: status_of(url, key, HOST) == 200, "the router does not notice the new key")
    assert status_of(url, key, LOCAL) == 403
    with Client(url, key=key, retries=0, timeout_s=60) as client:
        # Many at once in one request run ahead, and are paid for before the next.
        client.predict(HOST, digits.test.images[: 10 * BATCH])
        with pytest.raises(RequestError, match="may send") as caught:
            client.predict(HOST, digits.test.images[:BATCH])
    assert caught.value.status == 429
    with Client(url, key=key, timeout_s=60) as patient:
        assert len(patient.predict(HOST, digits.test.images[:BATCH]).labels) == BATCH


def test_a_key_that_was_taken_away_is_not_answered_any_more(url: str, keys_file: Path) -> None:
    key = make_key(keys_file, "gone")
    eventually(lambda: status_of(url, key) == 200, "the router does not notice the new key")
    keys("remove", "gone", file=keys_file)
    eventually(lambda: status_of(url, key) == 401, "the router does not notice that the key is gone")


def test_a_key_is_asked_for_from_elsewhere_too(url: str, keys_file: Path) -> None:
    key = make_key(keys_file, "elsewhere")
    eventually(lambda: status_of(url, key) == 200, "the router does not notice the new key")
    assert status_of(from_elsewhere(url), key) == 200
    assert status_of(from_elsewhere(url), None) == 401


def test_without_keys_another_machine_is_refused(url: str, served_run: Run) -> None:
    """Comes last: it takes the keys away."""
    router = RouterOptions(path_deadline_s=60, request_deadline_s=120)
    serve.run(build_app(AppOptions(run_dir=served_run.root, providers={"alpha": FIXED, "beta": FIXED}, router=router)))
    assert status_of(url, None) == 200
    assert status_of(from_elsewhere(url), None) == 403


def test_a_router_without_its_key_file_does_not_start(url: str, served_run: Run, tmp_path: Path) -> None:
    router = RouterOptions(keys_file=tmp_path / "nowhere.json")
    with pytest.raises(RuntimeError):
        serve.run(build_app(AppOptions(run_dir=served_run.root, providers={"alpha": FIXED, "beta": FIXED}, router=router)))
