"""Forecasts of what untrained paths would lose, and what is expected of them."""

import numpy as np
import pytest

from code_ray.acquisition import NODES, expected_improvement
from code_ray.forecast import UNKNOWN_STD, UNKNOWN_Z
from code_ray.plain_predictors import ConstantPredictor, RidgePredictor
from code_ray.predictor import ERROR_STD, GaussianProcessPredictor, Measured, Predictor
from code_ray.reward import Reward, pair_reward
from code_ray.throughput import FloatArray

REWARD = Reward(0.86)
MEAN = np.array([0.89, 0.8, 0.7, 0.6])
NOTHING = Measured({}, {})


def rewards(accuracies: FloatArray) -> FloatArray:
    """The paper's reward of four paths, faster ones less accurate; not linear in the accuracy."""
    tau_l, tau_h = np.array([0.9, 0.5, 0.2, 0.1]), np.array([0.1, 0.3, 0.6, 0.4])
    return pair_reward(REWARD, 0.867, accuracies, 1.0, tau_l, tau_h, 1.0)


def at_nodes(mean: FloatArray, std: float) -> FloatArray:
    """What a prediction comes out as where it is looked at, (len(NODES), n)."""
    return np.asarray(mean + NODES[:, None] * std)


@pytest.mark.parametrize("best", [0.5, 0.7])
@pytest.mark.parametrize("std", [0.02, 0.05])
def test_expected_improvement_is_what_sampling_finds(best: float, std: float) -> None:
    drawn = rewards(np.random.default_rng(0).normal(MEAN, std, (200_000, 4)))
    sampled = best * np.log(np.maximum(drawn, best) / best).mean(axis=0)
    assert sampled.max() > 0.01
    # The reward jumps at its limit: three places cannot tell how often a path stays above it to more than a third of its gain.
    assert np.allclose(expected_improvement(rewards(at_nodes(MEAN, std)), best), sampled, atol=0.005, rtol=0.35)


def test_expected_improvement_without_doubt_is_the_logarithm_of_the_gain() -> None:
    found = expected_improvement(rewards(at_nodes(MEAN, 0.0)), 0.6)
    assert np.allclose(found, 0.6 * np.log(np.maximum(rewards(MEAN) / 0.6, 1.0)))


def test_a_small_gain_counts_in_units_of_the_objective_and_a_hundredfold_one_far_less() -> None:
    small, large = expected_improvement(np.array([[2.002, 200.0]] * len(NODES)), 2.0)
    assert small == pytest.approx(0.002, rel=1e-3)
    assert large < 10


def test_more_doubt_is_worth_more_where_no_gain_is_forecast() -> None:
    found = [float(expected_improvement(at_nodes(np.array([0.5]), std), 0.6)[0]) for std in (0.0, 0.05, 0.1, 0.2)]
    assert found[0] == 0
    assert found == sorted(found)
    assert found[-1] > 0.01


def test_what_is_ruled_out_is_expected_to_gain_nothing() -> None:
    assert expected_improvement(np.full((len(NODES), 1), -np.inf), 1.0)[0] == 0.0


def wave(x: FloatArray) -> FloatArray:
    return np.asarray(1.0 + 0.5 * np.sin(3 * x))


def test_the_gp_learns_a_smooth_function_and_doubts_what_is_far() -> None:
    x = np.array([*np.linspace(0, 1, 12), 0.3, 0.77, 3.0])
    mean, std = GaussianProcessPredictor(x[:, None], classes=0, seed=0).predict(Measured(dict(enumerate(wave(x[:12]))), {}), [12, 13, 14])
    assert np.allclose(mean[:2], wave(x[12:14]), atol=0.05)
    # Besides, each path may turn out other than its score says.
    assert std[2] ** 2 - ERROR_STD**2 > 9 * (std[:2].max() ** 2 - ERROR_STD**2)


@pytest.mark.parametrize("scored", [1, 2, 5])
def test_the_gp_takes_one_score_and_equal_scores(scored: int) -> None:
    features = np.linspace(0, 1, 14).reshape(7, 2)
    mean, std = GaussianProcessPredictor(features, classes=0, seed=0).predict(Measured(dict.fromkeys(range(scored), 0.8), {}), [5, 6])
    assert np.allclose(mean, 0.8)
    assert np.isfinite(std).all()
    assert (std > 0).all()


