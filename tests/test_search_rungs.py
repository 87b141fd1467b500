"""Searches that stop trainings at rungs: what is kept of them, and that a search resumed anywhere goes on as the whole one did."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_search import PAIR, Finished, complaints, evaluations, measured_directory, result_of, search, write_config
from test_search_faults import kill, read_until, start

from code_ray.artifact import RunDirectory
from code_ray.journal import Journal
from code_ray.plan import read_plan
from search.campaign import FINISHED, Campaign, Job
from search.config import read_config
from search.problem import Problem, load_inputs, prepare
from search.searcher import CampaignSearcher

RUNGED: dict[str, Any] = PAIR | {
    "vectors": [[1, 2, 3, 5], [1, 2, 4, 5], [1, 3, 4, 5], [1, 1, 2, 5], [1, 5], [2, 5], [0, 1, 2, 5], [1, 1, 1, 4]],
    # With more loss allowed the fastest path alone would be the plan, and nothing could add to it.
    "loss_points": 0.5,
    "screen": 8,
    "rungs": [4, 9],
    "reduction": 4,
    "refine": {"paths": 1, "times": 2},
    # Gates would pay here with the least accurate path alone, and no training would fall back.
    "rerun_shares": [],
    # Nothing but its budget ends this search.
    "stopping": {"max_trainings": 5, "c_stop": 6, "epsilon": 0},
    "test_samples": 100,
    # One trial at a time: then each decision depends on nothing but what the journal held before it.
    "concurrency": 1,
    "recipe": {"samples": 300, "fit_samples": 200, "screen_samples": 200, "steps": 10, "joint_steps": 2},
}
"""Six crosses and two skips, all cheap to train."""

Record = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A search with rungs that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    config, out = write_config(folder, RUNGED), folder / "run"
    return Finished(config, out, search(config, out))


def of_fidelity(fidelity: str, out: Path) -> list[Record]:
    """The records of the search itself at a fidelity, without those of its closing."""
    return [record for record in evaluations(out) if record["role"] == "search" and record["fidelity"] == fidelity]


def test_a_training_that_falls_back_is_stopped_at_a_rung_and_the_search_goes_on(whole: Finished) -> None:
    assert (whole.done.returncode, complaints(whole.done.stderr)) == (0, [])
    fidelities = [record["fidelity"] for record in evaluations(whole.out)]
    assert set(fidelities) == {"fit", "stopped", "trained", "refined"}
    assert len(fidelities) - fidelities.index("stopped") > 2
    assert whole.done.stdout.count("stopped after") == fidelities.count("stopped")


def test_a_stopped_training_came_to_fewer_rungs_than_there_are_or_to_all_but_the_end(whole: Finished) -> None:
    for record in of_fidelity("stopped", whole.out):
        assert [rung["steps"] for rung in record["rungs"]] in ([4], [4, 9])
        assert record["accuracy"] == record["rungs"][-1]["accuracy"]
        assert record["link_hashes"] == {}


def test_a_whole_training_came_through_every_rung_but_those_after_the_search_know_none(whole: Finished) -> None:
    for record in of_fidelity("trained", whole.out):
        assert [(rung["steps"], rung["share"]) for rung in record["rungs"]] == [(4, 4 / 12), (9, 9 / 12)]
        assert record["link_hashes"]
    closing = [record for record in evaluations(whole.out) if record["role"] != "search"]
    assert "confirm" in {record["role"] for record in closing}
    assert all(record["rungs"] == [] for record in closing)


def test_every_path_is_scored_stopped_and_trained_once_at_most_and_in_this_order(whole: Finished) -> None:
    order = ["fit", "stopped", "trained"]
    courses: dict[str, list[int]] = {}
    for record in evaluations(whole.out):
        if record["role"] == "search":
            courses.setdefault(record["path"], []).append(order.index(record["fidelity"]))
    assert list(courses.values()) == [sorted(set(course)) for course in courses.values()]


def test_a_stopped_training_is_in_the_table_but_counts_neither_as_a_training_nor_for_the_plan(whole: Finished) -> None:
    records, result = evaluations(whole.out), whole.result
    table = pd.read_csv(whole.out / "evaluations.csv")
    assert list(table.path[table.fidelity == "stopped"]) == [record["path"] for record in of_fidelity("stopped", whole.out)]
    trained = [record for record in records if record["fidelity"] == "trained"]
    assert result["trainings"] == len(trained) + result["refined"] == len([record for record in records if record["fidelity"] in FINISHED])
    assert result["forecast_coverage"]["trainings"] == sum("expected_low" in record for record in trained)
    assert not any("expected_low" in record for record in records if record["fidelity"] != "trained")
    used = {planned.path.partition(" | rerun=")[0] for planned in read_plan(whole.out / "plan.json").paths if planned.id != "original"}
    assert used <= {record["path"] for record in records if record["fidelity"] in FINISHED}


@pytest.fixture(scope="module")
def problem(whole: Finished, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """What the search knew before it trained, in this process."""
    config, out = read_config(whole.config), tmp_path_factory.mktemp("problem")
    measured_directory(whole, whole.config, out / "run")
    shutil.copy(whole.out / "journal.jsonl", out / "run")
    return prepare(config, load_inputs(config), RunDirectory(out / "run"), lambda _: None)


@pytest.fixture
def resume(problem: Problem, tmp_path: Path) -> Callable[[list[Record]], Campaign]:
    """The campaign that a search resumes with whose journal holds these records."""

    def make(records: list[Record]) -> Campaign:
        run = RunDirectory(tmp_path / str(len(records)))
        run.root.mkdir()
        for record in records:
            Journal(run.root / "journal.jsonl").append(record)
        return Campaign(replace(problem, run=run))

    return make


def jobs_of(records: list[Record], problem: Problem) -> tuple[Job, ...]:
    """The jobs that were handed out for these records: what was stopped had been asked for as a training."""
    jobs = (Job.from_config(record, problem.services[problem.config.local].num_blocks) for record in records)
    return tuple(replace(job, fidelity="trained") if job.fidelity == "stopped" else job for job in jobs)


def trials_of(out: Path) -> list[list[Record]]:
    """The records of each trial, in order."""
    return [list(records) for _, records in groupby(evaluations(out), lambda record: record["started"])]


def test_a_search_resumed_between_any_two_trials_asks_next_what_the_whole_one_asked(
    whole: Finished, problem: Problem, resume: Callable[[list[Record]], Campaign]
) -> None:
    trials = trials_of(whole.out)
    assert max(map(len, trials)) > 1  # some paths were scored together
    for done in range(len(trials)):
        campaign = resume([record for trial in trials[:done] for record in trial])
        assert campaign.ask() == jobs_of(trials[done], problem)
    assert resume(evaluations(whole.out)).nothing_to_do()


def test_a_search_resumed_between_any_two_records_asks_for_nothing_that_was_measured(
    whole: Finished, problem: Problem, resume: Callable[[list[Record]], Campaign]
) -> None:
    records = evaluations(whole.out)
    for done in range(len(records)):
        asked = resume(records[:done]).ask()
        assert asked
        # What was stopped may be promoted.
        assert set(asked).isdisjoint(jobs_of([record for record in records[:done] if record["fidelity"] != "stopped"], problem))


def test_a_resumed_search_stops_trainings_at_the_rungs_where_the_whole_one_did(
    whole: Finished, problem: Problem, resume: Callable[[list[Record]], Campaign]
) -> None:
    records = evaluations(whole.out)
    for done, record in enumerate(records):
        if not record.get("rungs"):
            continue
        campaign = resume(records[:done])
        (job,) = jobs_of([record], problem)
        kept = [campaign.keep_training(job, rung) for rung in record["rungs"]]
        assert kept == [True] * (len(kept) - 1) + [record["fidelity"] == "trained"]


def test_a_resumed_search_says_of_the_paths_left_what_the_whole_one_said(
    whole: Finished, problem: Problem, resume: Callable[[list[Record]], Campaign]
) -> None:
    records = evaluations(whole.out)
    for done, record in enumerate(records):
        if "expected_low" in record:
            (job,) = jobs_of([record], problem)
            expected = resume(records[:done]).sampler.expected_range(job.path)
            assert expected == pytest.approx((record["expected_low"], record["expected_high"]), abs=1e-6)


def test_tune_is_given_the_jobs_of_a_trial_as_plain_values(
    whole: Finished, problem: Problem, resume: Callable[[list[Record]], Campaign]
) -> None:
    searcher = CampaignSearcher(resume([]), lambda _: None)
    config = searcher.suggest("one")
    assert isinstance(config, dict)
    assert json.loads(json.dumps(config)) == config == {"jobs": [job.to_config() for job in jobs_of(trials_of(whole.out)[0], problem)]}


def test_paths_whose_worker_died_while_it_scored_them_are_passed_over(resume: Callable[[list[Record]], Campaign]) -> None:
    said: list[str] = []
    searcher = CampaignSearcher(resume([]), said.append)
    config = searcher.suggest("one")
    assert isinstance(config, dict)
    searcher.on_trial_complete("one", error=True)
    lost = {job["path"] for job in config["jobs"]}
    assert {str(job.path) for job in searcher.campaign.failures} == lost
    assert len(said) == len(config["jobs"])
    following = searcher.suggest("two")
    assert isinstance(following, dict)
    assert lost.isdisjoint(job["path"] for job in following["jobs"])


def test_a_report_of_stopped_trainings_is_written_again_from_the_journal(whole: Finished, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole.out, out)
    (out / "result.json").unlink()
    again = search(whole.config, out)
    assert (again.returncode, complaints(again.stderr)) == (0, [])
    for name in ("journal.jsonl", "plan.json", "evaluations.csv"):
        assert (out / name).read_bytes() == (whole.out / name).read_bytes()
    result, left = result_of(out), whole.result["left"]
    assert result == whole.result | {"seconds": result["seconds"], "left": left and pytest.approx(left)}


def measured(record: Record) -> Record:
    """A record without what depends on the hour and on how busy the machine is."""
    expected = {name: pytest.approx(record[name], abs=1e-6) for name in ("expected_low", "expected_high") if name in record}
    return {name: value for name, value in record.items() if name not in ("started", "finished", "seconds")} | expected


def test_a_search_killed_in_the_middle_and_resumed_ends_with_what_the_whole_one_found(whole: Finished, tmp_path: Path) -> None:
    config, out = whole.config, tmp_path / "run"
    measured_directory(whole, config, out)
    with start(config, out) as process:
        read_until(process, lambda line: "stopped after" in line)
        time.sleep(0.3)  # on its way to somewhere in the next trial
        kill(process)
    before = evaluations(out)
    assert {"fit", "stopped"} <= {record["fidelity"] for record in before}
    assert not (out / "result.json").exists()
    done = search(config, out)
    assert (done.returncode, complaints(done.stderr)) == (0, [])
    records = evaluations(out)
    assert records[: len(before)] == before
    assert [measured(record) for record in records] == [measured(record) for record in evaluations(whole.out)]
    result, wanted = result_of(out), whole.result
    assert result.keys() == wanted.keys()
    for name in ("deployed", "trainings", "screened", "stopped_because", "verdict"):
        assert result[name] == wanted[name]
    assert {file.name for file in out.iterdir()} == {file.name for file in whole.out.iterdir()}


def test_a_second_run_of_the_same_seed_and_times_asks_the_same_paths_and_measures_the_same(whole: Finished, tmp_path: Path) -> None:
    again = tmp_path / "again"
    measured_directory(whole, whole.config, again)
    assert search(whole.config, again).returncode == 0
    assert [measured(record) for record in evaluations(again)] == [measured(record) for record in evaluations(whole.out)]
    assert read_plan(again / "plan.json") == read_plan(whole.out / "plan.json")
