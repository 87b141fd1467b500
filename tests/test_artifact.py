"""Run directories: made once for one configuration, opened when finished, never written over something else (DESIGN 3.6, 4)."""

import subprocess
import sys
from pathlib import Path

import pytest

from code_ray.artifact import RunDirectory, write_text
from code_ray.errors import ArtifactError

CONFIG: dict[str, object] = {"local": "alexnet", "seed": 0}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_file_names_users_rely_on(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.result_file == tmp_path / "result.json"
    assert run.plan_file == tmp_path / "plan.json"
    assert run.evaluations_file == tmp_path / "evaluations.csv"
    assert run.journal.file == tmp_path / "journal.jsonl"
    assert run.stores_dir == tmp_path / "stores"
    assert run.picture_file("pareto") == tmp_path / "pareto.png"


def test_the_same_configuration_opens_the_same_directory_and_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "run"
    run = RunDirectory.create(root, CONFIG)
    run.journal.append({"accuracy": 0.9})
    before = contents(root)
    again = RunDirectory.create(root, dict(reversed(CONFIG.items())))
    assert again == run
    assert again.journal.records() == [{"accuracy": 0.9}]
    assert contents(root) == before


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    assert RunDirectory.create(tmp_path, CONFIG).config_file.exists()


@pytest.mark.parametrize("present", [b'{"local": "other"}\n', b"", b"\xff\xfe\x00"])
def test_another_configurations_directory_stays_as_it_is(tmp_path: Path, present: bytes) -> None:
    (tmp_path / "config.json").write_bytes(present)
    with pytest.raises(ArtifactError, match=r"was made by another configuration \(see config.json\); choose another --out"):
        RunDirectory.create(tmp_path, CONFIG)
    assert contents(tmp_path) == {"config.json": present}


def test_a_directory_of_other_things_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("three years of work")
    with pytest.raises(ArtifactError, match="is not empty and not a run directory; choose another --out"):
        RunDirectory.create(tmp_path, CONFIG)
    assert contents(tmp_path) == {"thesis.tex": b"three years of work"}


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_cannot_be_made_a_run_directory(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ArtifactError, match=r"cannot be made a run directory \(.*\); choose another --out"):
        RunDirectory.create(tmp_path / "file" / below, CONFIG)
    assert contents(tmp_path) == {"file": b"kept"}


FULL = """
import resource, sys
from pathlib import Path
from code_ray.artifact import RunDirectory
from code_ray.errors import ArtifactError

resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    RunDirectory.create(Path(sys.argv[1]), {"local": "alexnet", "seed": 0})
except ArtifactError as error:
    print(error)
"""


def test_a_directory_that_could_not_be_made_for_want_of_space_can_be_made_later(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60)
    assert "cannot be made a run directory" in done.stdout
    assert contents(tmp_path) == {}
    assert RunDirectory.create(tmp_path, CONFIG).config_file.exists()


def test_a_finished_search_opens(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, CONFIG)
    write_text(run.plan_file, "{}")
    assert RunDirectory.open(tmp_path) == run


def test_an_unfinished_search_says_how_to_go_on(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, CONFIG)
    with pytest.raises(ArtifactError, match=r"its search has not finished: run the same search again"):
        RunDirectory.open(tmp_path)


def test_what_is_no_run_directory_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not a run directory with a plan.json; give the --out of a search"):
        RunDirectory.open(tmp_path / "nowhere")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_text(file, "old and long")
    write_text(file, "new")
    assert contents(tmp_path) == {"result.json": b"new"}


def test_a_file_that_cannot_be_replaced_keeps_what_it_held(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_text(file, "old")
    script = (
        "import resource, sys; from pathlib import Path; from code_ray.artifact import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); write_text(Path(sys.argv[1]), 'x' * 100)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=False, timeout=60)
    assert "OSError" in done.stderr
    assert contents(tmp_path) == {"result.json": b"old"}
