"""When a path counts as drifted: by what it shares with the original on the same images."""

import numpy as np
import pytest

from code_ray.drift import LEAST, WINDOW, DriftWatch


def first_drift(watch: DriftWatch, agreement: float, images: int, requests: int, seed: int = 0) -> int | None:
    """Images until the watch cries, of a path that agrees on this share of them."""
    rng = np.random.default_rng(seed)
    for number in range(requests):
        if watch.add(images, int((rng.random(images) < agreement).sum())):
            return (number + 1) * images
    return None


@pytest.mark.parametrize("agreement", [1.0, 0.95, 0.8, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_a_path_that_agrees_as_it_used_to_is_never_called_drifted(agreement: float, seed: int) -> None:
    assert first_drift(DriftWatch(agreement), agreement, 8, 5000, seed) is None
    assert first_drift(DriftWatch(None), agreement, 8, 5000, seed) is None


@pytest.mark.parametrize("known", [True, False], ids=["known from the plan", "seen first"])
def test_a_path_that_agrees_much_less_is_found_within_a_window(known: bool) -> None:
    watch = DriftWatch(0.95 if known else None)
    if not known:
        assert first_drift(watch, 0.95, 10, WINDOW // 10) is None
    found = first_drift(watch, 0.6, 10, 200)
    assert found is not None
    assert found <= WINDOW


def test_few_images_say_nothing_however_bad_they_are() -> None:
    watch = DriftWatch(1.0)
    assert first_drift(watch, 0.0, 1, LEAST - 1) is None
    assert watch.add(1, 0)


def test_what_lies_a_window_back_is_forgotten() -> None:
    watch = DriftWatch(0.9)
    assert first_drift(watch, 1.0, 10, 500) is None
    assert first_drift(watch, 0.2, 10, 100) is not None
    # A path that recovers is as good as before.
    for _ in range(WINDOW // 10 + 1):
        watch.add(10, 9)
    assert first_drift(watch, 0.9, 10, 300, seed=1) is None


def test_one_large_request_is_a_window_of_its_own() -> None:
    watch = DriftWatch(0.9)
    assert not watch.add(10 * WINDOW, 9 * WINDOW)
    assert watch.add(10 * WINDOW, 5 * WINDOW)
