"""Longer trainings: which path is next, and what a search that made some says of them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from test_search import Finished, complaints, evaluations, search, write_config
from test_search_rungs import RUNGED
from trained import PATHS, SHORT, TrainedPath, tiny_trainer, train_path

from code_ray.artifact import RunDirectory
from code_ray.blocks import ExecutionMode
from code_ray.canaries import TOLERANCE, load_canaries
from code_ray.controls import RANDOM_SUFFIX
from code_ray.data import DataSet, load_data
from code_ray.distillation import CHANNELS
from code_ray.gating import confidence
from code_ray.links import Link
from code_ray.objective import Known, PlanObjective
from code_ray.path import InferencePath, original_path, path_from_vector
from code_ray.plan import load_leg_links, read_plan
from code_ray.refinement import hoped_accuracy, next_to_refine
from code_ray.runner import PathRunner, walk
from code_ray.service import Service
from code_ray.space import Candidate
from code_ray.throughput import Limits, PathCost
from code_ray.training import LinkTraining
from code_ray.zoo import get_service
from search.campaign import FINISHED, PLANNED

ORIGINAL = Candidate(original_path("tiny", 6), PathCost({"a": 1.0}))
OBJECTIVE = PlanObjective(ORIGINAL, 0.93, Limits({"a": 1.0, "b": 1.0}, 0.5), "a")
FAST, SLOW = (path_from_vector(vector, "tiny", 6, "host", 6) for vector in ((1, 2, 4, 5), (2, 2, 4, 5)))
SKIP = path_from_vector((1, 4), "tiny", 6)
KNOWN: Known = {
    FAST: (PathCost({"a": 0.3, "b": 0.2}), 0.92),
    SLOW: (PathCost({"a": 0.6, "b": 0.2}), 0.915),
    SKIP: (PathCost({"a": 0.7}), 0.91),
}


def test_a_longer_training_is_hoped_to_lose_less_and_the_more_the_longer_it_is() -> None:
    assert 0.92 < hoped_accuracy(OBJECTIVE, 0.92, 2) < hoped_accuracy(OBJECTIVE, 0.92, 5) < 0.93


def refined_in_order(known: Known, epsilon: float = 0.0) -> list[InferencePath]:
    order: list[InferencePath] = []
    while (path := next_to_refine(known, order, OBJECTIVE, 3, epsilon)) is not None:
        order.append(path)
    return order


def test_the_path_that_carries_the_plan_comes_first_and_the_best_without_a_host_is_not_forgotten() -> None:
    order = refined_in_order(KNOWN)
    assert order[0] == FAST
    assert SKIP in order
    # It is slower and worse than another: no plan has a use for it, however long it is trained.
    assert SLOW not in order


@pytest.mark.parametrize(("known", "epsilon"), [(KNOWN, 100.0), ({}, 0.0), ({FAST: (PathCost({"a": 0.3, "b": 0.2}), 0.5)}, 0.05)])
def test_nothing_is_refined_where_no_plan_is_expected_to_gain_from_it(known: Known, epsilon: float) -> None:
    assert refined_in_order(known, epsilon) == []


def test_a_training_of_twice_the_length_is_that_of_a_recipe_with_twice_the_steps(
    tiny_services: dict[str, Service], digits: DataSet
) -> None:
    path = PATHS[0]
    longer = LinkTraining(tiny_trainer(tiny_services, digits), path, 0, times=2)
    longer.fit()
    longer.advance(longer.recipe.total_steps)
    assert longer.steps == 2 * SHORT.total_steps
    wanted: TrainedPath = train_path(tiny_trainer(tiny_services, digits, steps=2 * SHORT.steps, joint_steps=2 * SHORT.joint_steps), path, 0)
    for key, link in longer.links.items():
        for name, tensor in link.state_dict().items():
            assert tensor.equal(wanted.links[key].state_dict()[name]), (key, name)


REFINED: dict[str, Any] = RUNGED | {
    "rerun_shares": [0.02, 0.05],
    "rungs": [],
    "refine": {"paths": 3, "times": 2},
    "controls": True,
    "confirm": 1,
    "rivals": 1,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("refined")
    config, out = write_config(folder, REFINED), folder / "run"
    return Finished(config, out, search(config, out))


def test_paths_are_refined_after_the_search_and_their_controls_and_confirmation_are_as_long(finished: Finished) -> None:
    assert (finished.done.returncode, complaints(finished.done.stderr)) == (0, [])
    records = evaluations(finished.out)
    refined = [record for record in records if record["role"] == "refine"]
    assert 1 <= len(refined) <= 3
    assert {record["fidelity"] for record in refined} == {"refined"}
    assert finished.result["refined"] == sum(record["fidelity"] == "refined" for record in records) > len(refined)
    roles = [record["role"] for record in records]
    assert roles.index("refine") > max(i for i, role in enumerate(roles) if role in ("search", "rival"))
    # What a refined path is compared with, and what confirms it, is trained as long.
    paths = {record["path"] for record in refined}
    assert {r["fidelity"] for r in records if r["role"] == "confirm" and r["path"] in paths} <= {"refined"}
    (random,) = (record for record in records if record["role"] == "random_host")
    cross = random["path"].replace(RANDOM_SUFFIX, "")
    assert cross in {record["path"] for record in records if record["role"] == "search"}
    longest = "refined" if cross in paths else "trained"
    assert {r["fidelity"] for r in records if r["role"] in ("random_host", "links_only")} == {longest}


def test_the_plan_has_the_longer_links_and_the_report_their_accuracy(finished: Finished) -> None:
    records = evaluations(finished.out)
    for planned in read_plan(finished.out / "plan.json").paths:
        plain, _, rerun = planned.path.partition(" | rerun=")
        longest = [r for r in records if r["path"] == plain and r["fidelity"] == "refined"] or [
            r for r in records if r["path"] == plain and r["fidelity"] == "trained"
        ]
        if planned.id != "original":
            taken = next(r for r in longest if r["link_hashes"])
            assert planned.link_hashes == taken["link_hashes"]
            gain = next(gate["accuracy"] - taken["accuracy"] for gate in taken["gates"] if gate["rerun"] == float(rerun)) if rerun else 0.0
            assert planned.accuracy == pytest.approx(sum(r["accuracy"] for r in longest) / len(longest) + gain)
    # The shorter links stay where they were.
    files = list((finished.out / "stores").rglob("*.safetensors"))
    assert len(files) == len({file.name for file in files})
    assert f"{finished.result['refined']} of them longer" in (finished.out / "report.html").read_text()


def test_small_networks_were_distilled_once_and_gated_and_no_plan_holds_one(finished: Finished) -> None:
    records = [record for record in RunDirectory(finished.out).journal.records() if record["role"] == "distilled"]
    assert [record["channels"] for record in records] == list(CHANNELS)
    for record in records:
        assert 0.5 < record["accuracy"] <= 1
        # With more answers of the original among them they are more accurate, up to chance.
        assert record["gates"][-1]["accuracy"] >= record["accuracy"]
        assert 0 < record["seconds_an_image"] < 1
    assert {"distilled", "mixture_distilled", "replica_distilled"} <= set(finished.result["arms"])
    assert "distilled" not in (finished.out / "plan.json").read_text()


def test_the_canaries_are_what_the_plans_links_answer_and_agreement_is_counted(finished: Finished) -> None:
    plan = read_plan(finished.out / "plan.json")
    assert plan.canaries is not None
    canaries = load_canaries(finished.out / "canaries.safetensors", plan.canaries)
    services = {name: get_service(name) for name in plan.services}
    validation = load_data("digits").validation
    assert np.array_equal(canaries.images, validation.images[:8])
    found: dict[str, npt.NDArray[np.float32]] = {}
    for planned in plan.paths:
        path, links = plan.inference_path(planned).plain, dict[str, Link]()
        for leg in walk(path, plan.placement):
            links |= load_leg_links(leg, path, planned, services, finished.out / "stores" / leg.provider)
        run = PathRunner(walk(path, plan.placement), services, links, lambda _: ExecutionMode())
        logits = run(services[plan.local].preprocess(validation.images)).numpy()
        assert canaries.difference(planned.links_id, logits[:8]) < TOLERANCE
        unsure = confidence(logits) < (planned.threshold or 0.0)
        rerun = plan.inference_path(planned).rerun
        assert unsure.mean() == pytest.approx(rerun, abs=0.01)
        found[planned.id] = np.where(unsure[:, None], found["original"], logits) if rerun else logits
    for planned in plan.paths:
        same = (found[planned.id].argmax(1) == found["original"].argmax(1))[:1000].mean()
        assert planned.agreement == pytest.approx(same, abs=0.02)


def test_every_training_that_a_plan_may_take_was_measured_behind_gates(finished: Finished) -> None:
    records = evaluations(finished.out)
    original = next(r["accuracy"] for r in RunDirectory(finished.out).journal.records() if r["role"] == "original")
    for record in records:
        if record["fidelity"] in FINISHED and record["role"] in PLANNED:
            shares = [gate["rerun"] for gate in record["gates"]]
            assert shares == sorted(shares)
            assert set(shares) <= {round(share, 4) for share in shares if 0 < share < 0.5}
            # What is sent again costs no accuracy where the original knows better.
            assert record["gates"][-1]["accuracy"] >= record["accuracy"] - 0.01
            assert record["gates"][-1]["accuracy"] <= max(original, record["accuracy"]) + 0.05
        else:
            assert "gates" not in record
    for arm, plain in finished.result["without_gates"].items():
        assert plain["throughput_ratio"] <= finished.result["arms"][arm]["throughput_ratio"] + 1e-9


def test_gated_paths_are_in_the_plan_and_what_they_cost_is_in_its_ratio(finished: Finished) -> None:
    plan = read_plan(finished.out / "plan.json")
    gated = [planned for planned in plan.paths if planned.threshold is not None]
    assert gated
    for planned in gated:
        assert planned.id == f"{planned.links}-{plan.inference_path(planned).rerun:g}"
        assert str(plan.inference_path(planned)) == planned.path
    assert set(finished.result["deployed"]["paths"]) <= {planned.path for planned in plan.paths}
    assert "gated" in (finished.out / "report.html").read_text()
