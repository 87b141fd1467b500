"""A path whose blocks answer other than its plan says is quarantined, told of, and comes back when it answers rightly."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray import serve
from serving import BATCH, FIXED, LOCAL, VECTORS, Images, Load, Run, eventually, exported, running_serve, with_canaries, write_plan

from code_ray.breaker import Breaker
from code_ray.canaries import Canaries
from code_ray.client import Client
from code_ray.data import DataSet
from code_ray.errors import RequestError
from code_ray.policy import ORIGINAL
from deployments import build_app
from deployments.canary_watch import EVERY_S, CanaryWatch
from deployments.config import AppOptions, RouterOptions
from deployments.metrics import RouterMetrics
from deployments.network import Network
from deployments.plan_in_force import PlanInForce
from deployments.routes import LegReport, ProviderReport, Refusal, Route, make_routes
from deployments.worker import Array


@pytest.fixture(scope="module")
def url(served_run: Run, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The plan says of the cross path what it does not answer."""
    root: Path = tmp_path_factory.mktemp("canaries") / "run"
    shutil.copytree(served_run.root, root)
    copy = Run(root, served_run.plan, served_run.services, served_run.paths, served_run.links)
    write_plan(root, with_canaries(copy, served_run.plan, digits.validation.images[:8], wrong="cross"))
    router = RouterOptions(steering="plan", path_deadline_s=30, request_deadline_s=60)
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=root, providers={"alpha": FIXED, "beta": FIXED}, router=router)))
        yield base


def test_a_path_that_answers_its_canaries_wrongly_is_quarantined_and_the_others_serve(url: str, served_run: Run, digits: DataSet) -> None:
    cross = served_run.id_of("cross")
    with Client(url, timeout_s=120) as client:
        eventually(lambda: client.metadata(LOCAL)["parameters"]["quarantined"] != {}, "nothing is quarantined")
        (told,) = client.metadata(LOCAL)["parameters"]["quarantined"].items()
        assert told[0] == cross
        assert "answers its canaries wrongly (relative difference " in told[1]
        eventually(lambda: {p["id"]: p["share"] for p in client.metadata(LOCAL)["parameters"]["paths"]}[cross] == 0, "it has a share")
        with pytest.raises(RequestError, match="is not one that may be used"):
            client.predict(LOCAL, digits.test.images[:BATCH], path=cross)
        assert client.predict(LOCAL, digits.test.images[:BATCH], path=served_run.id_of("raw cross")).path == served_run.id_of("raw cross")
        with Load(url, LOCAL, digits.test.images[:BATCH]) as load:
            eventually(lambda: len(load.answers) > 60, "nothing is answered")
        assert load.failures == []
        assert cross not in {path for _, _, path in load.answers}


def test_prometheus_hears_which_paths_are_wrong(url: str, served_run: Run) -> None:
    eventually(lambda: "wrong_canaries" in exported(), "nothing is exported")
    found = {labels["path"]: value for labels, value in exported()["wrong_canaries"]}
    assert found == {served_run.id_of(name): float(name == "cross") for name in VECTORS}


class Answers:
    """A plan in force over calls in this process: each path answers as it should, but for those in ``wrong`` and ``refusing``."""

    def __init__(self, run: Run, images: Images) -> None:
        self.canaries = Canaries(images, {run.id_of(name): run.logits(name, images) for name in VECTORS})
        self.wrong: set[str] = set()
        self.refusing: set[str] = set()
        self.asked: list[str] = []
        routes = make_routes(run.plan, {LOCAL: 6, "host": 6})
        keys = {hop.key: hop.provider for by_id in routes.values() for route in by_id.values() for hop in route.hops}
        legs = {name: {key: LegReport(1e-3, BATCH) for key, at in keys.items() if at == name} for name in ("alpha", "beta")}
        self.changes = 0
        self.plan = PlanInForce(
            run.plan,
            {LOCAL: 6, "host": 6},
            {LOCAL: 10, "host": 10},
            RouterOptions(),
            {"beta": Breaker()},
            self._call,
            RouterMetrics(),
            lambda: None,
        )
        self.plan.hear({name: ProviderReport(name, "float32", found) for name, found in legs.items()}, Network())
        self.plan.solve(None)
        self.watch = CanaryWatch(5.0, RouterMetrics(), self._changed)

    def _changed(self) -> None:
        self.changes += 1

    async def _call(self, service: str, route: Route, images: Array) -> Array | Refusal:
        assert service == LOCAL
        self.asked.append(route.id)
        if route.id in self.refusing:
            return Refusal("busy", 1.0)
        return -self.canaries.logits[route.id] if route.id in self.wrong else self.canaries.logits[route.id]

    def look(self) -> None:
        asyncio.run(self.watch.look(self.plan, self.canaries))
        self.plan.solve(None)


@pytest.fixture
def answers(served_run: Run, digits: DataSet) -> Answers:
    return Answers(served_run, digits.validation.images[:8])


def test_right_answers_quarantine_nothing(answers: Answers, served_run: Run) -> None:
    answers.look()
    assert sorted(answers.asked) == sorted(served_run.id_of(name) for name in VECTORS)
    assert (answers.plan.quarantined, answers.changes) == ({}, 0)


def test_a_path_leaves_quarantine_when_it_answers_rightly(answers: Answers, served_run: Run) -> None:
    cross = served_run.id_of("cross")
    answers.wrong = {cross}
    answers.look()
    answers.look()
    assert list(answers.plan.quarantined) == [cross]
    assert cross not in answers.plan.rates[LOCAL]
    answers.wrong = set()
    answers.look()
    assert answers.plan.quarantined == {}
    assert cross in answers.plan.rates[LOCAL]
    assert answers.changes == 2


def test_one_that_cannot_be_asked_stays_as_it_was(answers: Answers, served_run: Run) -> None:
    cross, skip = served_run.id_of("cross"), served_run.id_of("skip")
    answers.wrong = {cross}
    answers.look()
    answers.refusing, answers.wrong = {cross, skip}, {skip}
    answers.look()
    assert list(answers.plan.quarantined) == [cross]


def test_the_original_is_never_quarantined(answers: Answers) -> None:
    answers.wrong = {ORIGINAL}
    answers.look()
    assert answers.plan.quarantined == {}
    assert ORIGINAL in answers.plan.rates[LOCAL]


def test_canaries_are_sent_at_once_and_then_every_half_minute(answers: Answers) -> None:
    async def sent(moment: float) -> int:
        before = len(answers.asked)
        answers.watch.consider(answers.plan, answers.canaries, moment)
        await asyncio.sleep(0.05)
        return len(answers.asked) - before

    async def all_of_them() -> list[int]:
        return [await sent(moment) for moment in (100.0, 101.0, 100 + EVERY_S, 101 + EVERY_S)]

    assert np.array_equal(asyncio.run(all_of_them()), [len(VECTORS), 0, len(VECTORS), 0])
