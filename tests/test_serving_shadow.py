"""Offloaded answers compared with the original's behind the client's back; a path that no longer agrees is withdrawn, live."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import serve
from serving import BATCH, FIXED, LOCAL, Load, Run, eventually, exported, running_serve

from code_ray.artifact import write_text
from code_ray.client import Client
from code_ray.data import DataSet
from code_ray.errors import RequestError
from code_ray.plan import Plan
from code_ray.policy import ORIGINAL
from deployments import build_app
from deployments.config import AppOptions, RouterOptions


def with_agreement(plan: Plan, shares: dict[str, float]) -> str:
    paths = [planned.model_copy(update={"agreement": shares.get(planned.id)}) for planned in plan.paths]
    return plan.model_copy(update={"paths": tuple(paths)}).model_dump_json()


@pytest.fixture(scope="module")
def url(served_run: Run, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The skip agrees with the original less than its plan says; the exit, as it says."""
    root: Path = tmp_path_factory.mktemp("shadow")
    (root / "stores").symlink_to(served_run.root / "stores")
    original = served_run.logits(ORIGINAL, digits.test.images).argmax(1)
    agreements = {name: float((served_run.logits(name, digits.test.images).argmax(1) == original).mean()) for name in ("skip", "exit")}
    assert all(share < 0.9 for share in agreements.values())
    told = {served_run.id_of("skip"): 0.999, served_run.id_of("exit"): agreements["exit"]}
    write_text(root / "plan.json", with_agreement(served_run.plan, told))
    router = RouterOptions(shadow_share=1.0, steering="plan", use=(served_run.id_of("skip"), served_run.id_of("exit")))
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=root, providers={"alpha": FIXED, "beta": FIXED}, router=router)))
        yield base


def test_a_path_that_agrees_less_than_its_plan_says_is_withdrawn_and_the_others_stay(url: str, served_run: Run, digits: DataSet) -> None:
    skip, exits = served_run.id_of("skip"), served_run.id_of("exit")
    with Client(url, timeout_s=120) as client:
        assert client.metadata(LOCAL)["parameters"]["withdrawn"] == []
        for name in (skip, exits):
            assert client.predict(LOCAL, digits.test.images[:BATCH], path=name).path == name

        def is_withdrawn() -> bool:
            for first in range(0, 320, 32):
                for name in (skip, exits):
                    if name not in client.metadata(LOCAL)["parameters"]["withdrawn"]:
                        client.predict(LOCAL, digits.test.images[first : first + 32], path=name)
            return bool(client.metadata(LOCAL)["parameters"]["withdrawn"] == [skip])

        eventually(is_withdrawn, "the skip is not withdrawn")
        with Load(url, LOCAL, digits.test.images[:BATCH]) as load:
            eventually(lambda: len(load.answers) > 60, "nothing is answered")
        assert load.failures == []
        assert skip not in {path for _, _, path in load.answers[20:]}
        with pytest.raises(RequestError, match="is not one that may be used"):
            client.predict(LOCAL, digits.test.images[:BATCH], path=skip)
        assert client.metadata(LOCAL)["parameters"]["withdrawn"] == [skip]


def test_prometheus_hears_how_often_they_disagree(url: str, served_run: Run) -> None:
    eventually(lambda: "disagreements_total" in exported(), "no disagreement is exported")
    found = exported()
    compared, disagreed = (
        {labels["path"]: value for labels, value in found[name]} for name in ("shadowed_images_total", "disagreements_total")
    )
    assert served_run.id_of("skip") in disagreed
    assert all(0 < disagreed[path] <= compared[path] for path in disagreed)
