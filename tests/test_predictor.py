"""Forecasts of accuracies and what is expected of them."""

import numpy as np
import pytest

from code_ray.acquisition import expected_improvement
from code_ray.predictor import ConstantPredictor, GaussianProcessPredictor
from code_ray.reward import Reward, pair_reward
from code_ray.throughput import FloatArray

REWARD = Reward(0.86)
MEAN = np.array([0.89, 0.8, 0.7, 0.6])


def rewards(accuracies: FloatArray) -> FloatArray:
    """The paper's reward of four paths, faster ones less accurate; not linear in the accuracy."""
    tau_l, tau_h = np.array([0.9, 0.5, 0.2, 0.1]), np.array([0.1, 0.3, 0.6, 0.4])
    return pair_reward(REWARD, 0.867, accuracies, 1.0, tau_l, tau_h, 1.0)


@pytest.mark.parametrize("best", [0.5, 0.7])
@pytest.mark.parametrize("std", [0.02, 0.05])
def test_expected_improvement_is_what_sampling_finds(best: float, std: float) -> None:
    drawn = np.clip(np.random.default_rng(0).normal(MEAN, std, (200_000, 4)), 0, 1)
    sampled = np.maximum(rewards(drawn) - best, 0).mean(axis=0)
    assert sampled.max() > 0.01
    assert np.allclose(expected_improvement(rewards, MEAN, np.full(4, std), best), sampled, atol=0.005)


def test_expected_improvement_without_doubt_is_the_gain_itself() -> None:
    found = expected_improvement(rewards, MEAN, np.zeros(4), 0.6)
    assert np.allclose(found, np.maximum(rewards(MEAN) - 0.6, 0))


def test_more_doubt_is_worth_more_where_no_gain_is_forecast() -> None:
    found = [expected_improvement(lambda a: a, np.array([0.5]), np.array([std]), 0.6)[0] for std in (0.0, 0.05, 0.1, 0.2)]
    assert found[0] == 0
    assert found == sorted(found)
    assert found[-1] > 0.01


def test_accuracies_are_never_imagined_outside_0_to_1() -> None:
    found = expected_improvement(lambda a: a, np.array([0.99]), np.array([0.5]), 0.9)
    assert found[0] <= 0.1


def test_what_is_ruled_out_is_expected_to_gain_nothing() -> None:
    assert expected_improvement(lambda a: np.full_like(a, -np.inf), np.array([0.5]), np.array([0.1]), 1.0)[0] == 0.0


def test_the_gp_learns_a_smooth_function_and_doubts_what_is_far() -> None:
    x = np.linspace(0, 1, 12)[:, None]
    model = GaussianProcessPredictor(1, seed=0)
    model.fit(x, 0.7 + 0.1 * np.sin(3 * x[:, 0]))
    asked = np.array([[0.3], [0.77], [3.0]])
    mean, std = model.predict(asked)
    assert np.allclose(mean[:2], 0.7 + 0.1 * np.sin(3 * asked[:2, 0]), atol=0.01)
    assert std[2] > 3 * std[:2].max()


def test_the_gp_takes_one_point_and_equal_points() -> None:
    model = GaussianProcessPredictor(2, seed=0)
    for rows in (1, 5):
        model.fit(np.linspace(0, 1, 2 * rows).reshape(rows, 2), np.full(rows, 0.8))
        mean, std = model.predict(np.zeros((3, 2)))
        assert np.allclose(mean, 0.8)
        assert np.isfinite(std).all()


def test_cheap_scores_tell_the_gp_of_paths_that_were_never_trained() -> None:
    # Fidelity 0 everywhere, fidelity 1 (5 points more) only on the left: the right is forecast by its cheap scores.
    x = np.linspace(0, 1, 11)
    cheap = 0.6 + 0.2 * x
    rows = np.vstack([np.column_stack([x, np.zeros(11)]), np.column_stack([x[:4], np.ones(4)])])
    model = GaussianProcessPredictor(2, seed=0)
    model.fit(rows, np.concatenate([cheap, cheap[:4] + 0.05]))
    mean, _ = model.predict(np.array([[0.9, 1.0]]))
    assert mean[0] == pytest.approx(0.6 + 0.2 * 0.9 + 0.05, abs=0.03)


def test_the_constant_predictor_forecasts_the_average_everywhere() -> None:
    model = ConstantPredictor()
    model.fit(np.zeros((3, 1)), np.array([0.5, 0.6, 0.7]))
    mean, std = model.predict(np.zeros((2, 1)))
    assert np.allclose(mean, 0.6)
    assert np.allclose(std, np.std([0.5, 0.6, 0.7]))
