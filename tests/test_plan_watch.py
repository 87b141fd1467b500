"""A plan that takes another's place in a run directory: seen once, checked, and refused where it cannot be served."""

import os
from pathlib import Path

import numpy as np
import pytest

from code_ray.artifact import RunDirectory
from code_ray.canaries import Canaries, save_canaries
from code_ray.errors import CodeRayError, IntegrityError, PlanError
from code_ray.plan import Plan, PlannedPath
from deployments.plan_watch import LOOK_S, TRY_AGAIN_S, PlanWatch, check_same_services, read_offer

CANARIES = Canaries(np.zeros((8, 28, 28), np.uint8), {"original": np.zeros((8, 10), np.float32)})


def make_plan(loss_points: float = 1.0, **changes: object) -> Plan:
    paths = (PlannedPath(path="tiny[0:6]", id="original", accuracy=0.9, link_hashes={}),)
    services, placement = {"tiny": "1" * 64, "host": "2" * 64}, {"tiny": "alpha", "host": "beta"}
    plan = Plan(
        local="tiny", num_blocks=6, services=services, placement=placement, kappa={"host": 0.5}, loss_points=loss_points, paths=paths
    )
    return plan.model_copy(update=changes)


def write(root: Path, plan: Plan) -> RunDirectory:
    root.mkdir(exist_ok=True)
    run = RunDirectory(root)
    staging = root / "staging"
    staging.write_text(plan.model_dump_json())
    os.replace(staging, run.plan_file)
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return write(tmp_path / "run", make_plan())


@pytest.fixture
def watch(run: RunDirectory) -> PlanWatch:
    made = PlanWatch("alpha", run, make_plan())
    assert made.has_changed(0.0)  # it has not looked before
    assert made.read() is None
    return made


def test_nothing_changes_while_the_file_stays(watch: PlanWatch) -> None:
    assert not any(watch.has_changed(moment) for moment in np.arange(0.0, 10.0, 0.5))


def test_another_plan_is_seen_once_and_offered(watch: PlanWatch, run: RunDirectory) -> None:
    write(run.root, make_plan(2.0))
    assert not watch.has_changed(LOOK_S / 2)  # it looks once a while
    assert watch.has_changed(LOOK_S)
    assert not watch.has_changed(2 * LOOK_S)
    found = watch.read()
    assert found is not None
    where, offer = found
    assert (where.root, offer.plan, offer.canaries) == (run.root.resolve(), make_plan(2.0), None)
    watch.accept(offer.plan)
    assert watch.read() is None


def test_a_link_that_is_turned_is_another_plan_and_its_files_lie_where_it_pointed(watch: PlanWatch, tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", make_plan()), write(tmp_path / "two", make_plan(2.0))
    link = tmp_path / "current"
    link.symlink_to(one.root)
    watch = PlanWatch("alpha", RunDirectory(link), make_plan())
    assert watch.has_changed(0.0)
    link.unlink()
    assert not watch.has_changed(1.0)  # no plan for a moment is none to follow
    link.symlink_to(two.root)
    assert watch.has_changed(2.0)
    found = watch.read()
    assert found is not None
    assert found[0].root == two.root.resolve()


def test_the_local_services_provider_brings_the_canaries_and_a_host_needs_none(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    plan = make_plan(canaries=save_canaries(CANARIES, run.canaries_file))
    found = read_offer(run, plan, "alpha").canaries
    assert found is not None
    assert np.array_equal(found.images, CANARIES.images)
    run.canaries_file.write_bytes(b"other")
    assert read_offer(run, plan, "beta").canaries is None
    with pytest.raises(IntegrityError, match="holds other canaries than the plan names"):
        read_offer(run, plan, "alpha")
    run.canaries_file.unlink()
    with pytest.raises(PlanError, match="cannot be read"):
        read_offer(run, plan, "alpha")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"services": {"tiny": "3" * 64, "host": "2" * 64}}, "version of it"),
        ({"placement": {"tiny": "alpha", "host": "gamma"}}, "placement"),
        ({"local": "host"}, "local"),
        ({"num_blocks": 5}, "num_blocks"),
    ],
)
def test_a_plan_for_other_services_needs_a_new_deployment(changes: dict[str, object], what: str) -> None:
    check_same_services(make_plan(), make_plan(2.0, kappa={"host": 0.9}))
    with pytest.raises(PlanError, match=f"its {what} is .* needs a new deployment"):
        check_same_services(make_plan(), make_plan(**changes))  # type: ignore[arg-type]


def refuse(watch: PlanWatch, now: float) -> None:
    with pytest.raises(CodeRayError) as caught:
        watch.read()
    watch.refuse(caught.value, now)


def test_a_malformed_plan_is_refused_with_its_reason_and_looked_at_again_in_a_while(watch: PlanWatch, run: RunDirectory) -> None:
    run.plan_file.write_text("{")
    assert watch.has_changed(LOOK_S)
    refuse(watch, LOOK_S)
    assert watch.refused is not None
    assert "is malformed" in watch.refused
    assert not watch.has_changed(LOOK_S + TRY_AGAIN_S / 2)
    assert watch.has_changed(LOOK_S + TRY_AGAIN_S)
    refuse(watch, 20.0)
    write(run.root, make_plan())
    assert watch.has_changed(40.0)
    assert watch.read() is None  # the old one lies there again
    assert watch.refused is None
