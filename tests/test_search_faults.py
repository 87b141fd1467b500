"""Searches that something happens to: killed, a service changed under them, no space left (DESIGN 3.3, 3.6)."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_search import PAIR, command, complaints, contents, evaluations, result_of, search, write_config

from code_ray.blocks import content_hash
from code_ray.errors import ArtifactError, IntegrityError
from code_ray.path import path_from_vector
from code_ray.plan import read_plan
from code_ray.profiling import measure_profile
from code_ray.zoo import ZOO
from search.campaign import Job
from search.config import SearchConfig
from search.problem import load_services
from search.trial import Outcome, Worker

LONELY: dict[str, Any] = {
    "local": "alexnet-digits",
    "data": "digits",
    "hosts": {},
    "kinds": ["skip", "exit"],
    "loss_points": 5.0,
    "screen": 20,
    "stopping": {"max_trainings": 2, "c_stop": 2},
    "confirm": 1,
    "recipe": {"samples": 300, "fit_samples": 200, "steps": 5},
}
"""Twenty paths without a host: many evaluations in little time."""


def start(config: Path, out: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(command(config, out), cwd=config.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_until(process: "subprocess.Popen[str]", seen: Callable[[str], bool]) -> str:
    """The first line of progress that ``seen`` is true of."""
    assert process.stdout is not None
    for line in process.stdout:
        if seen(line):
            return line
    raise AssertionError(f"the search ended before that line: {process.stderr and process.stderr.read()}")


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code, and the one line that the search wrote to stderr."""
    _, stderr = process.communicate(timeout=200)
    lines = complaints(stderr)
    assert len(lines) == 1, stderr
    return process.returncode, lines[0]


