"""Answers that a plan brings along: written and read whole, and told from those of other weights."""

from pathlib import Path

import numpy as np
import pytest

from code_ray.canaries import TOLERANCE, Canaries, load_canaries, save_canaries
from code_ray.errors import ArtifactError, IntegrityError, PlanError

RANDOM = np.random.default_rng(0)
CANARIES = Canaries(
    RANDOM.integers(0, 256, (8, 28, 28), dtype=np.uint8),
    {name: RANDOM.normal(size=(8, 10)).astype(np.float32) for name in ("original", "0123")},
)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    digest = save_canaries(CANARIES, tmp_path / "canaries.safetensors")
    found = load_canaries(tmp_path / "canaries.safetensors", digest)
    assert np.array_equal(found.images, CANARIES.images)
    assert {name: logits.tolist() for name, logits in found.logits.items()} == {n: v.tolist() for n, v in CANARIES.logits.items()}


def test_a_file_that_the_plan_does_not_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "canaries.safetensors"
    digest = save_canaries(CANARIES, file)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match="holds other canaries than the plan names"):
        load_canaries(file, digest)
    file.unlink()
    with pytest.raises(PlanError, match="cannot be read"):
        load_canaries(file, digest)


def test_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="could not be written"):
        save_canaries(CANARIES, tmp_path / "nowhere" / "canaries.safetensors")


def test_answers_of_bfloat16_are_right_and_those_of_other_weights_wrong() -> None:
    expected = CANARIES.logits["0123"]
    rounded = (expected.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert 0 < CANARIES.difference("0123", rounded) < TOLERANCE
    assert CANARIES.difference("0123", expected) == 0
    assert CANARIES.difference("0123", CANARIES.logits["original"]) > 1
    assert CANARIES.difference("0123", expected * 1.2) == pytest.approx(0.2, rel=1e-4)


@pytest.mark.parametrize("answer", [np.zeros((8, 9), np.float32), np.full((8, 10), np.nan, np.float32)], ids=["shape", "NaN"])
def test_what_is_no_answer_is_infinitely_far(answer: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> None:
    assert CANARIES.difference("0123", answer) == float("inf")
