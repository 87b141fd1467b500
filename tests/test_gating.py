"""Answers of low confidence made again by the original: what a gate costs and gains, from logits alone."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trained import PATHS, PLACEMENT

from code_ray.errors import PathError
from code_ray.gating import RERUN_SHARES, confidence, make_gates
from code_ray.path import InferencePath, original_path, parse_path
from code_ray.profiling import measure_profile
from code_ray.service import Service

IMAGES, CLASSES = 1000, 10


def answers(seed: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Logits of a path that is right where it is sure, classes of an original that is right in 95 of 100, and the labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, IMAGES)
    sure = random.uniform(0, 4, IMAGES)
    logits = random.normal(0, 1, (IMAGES, CLASSES)).astype(np.float32)
    logits[np.arange(IMAGES), labels] += sure
    original = np.where(random.uniform(size=IMAGES) < 0.95, labels, (labels + 1) % CLASSES)
    return logits, original, labels


@given(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=6))
def test_confidence_is_the_largest_softmax_probability(row: list[float]) -> None:
    logits = np.array([row], np.float32)
    wanted = torch.softmax(torch.from_numpy(logits).double(), 1).max().item()
    assert confidence(logits)[0] == pytest.approx(wanted, rel=1e-9)


def test_a_gate_reruns_its_share_and_reaches_what_the_two_together_get_right() -> None:
    logits, original, labels = answers()
    for gate in make_gates(logits, original, labels, RERUN_SHARES):
        again = np.array([torch.softmax(torch.from_numpy(row), 0).max().item() < gate.threshold for row in logits])
        assert again.mean() == pytest.approx(gate.rerun, abs=0.003)
        chosen = [original[i] if again[i] else int(logits[i].argmax()) for i in range(IMAGES)]
        assert gate.accuracy == pytest.approx((np.array(chosen) == labels).mean(), abs=0.003)


def test_the_more_is_rerun_the_nearer_the_accuracy_comes_to_the_originals() -> None:
    logits, original, labels = answers()
    gates = make_gates(logits, original, labels, RERUN_SHARES)
    assert [gate.rerun for gate in gates] == pytest.approx(RERUN_SHARES)
    plain = (logits.argmax(1) == labels).mean()
    assert plain < gates[0].accuracy < gates[1].accuracy < gates[2].accuracy < gates[3].accuracy < gates[4].accuracy


def test_shares_that_the_images_cannot_tell_apart_give_one_gate_and_none_reruns_nothing() -> None:
    logits, original, labels = answers()
    few = make_gates(logits[:10], original[:10], labels[:10], (0.1, 0.11, 0.12, 0.5))
    assert [gate.rerun for gate in few] == sorted({gate.rerun for gate in few})
    assert len(few) < 4
    same = np.zeros((IMAGES, CLASSES), np.float32)
    assert make_gates(same, original, labels, RERUN_SHARES) == ()


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("rerun", [0.0001, 0.1, 0.3333])
def test_a_gated_path_is_the_plain_one_with_a_share_in_its_text(path: InferencePath, rerun: float) -> None:
    gated = replace(path, rerun=rerun)
    assert str(gated) == f"{path} | rerun={rerun:g}"
    assert parse_path(str(gated), path.num_blocks) == gated
    assert gated.plain == path
    assert (gated.kind, gated.vector if len(path.segments) < 4 else ()) == (path.kind, path.vector if len(path.segments) < 4 else ())


@pytest.mark.parametrize(
    "text", ["tiny[0:3] > logits | rerun=1.0", "tiny[0:3] > logits | rerun=x", "tiny[0:3] > logits | rerun=0.1 | rank=2"]
)
def test_what_is_no_gate_is_no_path(text: str) -> None:
    with pytest.raises(PathError, match="is not a path"):
        parse_path(text, 6)


def test_the_original_has_no_gate() -> None:
    with pytest.raises(PathError, match=r"cannot rerun a share of 0.1"):
        replace(original_path("tiny", 6), rerun=0.1)


def test_a_gate_costs_its_share_of_the_original_on_the_local_server(tiny_services: dict[str, Service]) -> None:
    exit_path = PATHS[3]
    assert exit_path.kind == "exit"
    profile = measure_profile([exit_path], tiny_services, PLACEMENT, batch_sizes=(16,))
    plain, gated = (profile.cost(path, tiny_services).seconds for path in (exit_path, replace(exit_path, rerun=0.25)))
    assert gated["a"] == pytest.approx(plain["a"] + 0.25 * sum(profile.block_seconds["tiny"]))
