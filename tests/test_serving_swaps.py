"""Plans that take another's place while requests are answered: with other links, without a path, and those that are refused."""

import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ray import serve
from safetensors.torch import load_file, save_file
from serving import (
    BATCH,
    FIXED,
    LOCAL,
    VECTORS,
    Images,
    Load,
    Run,
    eventually,
    make_run,
    relative_difference,
    running_serve,
    turn,
    with_canaries,
    write_plan,
)

from code_ray.client import Client
from code_ray.data import DataSet
from code_ray.errors import RequestError
from code_ray.plan import Plan
from code_ray.policy import ORIGINAL
from deployments import build_app
from deployments.config import AppOptions, RouterOptions

SWAPS = 20
PATIENT = RouterOptions(path_deadline_s=60, request_deadline_s=120, steering="plan", replicas=2)


@pytest.fixture(scope="module")
def runs(served_run: Run, digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The same paths with two sets of links, each with canaries."""
    found = []
    for kappa, fit_samples in ((0.5, 64), (0.75, 40)):
        run = make_run(tmp_path_factory.mktemp("plan"), served_run.services, digits, kappa, fit_samples)
        plan = with_canaries(run, run.plan.model_copy(), digits.validation.images[:8])
        write_plan(run.root, plan)
        found.append(Run(run.root, plan, run.services, run.paths, run.links))
    assert not any(one.link_hashes == other.link_hashes for one, other in zip(*(run.plan.paths[1:] for run in found), strict=True))
    return found[0], found[1]


@pytest.fixture(scope="module")
def current(runs: tuple[Run, Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The symbolic link that is deployed."""
    link: Path = tmp_path_factory.mktemp("deployed") / "current"
    turn(link, runs[0].root)
    return link


@pytest.fixture(scope="module")
def url(current: Path) -> Iterator[str]:
    with running_serve() as base:
        serve.run(build_app(AppOptions(run_dir=current, providers={"alpha": FIXED, "beta": FIXED}, router=PATIENT)))
        yield base


def seen(url: str, calls: int = 24) -> set[tuple[str, str | None]]:
    """Plan in force and refused, as the router replicas tell; asked so often that none of the two is left out."""
    found = set()
    for _ in range(calls):
        with Client(url, timeout_s=60) as client:  # another connection, so that both are asked
            told = client.metadata(LOCAL)["parameters"]
        found.add((told["plan"], told["plan_refused"]))
    return found


def in_force(url: str, plan: Plan) -> bool:
    return {name for name, _ in seen(url)} == {plan.id}


def test_twenty_swaps_under_load_lose_nothing_and_every_answer_is_that_of_a_path_it_names(
    url: str, current: Path, runs: tuple[Run, Run], digits: DataSet
) -> None:
    images = digits.test.images[:BATCH]
    expected = [{run.id_of(name): run.logits(name, images) for name in VECTORS} for run in runs]
    wrong: list[str] = []
    answered = [0, 0]
    stop = threading.Event()

    def send(first: int) -> None:
        pinned = [runs[0].id_of(name) for name in VECTORS]
        with Client(url, timeout_s=120, retries=0) as client:
            number = first
            while not stop.is_set():
                number += 1
                try:
                    answer = client.predict(LOCAL, images, path=pinned[number % len(pinned)] if number % 2 else None)
                except RequestError as error:
                    wrong.append(str(error))
                    continue
                differences = [relative_difference(answer.logits, logits[answer.path]) for logits in expected]
                if min(differences) > 1e-4:
                    wrong.append(f"{answer.path}: {differences}")
                elif answer.path != ORIGINAL:
                    answered[int(np.argmin(differences))] += 1

    threads = [threading.Thread(target=send, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    try:
        before = list(answered)
        for number in range(1, SWAPS + 1):
            turn(current, runs[number % 2].root)
            eventually(lambda: in_force(url, runs[number % 2].plan), "the plan is not in force")  # noqa: B023
            eventually(lambda: answered[number % 2] > before[number % 2], "its links answer nothing")  # noqa: B023
            before = list(answered)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert min(answered) > SWAPS


def test_a_plan_without_a_path_withdraws_it(url: str, current: Path, runs: tuple[Run, Run], digits: DataSet, tmp_path: Path) -> None:
    run = runs[0]
    smaller = run.plan.model_copy(update={"paths": tuple(path for path in run.plan.paths if path.id != run.id_of("probe"))})
    shutil.copytree(run.root, tmp_path / "smaller", symlinks=True)
    write_plan(tmp_path / "smaller", smaller)
    with Load(url, LOCAL, digits.test.images[:BATCH]) as load:
        turn(current, tmp_path / "smaller")
        eventually(lambda: in_force(url, smaller), "the plan is not in force")
    assert load.failures == []
    with Client(url, timeout_s=120) as client:
        assert run.id_of("probe") not in {path["id"] for path in client.metadata(LOCAL)["parameters"]["paths"]}
        with pytest.raises(RequestError, match="is not one that may be used"):
            client.predict(LOCAL, digits.test.images[:1], path=run.id_of("probe"))


def broken(kind: str, run: Run, root: Path, images: Images) -> Plan:
    """A copy of a run directory below ``root`` with a plan that must not be served; returns that plan."""
    shutil.copytree(run.root, root)
    plan = run.plan.model_copy(update={"loss_points": 1.9})  # another plan than any before
    copy = Run(root, plan, run.services, run.paths, run.links)
    file = next((root / "stores" / "beta").glob(f"{run.id_of('cross')}*.safetensors"))
    match kind:
        case "hash":
            tensors = load_file(file)
            name = next(name for name in tensors if name.endswith("weight"))
            save_file(tensors | {name: tensors[name] * 1.01}, file)
        case "missing":
            file.unlink()
        case "canaries":
            plan = with_canaries(copy, plan, images, wrong="cross")
    write_plan(root, plan)
    return plan


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("hash", "provider 'beta': .* is not the link the plan names"),
        ("canaries", "answers its canaries wrongly"),
    ],
)
def test_a_plan_that_fails_its_check_is_refused_with_the_reason_and_the_old_one_stays(
    kind: str, reason: str, url: str, current: Path, runs: tuple[Run, Run], digits: DataSet, tmp_path: Path
) -> None:
    old = runs[1]
    turn(current, old.root)
    eventually(lambda: seen(url) == {(old.plan.id, None)}, "the good plan is not in force")
    broken(kind, old, tmp_path / "broken", digits.validation.images[:8])
    with Load(url, LOCAL, digits.test.images[:BATCH], path=old.id_of("cross")) as load:
        turn(current, tmp_path / "broken")
        eventually(lambda: all(why and re.search(reason, why) for _, why in seen(url)), f"{reason} is not told: {seen(url)}")
        moment = time.monotonic()
        eventually(lambda: len(load.since(moment)) > 20, "nothing is answered")
    assert load.failures == []
    assert {name for name, _ in seen(url)} == {old.plan.id}
    assert old.id_of("cross") in load.since(moment)


def test_a_plan_whose_links_come_late_is_served_when_they_are_there(
    url: str, current: Path, runs: tuple[Run, Run], tmp_path: Path, digits: DataSet
) -> None:
    plan = broken("missing", runs[0], tmp_path / "late", digits.validation.images[:8])
    turn(current, tmp_path / "late")
    eventually(lambda: all(why for _, why in seen(url)), "it is not refused")
    for file in (runs[0].root / "stores" / "beta").glob("*.safetensors"):
        shutil.copy(file, tmp_path / "late" / "stores" / "beta" / file.name)
    eventually(lambda: seen(url) == {(plan.id, None)}, "it is not served")
