"""Trunks: which paths share one, what is trained behind it, plans made one, and the programme for frames that several services answer."""

from pathlib import Path

import pytest
import torch
from serving import HOST, LOCAL, Run
from trunks import LAYOUT, OTHER, RECIPE, behind_trunk, make_other_run

from code_ray.artifact import RunDirectory
from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.errors import ArtifactError, PathError, PlanError
from code_ray.joining import check_trunk, join, trunk_links
from code_ray.path import InferencePath, Segment, parse_path, path_from_vector
from code_ray.plan import PlannedTrunk, read_plan
from code_ray.runner import fan_out
from code_ray.scoring import Scorer
from code_ray.throughput import Answers, Limits, PathCost, best_joint_mixture
from code_ray.training import LinkTraining, Trainer
from code_ray.trunk import shared_trunk, trunk_of

RAW = path_from_vector((0, 2, 4, 5), LOCAL, 6, HOST, 6)


@pytest.fixture(scope="module")
def other_run(served_run: Run, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_other_run(tmp_path_factory.mktemp("other"), served_run, digits)


@pytest.mark.parametrize(
    "text", [f"{LOCAL}[0:6]", f"{LOCAL}[0:1] > {HOST}[1:4] > {LOCAL}[5:6]", f"{LOCAL}[0:1] > {LOCAL}[4:6]", f"{LOCAL}[0:2] > logits"]
)
def test_a_path_that_runs_local_blocks_first_has_no_trunk(text: str) -> None:
    assert trunk_of(parse_path(text, 6)) is None


def test_paths_of_several_services_share_the_blocks_that_the_raw_frame_goes_through() -> None:
    trunk = shared_trunk(
        [
            RAW,
            behind_trunk(3),
        ]
    )
    assert trunk.segments == (Segment(HOST, 1, 4),)
    assert trunk.exit_of(RAW).index == 1
    fan = fan_out([RAW, behind_trunk(None)], {LOCAL: "a", OTHER: "a", HOST: "b"})
    assert [leg.provider for leg in fan.stem] == ["b"]
    assert [[leg.provider for leg in branch] for branch in fan.branches] == [["b", "a"], ["b"]]


@pytest.mark.parametrize(
    "paths",
    [
        (RAW,),
        (RAW, RAW),
        (RAW, path_from_vector((0, 2, 3, 5), OTHER, 6, HOST, 6)),
        (RAW, path_from_vector((0, 2, 4, 5), OTHER, 6, HOST, 6, rank=3)),
    ],
    ids=["one path", "one service", "other blocks", "another rank"],
)
def test_what_shares_no_trunk_is_named(paths: tuple[InferencePath, ...]) -> None:
    with pytest.raises(PathError, match="trunk"):
        shared_trunk(paths)


def test_behind_a_trunk_its_links_stay_and_the_others_learn(served_run: Run, other_run: Run, digits: DataSet) -> None:
    given = served_run.links["raw cross"]["link0"].state_dict()
    for name in ("cross", "probe"):
        links = other_run.links[name]
        assert all(torch.equal(links["link0"].state_dict()[key], value) for key, value in given.items())
    services = other_run.services
    trunks = trunk_links(RunDirectory(served_run.root), services[OTHER], {HOST: services[HOST]})
    trainer = Trainer(services, OTHER, digits, LAYOUT, lambda _: ExecutionMode(), RECIPE, trunks=trunks)
    training = LinkTraining(trainer, behind_trunk(5), seed=0)
    training.fit()
    # The score describes the path that would be trained, entry link and all.
    assert Scorer(trainer).score([behind_trunk(5)])[behind_trunk(5)].accuracy == pytest.approx(training.screen_accuracy())
    assert training.screen_accuracy() > 0.5
    before = {key: value.clone() for key, value in training.links["link1"].state_dict().items()}
    training.advance(RECIPE.total_steps)
    assert not all(torch.equal(training.links["link1"].state_dict()[key], value) for key, value in before.items())


def test_joined_plans_find_their_trunks_by_their_links(served_run: Run, other_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "both"
    plan = join(RunDirectory(served_run.root), RunDirectory(other_run.root), out)
    assert read_plan(RunDirectory(out).plan_file) == plan
    assert list(plan.tasked) == [LOCAL, OTHER]
    assert [task.loss_points for task in plan.tasked.values()] == [2.3, 1.0]
    raw = served_run.id_of("raw cross")
    assert {tuple(trunk.paths.items()) for trunk in plan.trunks} == {
        ((LOCAL, raw), (OTHER, planned.id)) for planned in other_run.plan.paths[1:]
    }
    cross = PlannedTrunk(id="x", paths={LOCAL: served_run.id_of("cross"), OTHER: other_run.plan.paths[1].id})
    with pytest.raises(PlanError, match="begin with different links or blocks"):
        check_trunk(plan, cross)
    with pytest.raises(PlanError, match="names path 'nobody' of 'tiny'"):
        plan.behind(PlannedTrunk(id="x", paths={LOCAL: "nobody", OTHER: "original"}))


def test_plans_that_cannot_be_one_are_named(served_run: Run, other_run: Run, tmp_path: Path) -> None:
    first, other = RunDirectory(served_run.root), RunDirectory(other_run.root)
    with pytest.raises(PlanError, match="a local service of one plan is in the other too"):
        join(first, first, tmp_path / "same")
    (tmp_path / "there").mkdir()
    with pytest.raises(ArtifactError, match="is there already; give a new folder"):
        join(first, other, tmp_path / "there")
    greedy = RunDirectory(tmp_path / "greedy")
    greedy.root.mkdir()
    (greedy.root / "stores").symlink_to(other_run.root / "stores")
    for changes, message in (
        ({"kappa": {HOST: 0.9}}, f"different shares of {HOST}"),
        ({"placement": {OTHER: "alpha", HOST: "gamma"}}, f"another provider of {HOST}"),
        ({"services": {**other_run.plan.services, HOST: "0" * 64}}, f"another version of {HOST}"),
    ):
        greedy.plan_file.write_text(other_run.plan.model_copy(update=changes).model_dump_json())
        with pytest.raises(PlanError, match=message):
            join(first, greedy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shared_pass_is_worth_what_the_programme_says() -> None:
    """Both originals take the local server 2 s a frame; both paths the host 1 s, behind their trunk .6 s. By hand: 1.4 and 2 frames a second."""
    originals, apart, trunk = PathCost({"a": 2.0}), PathCost({"a": 0.2, "b": 1.0}), PathCost({"a": 0.2, "b": 0.6})
    limits = Limits({"a": 1.0, "b": 1.0}, 0.0, {})

    def throughput(*columns: PathCost, lost: float = 0.0) -> float:
        answers = [Answers([0.9, *[0.9] * (len(columns) - 1)], 0.9, 1.0), Answers([0.8, *[0.8 - lost] * (len(columns) - 1)], 0.8, 1.0)]
        return best_joint_mixture(columns, answers, limits).throughput

    assert throughput(originals) == pytest.approx(0.5)
    assert throughput(originals, apart) == pytest.approx(1.4)
    assert throughput(originals, apart, trunk) == pytest.approx(2.0)
    # One service alone is over its limit: of the frames a third may lose three points.
    assert throughput(originals, trunk, lost=0.03) == pytest.approx(3 * (1 / (2 * 2.0 + 0.2)))
