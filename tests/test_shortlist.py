"""The shortlist: the few paths of a space that promise most are the ones a look at every path would choose."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from wide_landscape import A0, COSTS, OBJECTIVE, ORIGINAL, SPACE, accuracy, cost

from code_ray.forecast import from_z
from code_ray.objective import Known, Objective, PaperObjective
from code_ray.path_space import COLUMNS, PathSpace, Rows
from code_ray.reward import Reward
from code_ray.shortlist import shortlist
from code_ray.throughput import FloatArray, PathCost

STD = 0.6
PAPER = PaperObjective(ORIGINAL, A0, OBJECTIVE.limits, "local", Reward(A0 - 0.007))
ROWS = np.concatenate(list(SPACE.chunks()))
KNOWN: Known = {path: (cost(path), accuracy(path)) for path in (SPACE.path(ROWS[i]) for i in (40, 3000, 7000, len(ROWS) - 1))}
each_objective = pytest.mark.parametrize("objective", [OBJECTIVE, PAPER], ids=["plan", "paper"])
each_known = pytest.mark.parametrize("known", [{}, KNOWN], ids=["nothing known", "some known"])


@dataclass(frozen=True)
class SmallChunks(PathSpace):
    """The same space in chunks of at most ``most`` rows."""

    most: int = 1 << 16

    def chunks(self, size: int = 1 << 16) -> Iterator[Rows]:
        return super().chunks(min(size, self.most))


def forecast(features: FloatArray) -> FloatArray:
    """z that rises with what is skipped and with how far off links lead."""
    return np.asarray(0.2 + 1.5 * features[:, 2] + 2.0 * np.abs(features[:, 5]) + 1.0 * np.abs(features[:, 6]))


def promises(objective: Objective, known: Known) -> FloatArray:
    """What each path of the space may add, looked at one by one: the expectation of the bound over a forecast's three nodes."""
    bound, now = objective.upper_bound(known), objective.value(known)
    mean, seconds = forecast(SPACE.features(ROWS)), COSTS.taken(ROWS, objective.limits)
    values = [
        weight * np.log(np.maximum(bound(seconds, objective.accuracies(np.maximum(from_z(mean + node * STD), 0.0))) / now, 1.0))
        for node, weight in ((-np.sqrt(3), 1 / 6), (0.0, 2 / 3), (np.sqrt(3), 1 / 6))
    ]
    return np.asarray(now * np.sum(values, axis=0))


def chosen(objective: Objective, known: Known, size: int, most: int = 1 << 16) -> tuple[list[tuple[int, ...]], FloatArray]:
    space = SmallChunks(SPACE.local, SPACE.num_blocks, SPACE.hosts, most=most)
    rows, gains = shortlist(space, COSTS, objective, known, forecast, STD, size)
    return [tuple(row.tolist()) for row in rows], gains


@each_known
@each_objective
def test_no_path_left_out_promises_more_than_one_that_was_kept(objective: Objective, known: Known) -> None:
    rows, gains = chosen(objective, known, 50)
    every = dict(zip(map(tuple, ROWS.tolist()), promises(objective, known).tolist(), strict=True))
    assert len({*rows}) == len(rows) == 50
    assert gains.tolist() == sorted(gains, reverse=True)
    assert gains == pytest.approx([every[row] for row in rows])
    assert max(gain for row, gain in every.items() if row not in {*rows}) <= gains[-1] + 1e-9


@each_known
@each_objective
@pytest.mark.parametrize("most", [37, 1000])
def test_the_size_of_a_chunk_does_not_change_what_is_kept(most: int, objective: Objective, known: Known) -> None:
    whole, parts = (chosen(objective, known, 80, size) for size in (1 << 16, most))
    assert whole[1] == pytest.approx(parts[1])
    # Of paths that promise alike at the end of the list either may be kept.
    clearly = int((whole[1] > whole[1][-1] + 1e-9).sum())
    assert clearly > 70
    assert {*whole[0][:clearly]} == {*parts[0][:clearly]}


def test_only_what_could_add_nothing_without_any_loss_is_left_out_where_there_is_room() -> None:
    rows, gains = chosen(OBJECTIVE, KNOWN, len(ROWS))
    assert 0 < len(rows) < len(ROWS)
    assert gains.min() > 0
    left_out = sorted({*map(tuple, ROWS.tolist())} - {*rows})
    lossless = [OBJECTIVE.value({**KNOWN, path: (cost(path), A0)}) for path in (SPACE.path(np.array(row)) for row in left_out[::20])]
    assert max(lossless) <= OBJECTIVE.value(KNOWN) * (1 + 1e-6)


def test_where_nothing_can_add_to_the_plan_the_list_is_empty() -> None:
    unbeatable: Known = {SPACE.path(ROWS[0]): (PathCost({"local": 1e-9}), A0)}
    rows, gains = shortlist(SPACE, COSTS, OBJECTIVE, unbeatable, forecast, STD, 10)
    assert (rows.shape, gains.shape) == ((0, len(COLUMNS)), (0,))
