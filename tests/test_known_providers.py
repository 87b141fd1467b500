"""What a router knows of its providers, and what becomes of requests that wait for one that goes away."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_network import REPORTS

from deployments.known_providers import KnownProviders


class Answering:
    """What stands in for a provider: it answers as long as it is ``up``, and then not at all, as on a node that is lost."""

    def __init__(self, name: str) -> None:
        self.up = True
        self._name = name
        self.describe = SimpleNamespace(remote=self._describe)

    async def _describe(self, plan: str) -> Any:
        if not self.up:
            await asyncio.sleep(3600)
        return REPORTS[self._name]


async def seconds_until_it_ends(providers: KnownProviders, names: set[str], answering: Answering) -> float:
    """How long a request that needs providers ``names`` waits at most 5 s for an answer that never comes, while one goes away."""
    await providers.ask(0.1, {}, "")
    began = time.monotonic()

    async def wait() -> None:
        async with providers.wait_for(names, 5):
            await asyncio.sleep(3600)

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    answering.up = False
    for _ in range(3):
        await providers.ask(0.1, {}, "")
    with pytest.raises(TimeoutError):
        await waiting
    return time.monotonic() - began


@pytest.mark.parametrize(("names", "least", "most"), [({"home", "away"}, 0.1, 2.0), ({"home"}, 4.9, 10.0)])
def test_who_waits_for_a_provider_that_goes_away_waits_no_longer_and_nobody_else_is_disturbed(
    names: set[str], least: float, most: float
) -> None:
    handles = {"home": Answering("home"), "away": Answering("away")}
    providers = KnownProviders(handles, cast(Any, handles))
    assert least < asyncio.run(seconds_until_it_ends(providers, names, handles["away"])) < most
    assert (providers.is_there("home"), providers.is_there("away")) == (True, False)


def test_a_provider_that_comes_back_is_waited_for_again() -> None:
    handles = {"away": Answering("away")}
    providers = KnownProviders(handles, cast(Any, handles))

    async def run() -> str:
        for up in (True, False, False, True):
            handles["away"].up = up
            await providers.ask(0.1, {}, "")
        async with providers.wait_for({"away"}, 5):
            await asyncio.sleep(0.1)
            return "answered"

    assert asyncio.run(run()) == "answered"
    assert providers.is_there("away")
