"""A search whose space has more paths than it may look at, on real services and measured times."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from code_ray.artifact import RunDirectory
from code_ray.errors import ConfigError
from search.campaign import Campaign
from search.config import SearchConfig
from search.problem import Problem, load_inputs, prepare

LOCAL, HOST = "alexnet-digits", "alexnet-fashion"


def config(**settings: Any) -> SearchConfig:
    recipe = {"samples": 200, "fit_samples": 200, "screen_samples": 100, "steps": 4}
    return SearchConfig.model_validate({"local": LOCAL, "data": "digits", "hosts": {HOST: {}}, "recipe": recipe, **settings})


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return make(config(), tmp_path_factory.mktemp("runs") / "narrow")


@pytest.fixture(scope="module")
def wide(narrow: Problem) -> Problem:
    return make(config(max_candidates=100), narrow.run.root.with_name("wide"), narrow)


def make(settings: SearchConfig, out: Path, measured: Problem | None = None) -> Problem:
    run = RunDirectory.create(out, settings.model_dump(mode="json"))
    if measured is not None:
        shutil.copy(measured.run.profile_file, run.profile_file)
    return prepare(settings, load_inputs(settings), run, lambda _: None)


def test_a_space_that_fits_is_held_whole(narrow: Problem) -> None:
    assert narrow.wide is None
    assert len(narrow.candidates) == narrow.faster <= narrow.paths_enumerated


def test_a_wide_space_has_the_same_faster_paths_at_the_same_costs_but_holds_few(narrow: Problem, wide: Problem) -> None:
    assert wide.wide is not None
    assert (wide.faster, wide.paths_enumerated) == (narrow.faster, narrow.paths_enumerated)
    assert len(wide.candidates) <= 100 < wide.faster
    costs = {candidate.path: candidate.cost for candidate in narrow.candidates}
    assert all(candidate.cost == costs[candidate.path] for candidate in wide.candidates)


def test_a_campaign_on_a_wide_space_hands_out_paths_of_it(narrow: Problem, wide: Problem) -> None:
    jobs = Campaign(wide).ask()
    assert jobs
    assert {job.path for job in jobs} <= {candidate.path for candidate in narrow.candidates}


@pytest.mark.parametrize("sampler", ["random", "printed"])
def test_a_sampler_that_looks_at_every_path_refuses_a_wide_space(sampler: str) -> None:
    with pytest.raises(ConfigError, match="raise 'max_candidates'"):
        load_inputs(config(max_candidates=100, sampler=sampler))
