"""A search over text, as users run it: the pair that ships, a recipe that takes seconds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_search import complaints, evaluations, result_of, search, write_config

from code_ray.blocks import ExecutionMode
from code_ray.data import load_data
from code_ray.links import Link
from code_ray.path import path_from_vector
from code_ray.plan import load_leg_links, read_plan
from code_ray.profiling import Profile
from code_ray.runner import PathRunner, walk
from code_ray.zoo import get_service
from search.config import HostConfig, SearchConfig
from search.problem import load_inputs

PAIR: dict[str, Any] = {
    "local": "sentence-cnn",
    "data": "vader-sentences",
    "hosts": {"minilm": {"kappa": 1.0}},
    "vectors": [[0, 1, 2, 5], [1, 2, 2, 5], [1, 2, 3], [2]],
    "loss_points": 10.0,
    "screen": 3,
    "validation_samples": 300,
    "test_samples": 300,
    "stopping": {"max_trainings": 2, "c_stop": 2, "epsilon": 0.02},
    "confirm": 0,
    "distilled_epochs": 1,
    "recipe": {"samples": 320, "fit_samples": 200, "screen_samples": 200, "steps": 20, "joint_steps": 2},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    done = search(write_config(folder, PAIR), folder / "run")
    assert done.returncode == 0, done.stderr
    assert not complaints(done.stderr)
    return folder / "run"


def test_a_search_over_text_ends_with_paths_rivals_and_a_control(out: Path) -> None:
    records = evaluations(out)
    assert {record["role"] for record in records} >= {"search", "random_host"}
    assert any("minilm" in record["path"] for record in records if record["role"] == "search")
    result = result_of(out)
    assert result["arms"]["distilled"] is not None
    assert result["controls"]["random_host"]["accuracy_validation"] <= 1


def test_its_plan_answers_sentences(out: Path) -> None:
    plan = read_plan(out / "plan.json")
    services = {name: get_service(name) for name in plan.services}
    tokens = services[plan.local].preprocess(load_data("vader-sentences").validation.images[:64])
    labels = load_data("vader-sentences").validation.labels[:64]
    for planned in plan.paths:
        path = plan.inference_path(planned).plain
        links: dict[str, Link] = {}
        for leg in walk(path, plan.placement):
            links |= load_leg_links(leg, path, planned, services, out / "stores" / leg.provider)
        logits = PathRunner(walk(path, plan.placement), services, links, lambda _: _mode(out, plan.local))(tokens)
        assert np.isfinite(logits.numpy()).all()
        assert (logits.argmax(1).numpy() == labels).mean() > 0.5


def _mode(out: Path, service: str) -> ExecutionMode:
    return Profile.model_validate_json((out / "profile.json").read_text()).executions[service].mode


def test_a_vector_whose_link_leads_nowhere_is_refused_before_work_starts(tmp_path: Path) -> None:
    done = search(write_config(tmp_path, PAIR, vectors=[[1, 1, 2, 5]]), tmp_path / "run")
    assert done.returncode == 2
    assert "vector [1, 1, 2, 5] in 'vectors' asks for a link that leads nowhere" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_host_for_images_is_refused(tmp_path: Path) -> None:
    done = search(write_config(tmp_path, PAIR, hosts={"alexnet-digits": {}}, vectors=None), tmp_path / "run")
    assert done.returncode == 2
    assert "'alexnet-digits' is for images, unlike 'sentence-cnn': no link leads there" in done.stderr


def test_the_shipped_configuration_has_paths_through_its_host() -> None:
    inputs = load_inputs(SearchConfig(local="sentence-cnn", data="vader-sentences", hosts={"minilm": HostConfig()}))
    assert path_from_vector((0, 1, 3, 5), "sentence-cnn", 6, "minilm", 8) in inputs.space
    assert path_from_vector((1, 1, 3, 5), "sentence-cnn", 6, "minilm", 8) not in inputs.space
