"""The scale on which paths are forecast, and what little measurements say on it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_ray.forecast import HOPELESS_LOSS, LEAST_LOSS, after_rung, after_score, from_z, noise_std, to_z
from code_ray.path import InferencePath, path_from_vector
from code_ray.scoring import Score

LOSSES = st.floats(LEAST_LOSS, HOPELESS_LOSS)
CROSS = path_from_vector((1, 2, 4, 4), "local", 6, "host", 6)
SKIP = path_from_vector((1, 4), "local", 6)
EXIT = path_from_vector((3,), "local", 6)
PROBE = path_from_vector((0, 1, 4), "local", 6, "host", 6)
PATHS = (CROSS, SKIP, EXIT, PROBE)


def score(loss_points: float) -> Score:
    return Score(0.9 - loss_points / 100, loss_points, divergence=0.1, explained=0.5, seconds=0.1)


@given(LOSSES)
def test_a_loss_survives_the_way_to_the_scale_and_back(loss: float) -> None:
    assert float(from_z(to_z(loss))) == pytest.approx(loss, abs=1e-9)


@given(LOSSES, LOSSES)
def test_of_two_losses_the_larger_is_larger_on_the_scale(one: float, other: float) -> None:
    assert (to_z(one) <= to_z(other)) == (one <= other)


def test_what_no_plan_could_use_is_all_the_same() -> None:
    assert to_z(np.array([30.0, 60.0, 89.0])).tolist() == [to_z(HOPELESS_LOSS)] * 3
    assert to_z(np.array([-0.9, -5.0])).tolist() == [to_z(LEAST_LOSS)] * 2


def test_from_seed_to_seed_a_good_path_moves_further_on_the_scale_than_a_bad_one() -> None:
    found = noise_std(to_z(np.array([0.0, 1.0, 10.0])))
    # As many points for all.
    assert np.allclose(from_z(to_z(np.array([0.0, 1.0, 10.0])) + found / 100) - [0, 1, 10], 0.0015, rtol=0.01)
    assert found.tolist() == sorted(found, reverse=True)


@given(st.floats(0.1, HOPELESS_LOSS))
def test_training_leaves_less_of_a_score_where_the_local_head_makes_the_logits(loss: float) -> None:
    for path in (EXIT, PROBE):
        assert after_score(score(loss), path) == to_z(loss)
    for path in (SKIP, CROSS):
        assert 0 < after_score(score(loss), path) < to_z(loss)


@given(st.floats(LEAST_LOSS, 0.0), st.sampled_from(PATHS))
def test_a_path_that_loses_nothing_untrained_is_not_expected_to_lose_by_training(loss: float, path: InferencePath) -> None:
    assert after_score(score(loss), path) == to_z(loss)


@given(st.floats(LEAST_LOSS, 90.0), st.floats(LEAST_LOSS, 90.0), st.sampled_from(PATHS))
def test_of_two_paths_of_a_kind_the_one_with_the_better_score_is_not_expected_to_end_worse(
    one: float, other: float, path: InferencePath
) -> None:
    better, worse = sorted((one, other))
    assert after_score(score(better), path) <= after_score(score(worse), path)


@given(st.floats(0.0, HOPELESS_LOSS))
def test_the_further_a_training_has_come_the_less_it_may_still_change(loss: float) -> None:
    forecasts = [after_rung(loss, share) for share in (0.1, 0.25, 0.5, 0.9, 1.0)]
    stds = [std for _, std in forecasts]
    assert stds == sorted(stds, reverse=True)
    assert stds[-1] < 0.5 * stds[0]
    assert all(z <= to_z(loss) for z, _ in forecasts)
    assert forecasts[-1][0] == to_z(loss)