@pytest.mark.parametrize("kind", [GaussianProcessPredictor, RidgePredictor, ConstantPredictor])
def test_before_anything_was_measured_every_path_is_as_unknown_as_any(kind: type[Predictor]) -> None:
    mean, std = kind(np.eye(3), 0, 0).predict(NOTHING, [0, 2])
    assert mean.tolist() == [UNKNOWN_Z] * 2
    doubt = 0.0 if kind is ConstantPredictor else ERROR_STD
    assert std == pytest.approx([np.hypot(UNKNOWN_STD, doubt)] * 2)


def test_until_something_was_trained_a_scored_path_is_forecast_as_its_score_says() -> None:
    forecasts = {0: 1.0, 1: 2.0, 2: 0.5, 4: 1.2}
    mean, std = GaussianProcessPredictor(np.linspace(0, 1, 6)[:, None], classes=0, seed=0).predict(Measured(forecasts, {}), [2, 1, 3])
    assert mean[:2].tolist() == [0.5, 2.0]
    assert std[:2] == pytest.approx([ERROR_STD] * 2)
    assert std[2] > ERROR_STD


def test_scores_tell_the_gp_of_paths_that_were_never_trained() -> None:
    # Scored everywhere, trained (0.3 more was lost) only on the left: the right is forecast by its scores, and that much more.
    x = np.linspace(0, 1, 11)
    forecasts = {i: float(z) for i, z in enumerate(1.0 + x)}
    model = GaussianProcessPredictor(x[:, None], classes=0, seed=0)
    mean, _ = model.predict(Measured(forecasts, {i: forecasts[i] + 0.3 for i in range(5)}), [9])
    assert forecasts[9] + 0.15 < mean[0] < forecasts[9] + 0.35


def test_how_far_scores_are_off_in_one_class_of_paths_says_little_of_another() -> None:
    # The first column is the class; in the first half, trained, scores were 1 too good.
    features = np.column_stack([np.repeat([0.0, 1.0], 6), np.tile(np.linspace(0, 1, 6), 2)])
    measured = Measured(dict.fromkeys(range(12), 1.0), dict.fromkeys(range(5), 2.0))
    mean, _ = GaussianProcessPredictor(features, classes=1, seed=0).predict(measured, [5, 11])
    assert mean[0] > 1.7
    assert mean[1] < 1.5


def test_how_far_scores_are_off_may_say_little_of_paths_that_come_back_elsewhere() -> None:
    # Columns: class, lout, lin, another. Trained are paths that come back at one block; what least squares lost is what training did.
    spot = np.tile(np.linspace(0, 0.2, 6), 2)
    features = np.column_stack([np.zeros(12), np.zeros(12), np.repeat([0.7, 0.85], 6), spot])
    measured = Measured(dict.fromkeys(range(12), 1.0), dict.fromkeys(range(5), 1.0))
    model = GaussianProcessPredictor(features, classes=1, seed=0)
    plain, by_return = model.predict(measured, [5, 11]), model.predict(measured, [5, 11], by_return=True)
    assert by_return[1][0] == pytest.approx(plain[1][0], rel=0.05)
    assert by_return[1][1] > 1.2 * plain[1][1]
    assert np.allclose([plain[0], by_return[0]], 1.0, atol=0.05)


def test_a_trained_path_is_what_it_turned_out_to_be_and_leaves_less_doubt_than_the_others() -> None:
    x = np.linspace(0, 1, 11)
    forecasts = {i: 1.0 + 0.1 * (i % 3) for i in range(11)}
    model = GaussianProcessPredictor(x[:, None], classes=0, seed=0)
    mean, std = model.predict(Measured(forecasts, {5: 0.4}), [5, 10])
    assert mean[0] == pytest.approx(0.4, abs=0.25)
    assert std[0] < std[1]


