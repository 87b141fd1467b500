"""The host comes first: what it lends stays within kappa, what goes beyond is served by the local service (DESIGN 3.5)."""

import time
from collections import Counter
from collections.abc import Iterator

import pytest
from ray import serve
from serving import BATCH, FIXED, HOST, LOCAL, Load, Run, handle_of, make_run, make_service, running_serve

from code_ray.data import DataSet
from code_ray.policy import ORIGINAL
from deployments import build_app
from deployments.config import AppOptions, RouterOptions
from deployments.routes import ProviderReport

KAPPA, BURST_S = 0.05, 0.1
SECONDS = 5.0


@pytest.fixture(scope="module")
def run(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A host whose blocks take a few milliseconds a batch, of which it lends little."""
    services = {LOCAL: make_service(LOCAL, digits, 0), HOST: make_service(HOST, digits, 1, (32, 96, 128, 128, 64))}
    return make_run(tmp_path_factory.mktemp("small_kappa"), services, digits, kappa=KAPPA)


@pytest.fixture(scope="module")
def url(run: Run) -> Iterator[str]:
    options = {"alpha": FIXED, "beta": FIXED.model_copy(update={"burst_s": BURST_S})}
    limits = RouterOptions(path_deadline_s=30, request_deadline_s=60)
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=run.root, providers=options, router=limits)))
        yield base


def guest_seconds(run: Run) -> float:
    """Seconds an image of the cross path's leg takes on the host, as the host measures it."""
    report: ProviderReport = handle_of("provider-beta").describe.remote().result(timeout_s=30)
    return report.legs[run.planned("cross").leg_key(1)].seconds


def test_guests_get_kappa_of_the_host_and_no_request_fails(url: str, run: Run, digits: DataSet) -> None:
    cross = run.id_of("cross")
    begin = time.monotonic()
    with Load(url, LOCAL, digits.test.images[:BATCH], path=cross) as load:
        time.sleep(SECONDS)
    lasted = time.monotonic() - begin
    assert load.failures == []
    paths = Counter(path for _, _, path in load.answers)
    assert set(paths) == {cross, ORIGINAL}
    # The burst and a batch for each client may run ahead; the rest is what times vary by on a busy machine.
    allowed = KAPPA * lasted + BURST_S + load.clients * BATCH * guest_seconds(run)
    assert paths[cross] * BATCH * guest_seconds(run) <= 1.5 * allowed
    assert paths[ORIGINAL] > paths[cross]


def test_the_hosts_own_service_is_answered_while_guests_ask_for_more_than_they_get(url: str, run: Run, digits: DataSet) -> None:
    images = digits.test.images[:BATCH]
    with (
        Load(url, LOCAL, images, path=run.id_of("cross")) as guests,
        Load(url, HOST, images, clients=2) as own,
    ):
        time.sleep(3.0)
    assert own.failures == guests.failures == []
    assert len(own.answers) > 5
    assert {path for _, _, path in guests.answers} >= {ORIGINAL}
