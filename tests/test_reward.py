"""The reward against the figures the paper prints (DESIGN 2.4, 2.6)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_ray.reward import Reward, average_accuracy, pair_reward
from code_ray.throughput import pair_throughput

PAPER = Reward(accuracy_min=0.86, steepness=8.0)


def test_the_papers_winner_has_0655_against_0514() -> None:
    assert float(PAPER.xi(0.844)) == pytest.approx(0.468, abs=5e-4)
    assert float(PAPER(0.844, 1.4)) == pytest.approx(0.655, abs=5e-4)
    assert float(PAPER(0.867, 1.0)) == pytest.approx(0.514, abs=5e-4)


@pytest.mark.parametrize(("accuracy", "offloaded"), [(0.827, 0.81), (0.833, 0.95)])
def test_the_papers_average_accuracy_gives_its_offload(accuracy: float, offloaded: float) -> None:
    # In units of Th_0, with 1.4 Th_0 in all.
    found = average_accuracy(0.867, accuracy, np.array([1.4 - offloaded]), np.array([offloaded]))
    assert float(found[0]) == pytest.approx(0.844, abs=5e-4)


@pytest.mark.parametrize(("offloaded", "row"), [(0.81, 0.50), (0.95, 0.58)])
def test_the_papers_offload_and_ratio_give_its_local_row(offloaded: float, row: float) -> None:
    # T0 = 1, and a host that lends as much as is offloaded.
    th_l, th_h = pair_throughput(1.0, row, 1.0, offloaded)
    assert (float(th_h), float(th_l + th_h)) == pytest.approx((offloaded, 1.4), abs=0.01)


def test_the_knee_is_worth_half_and_is_no_floor() -> None:
    assert float(PAPER.xi(0.86)) == 0.5
    assert 0 < float(PAPER.xi(0.5)) < float(PAPER.xi(0.86)) < float(PAPER.xi(1.0)) < 1


def test_near_the_knee_a_point_weighs_four_percent_of_throughput() -> None:
    assert float(PAPER.xi(0.86) / PAPER.xi(0.85)) == pytest.approx(1.04, abs=0.002)


@given(st.floats(0.1, 10), st.floats(0.5, 3))
def test_the_exponent_bends_throughput_alone(ratio: float, exponent: float) -> None:
    bent = Reward(0.86, exponent=exponent)
    assert float(bent(0.8, ratio)) == pytest.approx(float(bent.xi(0.8)) * ratio**exponent)
    assert float(bent(0.8, 1.0)) == pytest.approx(float(PAPER(0.8, 1.0)))


def test_a_pairs_reward_is_that_of_its_mixed_traffic() -> None:
    # T0 = 10 ms, tau_l = 5 ms, tau_h = 8 ms, kappa = 0.4: 75 own and 50 offloaded samples a second.
    found = pair_reward(PAPER, 0.867, np.array([0.827]), 0.010, np.array([0.005]), np.array([0.008]), 0.4)
    assert float(found[0]) == pytest.approx(float(PAPER((75 * 0.867 + 50 * 0.827) / 125, 1.25)))


def test_pairs_broadcast_over_accuracies_and_paths() -> None:
    accuracies = np.array([[0.8, 0.85], [0.7, 0.9], [0.6, 0.5]])
    tau_l, tau_h = np.array([0.2, 0.5]), np.array([0.4, 0.1])
    found = pair_reward(PAPER, 0.867, accuracies, 1.0, tau_l, tau_h, 1.0)
    assert found.shape == (3, 2)
    for row, column in np.ndindex(3, 2):
        one = pair_reward(PAPER, 0.867, accuracies[row, [column]], 1.0, tau_l[[column]], tau_h[[column]], 1.0)
        assert float(found[row, column]) == pytest.approx(float(one[0]))


def test_a_path_that_frees_no_time_is_worth_the_original() -> None:
    found = pair_reward(PAPER, 0.867, np.array([0.9]), 1.0, np.array([1.2]), np.array([0.1]), 1.0)
    assert float(found[0]) == pytest.approx(float(PAPER(0.867, 1.0)))