def test_a_training_that_was_stopped_moves_forecasts_less_than_one_that_ended() -> None:
    x = np.linspace(0, 1, 9)
    forecasts = dict.fromkeys(range(9), 1.0) | {0: 1.1}
    model = GaussianProcessPredictor(x[:, None], classes=0, seed=0)
    before, ended, stopped = (
        model.predict(measured, [4])
        for measured in (Measured(forecasts, {}), Measured(forecasts, {4: 2.0}), Measured(forecasts, {}, {4: (2.0, 0.4)}))
    )
    assert before[0][0] == 1.0 < stopped[0][0] < ended[0][0] <= 2.0
    assert stopped[1][0] > ended[1][0]


def test_what_was_asked_before_does_not_change_a_prediction() -> None:
    # Else a search that was resumed from its journal would go on otherwise than one that was not interrupted.
    rng = np.random.default_rng(0)
    features = rng.uniform(size=(30, 4))
    forecasts = {i: float(1.0 + features[i] @ [1.0, -0.5, 0.2, 0.0] + 0.05 * rng.normal()) for i in range(12)}
    asked, fresh = (GaussianProcessPredictor(features, classes=0, seed=0) for _ in range(2))
    asked.predict(Measured({i: forecasts[i] for i in range(10)}, {}), [20])
    for found, expected in zip(*(model.predict(Measured(forecasts, {}), [20, 25]) for model in (asked, fresh)), strict=True):
        assert found.tolist() == expected.tolist()


def test_ridge_learns_what_is_linear_and_takes_scored_paths_as_their_scores_say() -> None:
    features = np.random.default_rng(0).uniform(size=(60, 3))
    truth = 1.0 + features @ [1.0, -0.5, 0.2]
    forecasts = {i: float(truth[i]) for i in range(40)} | {5: 3.0}
    mean, std = RidgePredictor(features, classes=0, seed=0).predict(Measured(forecasts, {}), [5, *range(40, 60)])
    assert mean[0] == 3.0
    assert std[0] == pytest.approx(ERROR_STD)
    assert np.abs(mean[1:] - truth[40:]).max() < 0.2 < np.ptp(truth[40:])
    assert (std[1:] > ERROR_STD).all()


def test_ridge_learns_how_far_trained_paths_are_off_their_scores_and_doubts_less_the_more_it_saw() -> None:
    features = np.linspace(0, 1, 20)[:, None]
    forecasts = {i: 1.0 + 0.02 * i for i in range(20)}
    model = RidgePredictor(features, classes=0, seed=0)
    off = {i: forecasts[i] + 0.3 + 0.5 * features[i, 0] for i in range(12)}
    few, many = (model.predict(Measured(forecasts, {i: off[i] for i in range(n)}), [19]) for n in (2, 12))
    assert many[0][0] == pytest.approx(forecasts[19] + 0.8, abs=0.1)
    assert ERROR_STD > few[1][0] > many[1][0] > 0
    stopped = model.predict(Measured(forecasts, {}, {i: (off[i], 0.4) for i in range(12)}), [19])
    assert stopped[0][0] == many[0][0]


@pytest.mark.parametrize("kind", [GaussianProcessPredictor, RidgePredictor, ConstantPredictor])
def test_a_rough_forecast_is_of_any_features(kind: type[Predictor]) -> None:
    features = np.random.default_rng(0).uniform(size=(30, 3))
    truth = 1.0 + features @ [1.0, -0.5, 0.2]
    measured = Measured({i: float(truth[i]) for i in range(20)}, {0: float(truth[0]), 1: float(truth[1])})
    smooth, std = kind(features, 0, 0).rough(measured)
    found = smooth(features[20:])
    assert found.shape == (10,)
    assert std > 0
    assert (np.corrcoef(found, truth[20:])[0, 1] > 0.9) if kind.uses_scores else np.allclose(found, truth[:2].mean())


def test_the_constant_predictor_forecasts_the_average_of_what_was_trained_everywhere() -> None:
    finals = {0: 0.5, 1: 0.6, 4: 0.7}
    mean, std = ConstantPredictor(np.zeros((5, 1)), classes=0, seed=0).predict(Measured({2: 3.0}, finals), [2, 3])
    assert np.allclose(mean, 0.6)
    assert np.allclose(std, np.std([0.5, 0.6, 0.7]))
