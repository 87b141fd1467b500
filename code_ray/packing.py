"""Arrays on their way to another process, without what lies beside them in memory.

Ray sends bytes alone. Round an array of less than 100 kB it sends up to 64 bytes more, to align it, as they were in the memory of the
process that sends (2.60): weights were among them. Larger ones go through shared memory that holds nothing but what was sent before.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

SMALL = 128 * 1024
"""Bytes: arrays below may be sent with what lies beside them."""


def packed(value: Any, below: float = math.inf) -> Any:
    """An array of fewer than ``below`` bytes as the bytes of an ``.npy`` file, anything else as it is."""
    if not isinstance(value, np.ndarray) or value.nbytes >= below:
        return value
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return file.getvalue()


def unpacked(value: Any) -> Any:
    """What ``packed`` was given; read-only where it is an array."""
    if not isinstance(value, bytes):
        return value
    array: npt.NDArray[Any] = np.load(io.BytesIO(value), allow_pickle=False)
    return array
