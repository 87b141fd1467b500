"""A path through two hosts, over Ray Serve and HTTP: the numbers of one process, and the original where one of the hosts hangs."""

import os
import signal
from collections.abc import Iterator

import pytest
from ray import serve
from serving import (
    BATCH,
    FIXED,
    HOST,
    LOCAL,
    Run,
    eventually,
    handle_of,
    make_run,
    make_service,
    relative_difference,
    replica_id,
    running_serve,
)

from code_ray.client import Client
from code_ray.data import DataSet
from code_ray.policy import ORIGINAL
from code_ray.runner import walk
from deployments import build_app
from deployments.config import AppOptions, RouterOptions
from deployments.routes import ProviderReport

SECOND, KAPPA = "second", 0.25
PLACEMENT = {LOCAL: "alpha", HOST: "beta", SECOND: "gamma"}
VECTORS: dict[str, tuple[int, ...]] = {
    ORIGINAL: (),
    "through one": (1, 2, 4, 5),
    "through both": (1, 2, 3, 2, 4, 5),
    "raw through both": (0, 1, 2, 2, 3, 5),
    "to logits": (1, 2, 3, 2, 4),
}
BOTH = [name for name in VECTORS if len(VECTORS[name]) > 4]
OPTIONS = FIXED.model_copy(update={"burst_s": 1000.0})
LIMITS = RouterOptions(path_deadline_s=5, request_deadline_s=120, steering="plan")


@pytest.fixture(scope="module")
def run(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    services = {name: make_service(name, digits, seed) for seed, name in enumerate(PLACEMENT)}
    return make_run(tmp_path_factory.mktemp("two_hosts"), services, digits, KAPPA, vectors=VECTORS, placement=PLACEMENT)


@pytest.fixture(scope="module")
def client(run: Run) -> Iterator[Client]:
    with running_serve() as url, Client(url, timeout_s=120, retries=0) as made:
        serve.run(build_app(AppOptions(run_dir=run.root, providers=dict.fromkeys(PLACEMENT.values(), OPTIONS), router=LIMITS)))
        yield made


@pytest.mark.parametrize("name", BOTH)
def test_a_path_through_two_hosts_gives_the_logits_of_one_process(name: str, client: Client, run: Run, digits: DataSet) -> None:
    assert [leg.provider for leg in walk(run.paths[name], PLACEMENT)][-3:-1] in (["beta", "gamma"], ["alpha", "beta"])
    for images in (digits.test.images[:BATCH], digits.test.images[: 2 * BATCH + 5]):
        answer = client.predict(LOCAL, images, path=run.id_of(name))
        assert answer.path == run.id_of(name)
        assert relative_difference(answer.logits, run.logits(name, images)) <= 1e-5


def test_the_rates_of_a_plan_over_two_hosts_take_no_more_of_either_than_its_kappa(client: Client, run: Run) -> None:
    shares = {"alpha": 1.0, "beta": KAPPA, "gamma": KAPPA}

    def used() -> dict[str, float]:
        """Of each provider's time for this service, the part that the rates take."""
        rates = {p["id"]: p["images_per_second"] for p in client.metadata(LOCAL)["parameters"]["paths"]}
        assert set(rates) == {run.id_of(name) for name in VECTORS}
        seconds = dict.fromkeys(shares, 0.0)
        for provider in shares:
            report: ProviderReport = handle_of(f"provider-{provider}").describe.remote().result(timeout_s=30)
            for name in VECTORS:
                keys = [run.planned(name).leg_key(i) for i, leg in enumerate(walk(run.paths[name], PLACEMENT)) if leg.provider == provider]
                seconds[provider] += rates[run.id_of(name)] * sum(report.legs[key].seconds for key in keys)
        return {provider: seconds[provider] / share for provider, share in shares.items()}

    # Requests change the measured times, and the rates follow within seconds. Then nothing is sent: one provider is full, none is over.
    eventually(lambda: max(used().values()) == pytest.approx(1.0, rel=1e-3), "the rates did not come to what the providers can do", 20)


def test_a_second_host_that_hangs_costs_no_request_and_the_first_goes_on(client: Client, run: Run, digits: DataSet) -> None:
    images, both, one = digits.test.images[:BATCH], run.id_of("through both"), run.id_of("through one")
    assert client.predict(LOCAL, images, path=both).path == both
    second = replica_id("provider-gamma")
    os.kill(second, signal.SIGSTOP)
    try:
        assert client.predict(LOCAL, images, path=both).path == ORIGINAL
        # The failure is held against both, as nobody can tell which it was, until one of them answers.
        eventually(lambda: client.predict(LOCAL, images, path=one).path == one, "the path through the first host did not come back")
        assert client.metadata(LOCAL)["parameters"]["breakers"]["beta"] == "closed"
    finally:
        os.kill(second, signal.SIGCONT)
    eventually(lambda: client.predict(LOCAL, images, path=both).path == both, "the path through both hosts did not come back")
    assert client.metadata(LOCAL)["parameters"]["breakers"] == {"beta": "closed", "gamma": "closed"}
