"""What the end of a trunk makes for several services, on its way through a queue that carries one array. Pure: no Ray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Parcel:
    """Several arrays as one, (n, bytes) uint8, a row an image: ``parts`` are shape and type of a row of each."""

    parts: tuple[tuple[tuple[int, ...], str], ...]

    @classmethod
    def of(cls, arrays: Sequence[Array]) -> Parcel:
        """For arrays like these, (n, *shape) each."""
        return cls(tuple((array.shape[1:], array.dtype.str) for array in arrays))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of a row of each."""
        return tuple(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.parts)

    def pack(self, arrays: Sequence[Array]) -> Array:
        """One array of all."""
        rows = [np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8) for array in arrays]
        return np.concatenate(rows, axis=1)

    def unpack(self, packed: Array) -> list[Array]:
        """They again."""
        ends = np.cumsum(self.sizes)[:-1]
        rows = zip(np.split(packed, ends, axis=1), self.parts, strict=True)
        return [np.ascontiguousarray(row).view(dtype).reshape(len(packed), *shape) for row, (shape, dtype) in rows]
