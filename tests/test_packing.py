"""Arrays as bytes: what is sent is the array and nothing that lies beside it."""

from __future__ import annotations

import numpy as np
import pytest

from code_ray.packing import SMALL, packed, unpacked


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "int64"])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (2, 3, 4)])
def test_what_was_packed_comes_back(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    message = packed(array)
    assert isinstance(message, bytes)
    assert array.tobytes() in message
    again = unpacked(message)
    assert again.dtype == array.dtype
    assert np.array_equal(again, array)


def test_an_array_of_which_a_part_is_sent_takes_nothing_else_along() -> None:
    whole = np.arange(100, dtype=np.uint8)
    message = packed(whole[10:20])
    assert bytes(range(10, 20)) in message
    assert bytes(range(20, 24)) not in message


def test_large_arrays_and_what_is_no_array_stay_as_they_are() -> None:
    large = np.zeros(SMALL, np.uint8)
    assert packed(large, SMALL) is large
    assert isinstance(packed(large[1:], SMALL), bytes)
    assert unpacked(large) is large
    for value in ("text", None, 3):
        assert packed(value) is value
        assert unpacked(value) is value


def test_nothing_is_unpickled() -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        packed(np.array([{}]))
    with pytest.raises(ValueError, match="allow_pickle"):
        unpacked(b"cos\nsystem\n(S'true'\ntR.")
