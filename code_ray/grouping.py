"""Consecutive pieces put together into groups of about equal time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from code_ray.errors import SplitError


def equal_groups(seconds: Sequence[float], ends: Sequence[int], num_groups: int) -> list[int]:
    """Which of ``ends`` close the first ``num_groups`` - 1 groups, so that the sum of squared times of groups is least.

    seconds: of each step. ends: after how many steps a group may end, rising; the last group ends with the steps. Dynamic programming over
    the number of groups: exact, and blind to where a measurement is off by little.

    Raises:
        SplitError: where there are fewer ends than groups need.
    """
    if len(ends) < num_groups - 1:
        raise SplitError(f"{len(ends)} places do not make {num_groups} groups; ask for fewer")
    total = np.concatenate([[0.0], np.cumsum(seconds)])
    at = total[[0, *ends, len(seconds)]]
    square = np.square(at[None, :] - at[:, None])
    square[np.tril_indices(len(at))] = np.inf  # [i, j]: a group from end i to end j > i
    best, before = square[0], []
    for _ in range(num_groups - 1):
        costs = best[:, None] + square
        before.append(costs.argmin(0))
        best = costs.min(0)
    chosen, end = [], len(at) - 1
    for previous in reversed(before):
        end = int(previous[end])
        chosen.append(end - 1)
    return chosen[::-1]
