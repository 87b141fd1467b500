"""Live steering: a quiet service stays on its original path, an overloaded one borrows, and a request gets what it asks for."""

import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from ray import serve
from serving import FIXED, HOST, LOCAL, Images, Load, Run, eventually, exported, make_run, make_service, running_serve

from code_ray.client import Client
from code_ray.data import DataSet
from code_ray.errors import RequestError
from code_ray.policy import ORIGINAL
from deployments import build_app
from deployments.config import AppOptions, RouterOptions


@pytest.fixture(scope="module")
def run(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A local service whose blocks take most of a request's time."""
    services = {LOCAL: make_service(LOCAL, digits, 0, (32, 96, 128, 128, 64)), HOST: make_service(HOST, digits, 1)}
    return make_run(tmp_path_factory.mktemp("slow_local"), services, digits)


@pytest.fixture(scope="module")
def url(run: Run) -> Iterator[str]:
    limits = RouterOptions(path_deadline_s=60, request_deadline_s=120)
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=run.root, providers={"alpha": FIXED, "beta": FIXED}, router=limits)))
        yield base


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout_s=120, retries=0) as made:
        yield made


@pytest.fixture
def images(digits: DataSet) -> Images:
    """Enough of them that a request is mostly computing."""
    return np.concatenate([digits.test.images[:256]] * 2)


def level(client: Client) -> float:
    return float(client.metadata(LOCAL)["parameters"]["load_level"])


def test_the_plan_has_something_to_borrow(client: Client) -> None:
    shares = {path["id"]: path["share"] for path in client.metadata(LOCAL)["parameters"]["paths"]}
    assert shares[ORIGINAL] < 0.9


def test_one_request_at_a_time_takes_the_original_path(client: Client, images: Images) -> None:
    taken = Counter(client.predict(LOCAL, images).path for _ in range(15))
    assert taken == {ORIGINAL: 15}
    assert level(client) == 0


def test_an_overload_moves_to_the_plan_and_back(url: str, client: Client, images: Images) -> None:
    with Load(url, LOCAL, images, clients=6) as load:
        eventually(lambda: level(client) > 0.5, "the level does not rise")
        moment = time.monotonic()
        eventually(lambda: any(path != ORIGINAL for path in load.since(moment)), "nothing is borrowed")
    assert load.failures == []
    first = min(begin for begin, _, path in load.answers if path != ORIGINAL)
    assert {path for begin, _, path in load.answers if begin < first} == {ORIGINAL}
    eventually(lambda: level(client) == 0, "the level does not fall")
    assert client.predict(LOCAL, images).path == ORIGINAL


def test_prometheus_hears_of_it(client: Client, images: Images) -> None:
    """Comes after an overload, which both kinds of paths have answered."""
    answered = client.predict(LOCAL, images)
    assert answered.path == ORIGINAL
    # Ray exports every ten seconds or so.
    eventually(lambda: any(labels["kind"] != ORIGINAL for labels, _ in exported()["images_total"]), "what was borrowed is not exported")
    found = exported()
    by_kind = Counter[str]()
    for labels, value in found["images_total"]:
        by_kind[labels["kind"]] += int(value)
    assert by_kind["original"] > 0
    assert by_kind.total() > by_kind["original"]
    assert by_kind.total() % len(images) == 0
    requests = by_kind.total() / len(images)
    assert sum(value for labels, value in found["requests_total"] if labels["outcome"] == "answered") == requests
    assert sum(value for _, value in found["latency_ms_count"]) == requests
    assert sum(value for labels, value in found["path_share"]) == pytest.approx(1.0)
    assert [labels["service"] for labels, _ in found["load_level"]] == [LOCAL]
    assert [(labels["provider"], value) for labels, value in found["breaker"]] == [("beta", 0.0)]
    utilisation = {labels["provider"]: value for labels, value in found["utilisation"]}
    assert set(utilisation) == {"alpha", "beta"}
    assert all(0 <= value <= 1.1 for value in utilisation.values())


def test_a_request_gets_the_accuracy_it_asks_for_or_is_told_the_best_there_is(client: Client, images: Images) -> None:
    accuracies = {path["id"]: path["accuracy"] for path in client.metadata(LOCAL)["parameters"]["paths"]}
    best = max(accuracies.values())
    answer = client.predict(LOCAL, images, min_accuracy=best)
    assert accuracies[answer.path] == best
    with pytest.raises(RequestError, match="no path has min_accuracy 1; the most accurate has") as caught:
        client.predict(LOCAL, images, min_accuracy=1.0)
    assert caught.value.status == 422


def test_a_deadline_that_cannot_be_met_is_refused_at_once(client: Client, images: Images) -> None:
    assert client.predict(LOCAL, images, deadline_ms=60_000).path == ORIGINAL
    begin = time.monotonic()
    with pytest.raises(RequestError, match=r"an answer would take \d+ ms, which exceeds 0 .deadline_ms") as caught:
        client.predict(LOCAL, images, deadline_ms=0.1)
    assert caught.value.status == 503
    assert time.monotonic() - begin < 5