def descendants(pid: int) -> list[int]:
    """Every process that ``pid`` started, and theirs."""
    found: list[int] = []
    for task in Path("/proc").glob(f"{pid}/task/*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue  # that thread has just ended
        for child in map(int, children):
            found += [child, *descendants(child)]
    return found


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to a search and to what Ray started for it."""
    # A stopped process starts no more of them meanwhile.
    process.send_signal(signal.SIGSTOP)
    victims = [process.pid, *descendants(process.pid)]
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate(timeout=60)


def is_evaluation(line: str) -> bool:
    return "least squares" in line or " -> " in line


@dataclass(frozen=True)
class Interrupted:
    """A search that was killed in the middle; its local service is a folder that belongs to the test."""

    config: Path
    out: Path
    weights: Path
    before: tuple[dict[str, Any], ...]

    def copy(self, folder: Path) -> Path:
        """The run directory as the killed search left it."""
        return Path(shutil.copytree(self.out, folder / "run"))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    folder = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(ZOO["alexnet-digits"](), folder / "mine")
    config, out = write_config(folder, PAIR, local=str(folder / "mine")), folder / "run"
    with start(config, out) as process:
        for _ in range(3):
            read_until(process, is_evaluation)
        kill(process)
    return Interrupted(config, out, folder / "mine" / "weights.safetensors", tuple(evaluations(out)))


def replace_weights(file: Path, change: float) -> bytes:
    """Put other weights in the place of ``file`` at once; returns the old ones."""
    old, staging = file.read_bytes(), file.with_name("staging")
    weights = load_file(file)
    weights["2.5.bias"][0] += change
    save_file(weights, staging)
    staging.replace(file)
    return old


def test_a_killed_search_leaves_what_it_measured_and_no_report(interrupted: Interrupted) -> None:
    assert len(interrupted.before) >= 3
    assert not (interrupted.out / "result.json").exists()
    assert not (interrupted.out / "plan.json").exists()


def test_the_same_command_resumes_a_killed_search_and_repeats_no_evaluation(interrupted: Interrupted, tmp_path: Path) -> None:
    out = interrupted.copy(tmp_path)
    done = search(interrupted.config, out)
    assert (done.returncode, complaints(done.stderr)) == (0, [])
    assert f"resuming: {len(interrupted.before)} evaluations are in the journal" in done.stdout
    records = evaluations(out)
    assert tuple(records[: len(interrupted.before)]) == interrupted.before
    keys = [(record["path"], record["fidelity"], record["seed"]) for record in records]
    assert len(set(keys)) == len(keys) > len(interrupted.before)
    assert result_of(out)["trainings"] == sum(record["fidelity"] == "trained" for record in records)


def test_a_service_folder_keeps_its_links_in_the_store_of_its_last_name(interrupted: Interrupted, tmp_path: Path) -> None:
    out, service = interrupted.copy(tmp_path), contents(interrupted.weights.parent)
    assert search(interrupted.config, out).returncode == 0
    assert {folder.name for folder in (out / "stores").iterdir()} <= {"mine", "efficientnet-lite0"}
    assert set(read_plan(out / "plan.json").placement.values()) == {"mine", "efficientnet-lite0"}
    assert contents(interrupted.weights.parent) == service


def test_a_service_that_changes_under_a_search_ends_it_and_keeps_what_was_measured(interrupted: Interrupted, tmp_path: Path) -> None:
    out = interrupted.copy(tmp_path)
    with start(interrupted.config, out) as process:
        read_until(process, lambda line: "resuming" in line)
        # The search itself has loaded the service by now, its workers have not.
        old = replace_weights(interrupted.weights, change=1)
        try:
            code, line = end(process)
        finally:
            interrupted.weights.write_bytes(old)
    assert code == 2
    assert line.startswith("IntegrityError: block 3 of 'alexnet-digits' is not what its hash ")
    assert tuple(evaluations(out)) == interrupted.before
    assert not (out / "result.json").exists()


@pytest.fixture(scope="module")
def make_worker() -> Callable[[Path], Worker]:
    """What runs in each of Tune's processes, for one cross path of the smallest pair."""
    config = SearchConfig.model_validate({**PAIR, "vectors": None})
    profile = measure_profile([CROSS], load_services(config), config.placement, batch_sizes=(16,))
    return lambda stores_dir: Worker(config, profile, stores_dir)


CROSS = path_from_vector((1, 2, 3, 5), "alexnet-digits", 6, "efficientnet-lite0", 10)
JOB = Job(CROSS, "trained", 0, "search")


def train(worker: Worker) -> Outcome:
    """What comes of ``JOB``; there are no rungs on the way."""
    (outcome,) = worker.train(JOB)
    assert isinstance(outcome, dict)
    return outcome


def test_a_job_leaves_every_block_of_both_services_as_it_was(make_worker: Callable[[Path], Worker], tmp_path: Path) -> None:
    worker = make_worker(tmp_path)
    before = {name: [content_hash(block) for block in service.blocks] for name, service in worker.services.items()}
    train(worker)
    worker.score([JOB])
    assert {name: [content_hash(block) for block in service.blocks] for name, service in worker.services.items()} == before


@pytest.mark.parametrize("name", ["alexnet-digits", "efficientnet-lite0"])
def test_a_block_that_changes_between_two_jobs_is_found_before_the_second(
    name: str, make_worker: Callable[[Path], Worker], tmp_path: Path
) -> None:
    worker = make_worker(tmp_path)
    worker.score([Job(CROSS, "fit", 0, "search")])
    parameter = next(worker.services[name].blocks[1].parameters())
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.view(-1)[0] += 1e-3
    try:
        for again in (train, lambda worker: worker.score([JOB])):
            with pytest.raises(IntegrityError, match=f"block 2 of '{name}' is not what its hash"):
                again(worker)
    finally:
        # The services of the zoo are shared with every other test.
        with torch.no_grad():
            parameter.copy_(kept)
    assert contents(tmp_path) == {}
    assert set(train(worker)["record"]["link_hashes"]) == {"link0", "link1"}


def test_a_store_that_cannot_be_written_is_an_error_with_its_folder(make_worker: Callable[[Path], Worker], tmp_path: Path) -> None:
    (tmp_path / "stores").write_text("a file, not a folder")
    with pytest.raises(ArtifactError, match=r"stores/efficientnet-lite0: links of path \w+ could not be written .*; free space"):
        train(make_worker(tmp_path / "stores"))


def test_stores_that_cannot_be_written_end_a_search_and_keep_its_journal(tmp_path: Path) -> None:
    config, out = write_config(tmp_path, LONELY, screen=3), tmp_path / "run"
    with start(config, out) as process:
        read_until(process, lambda line: "least squares" in line)
        (out / "stores").write_text("a file, not a folder")
        rest, stderr = process.communicate(timeout=200)
    (line,) = complaints(stderr)
    assert process.returncode == 2
    assert line.startswith(f"ArtifactError: {out / 'stores' / 'alexnet-digits'}: links of path ")
    scored = 1 + rest.count("least squares")
    assert [record["fidelity"] for record in evaluations(out)] == ["fit"] * scored
    assert not (out / "result.json").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True, check=False, timeout=20
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


def fill(file: Path) -> None:
    """Write until no space is left."""
    with suppress(OSError), file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


def test_a_full_disk_ends_a_search_which_goes_on_once_there_is_space(small_disk: Path, tmp_path: Path) -> None:
    # More records than the journal's last page has room for, of paths that are soon trained.
    changes = {"vectors": [[1], [2], [3], [1, 3], [1, 4], [1, 5], [2, 4], [2, 5]], "stopping": {"max_trainings": 6, "epsilon": 0}}
    config = write_config(tmp_path, LONELY, **changes)
    out, filler = small_disk / "run", small_disk / "filler"
    with start(config, out) as process:
        read_until(process, lambda line: "original:" in line)
        # With links on another disk it is the journal that finds no space.
        (out / "stores").symlink_to(tmp_path)
        read_until(process, is_evaluation)
        fill(filler)
        code, line = end(process)
    assert code == 2
    assert line.startswith(f"ArtifactError: {out / 'journal.jsonl'}: a result could not be written ([Errno 28] No space left on device)")
    kept = evaluations(out)
    assert 1 <= len(kept) < LONELY["screen"]
    filler.unlink()
    done = search(config, out)
    assert (done.returncode, complaints(done.stderr)) == (0, [])
    records = evaluations(out)
    assert records[: len(kept)] == kept
    keys = [(record["path"], record["fidelity"], record["seed"]) for record in records]
    assert len(set(keys)) == len(keys) > len(kept)
    assert (out / "result.json").exists()


def test_a_disk_that_is_full_before_the_first_measurement_is_named(small_disk: Path, tmp_path: Path) -> None:
    config, out = write_config(tmp_path, LONELY), small_disk / "run"
    with start(config, out) as process:
        read_until(process, lambda line: "measuring" in line)
        fill(small_disk / "filler")
        code, line = end(process)
    assert code == 2
    assert line.startswith(f"ArtifactError: {out} cannot be written ([Errno 28] No space left on device")
