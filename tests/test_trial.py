"""A plan with another version of a host's service, tried on requests of clients before a router follows it."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from ray.serve.exceptions import RayServeException

from code_ray.drift import LEAST
from code_ray.policy import ORIGINAL
from deployments.routes import Hop, Refusal, Route
from deployments.trial import Trial, changed_routes

IMAGES = np.arange(20, dtype=np.uint8).reshape(20, 1)


def route(name: str, key: str = "a", agreement: float | None = 0.9) -> Route:
    return Route(name, "cross", 0.9, (Hop("beta", key),), name, agreement)


class Coming:
    """What stands in for a plan that is not in force: each route chooses the original's class on a share of the images."""

    def __init__(self, routes: list[Route], same: dict[str, float], content: str = "new") -> None:
        self.plan: Any = SimpleNamespace(id="plan", services={"tiny": "1", "host": content}, tasked={"tiny": None})
        self.routes = {"tiny": {ORIGINAL: route(ORIGINAL), **{each.id: each for each in routes}}}
        self.asked: list[str] = []
        self.same = same
        self.fails: Exception | Refusal | None = None

    async def join(self, service: str, asked: Route, images: Any) -> Any:
        self.asked.append(asked.id)
        if isinstance(self.fails, Exception):
            raise self.fails
        if self.fails is not None:
            return self.fails
        classes = np.zeros(len(images), int)
        classes[: round(len(images) * (1 - self.same.get(asked.id, 1.0)))] = 1
        return np.eye(2, dtype=np.float32)[classes]


def trial(coming: Coming, end: float = 60.0) -> Trial:
    routes = [each for each in coming.routes["tiny"].values() if each.id != ORIGINAL]
    return Trial(cast(Any, coming), {"tiny": routes}, end, 5.0)


async def consider(found: Trial, times: int) -> None:
    for _ in range(times):
        found.consider("tiny", IMAGES)
        for _ in range(5):
            await asyncio.sleep(0)


def test_it_ends_when_each_path_has_answered_enough_of_what_clients_ask() -> None:
    coming = Coming([route("one"), route("two")], {"one": 0.9, "two": 0.95})
    found = trial(coming)
    needed = 2 * LEAST // len(IMAGES)
    asyncio.run(consider(found, needed - 1))
    assert not found.has_ended(0.0)
    asyncio.run(consider(found, 1))
    assert found.has_ended(0.0)
    assert found.disagrees is None
    assert [coming.asked.count(name) for name in ("one", "two", ORIGINAL)] == [needed // 2, needed // 2, needed]
    asyncio.run(consider(found, 3))
    assert len(coming.asked) == 2 * needed


def test_a_path_that_disagrees_more_than_it_used_to_ends_it_and_is_named() -> None:
    coming = Coming([route("good"), route("bad")], {"good": 0.9, "bad": 0.5})
    found = trial(coming)
    asyncio.run(consider(found, 40))
    assert found.has_ended(0.0)
    assert found.disagrees is not None
    assert found.disagrees.startswith("path bad of tiny does not answer as the original does as often as before, on 100 images")


def test_without_traffic_it_ends_by_its_time() -> None:
    found = trial(Coming([route("one")], {}), end=10.0)
    assert not found.has_ended(9.9)
    assert found.has_ended(10.0)
    assert found.disagrees is None


@pytest.mark.parametrize("failure", [Refusal("busy", 1.0), RayServeException("gone")], ids=["refused", "lost"])
def test_a_server_that_refuses_or_is_lost_says_nothing_of_the_plan(failure: Exception | Refusal) -> None:
    coming = Coming([route("one")], {"one": 0.0})
    coming.fails = failure
    found = trial(coming)
    asyncio.run(consider(found, 20))
    assert coming.asked
    assert not found.has_ended(0.0)
    assert found.disagrees is None


def test_requests_for_other_services_are_not_looked_at() -> None:
    coming = Coming([route("one")], {})
    asyncio.run(asyncio.wait_for(_other(trial(coming)), 5))
    assert coming.asked == []


async def _other(found: Trial) -> None:
    found.consider("host", IMAGES)
    await asyncio.sleep(0)


def test_what_is_tried_are_paths_that_changed_with_a_service_and_whose_agreement_is_known() -> None:
    now = Coming([route("kept"), route("moved"), route("unknown", agreement=None)], {}, content="old")
    routes = [route("kept"), route("moved", key="b"), route("unknown", "b", None), route("added")]
    for content, expected in (("old", {}), ("new", {"tiny": ["moved", "added"]})):
        found = changed_routes(cast(Any, now), cast(Any, Coming(routes, {}, content)))
        assert {service: [each.id for each in some] for service, some in found.items()} == expected
    alone = [replace(route("kept"), agreement=None)]
    assert changed_routes(cast(Any, now), cast(Any, Coming(alone, {}))) == {}
