"""What a request may ask for beside labels: accuracy, time, and the form of its answer (DESIGN 3.5)."""

import json
import math

import numpy as np
import pytest
from test_routes import SECONDS, TINY, reports

from code_ray.errors import RequestError
from code_ray.framing import HEADER_LENGTH
from code_ray.policy import ORIGINAL, fitting_paths
from code_ray.wire import InferRequest, decode_request, encode_request, encode_response
from deployments.under_way import UnderWay


def test_what_a_request_needs_comes_through() -> None:
    body, headers = encode_request(np.zeros((1, 3, 2), np.uint8), min_accuracy=0.9, deadline_ms=250)
    request = decode_request(body, headers[HEADER_LENGTH], (3, 2), 4)
    assert (request.path, request.min_accuracy, request.deadline_s) == (None, 0.9, 0.25)
    body, headers = encode_request(np.zeros((1, 3, 2), np.uint8))
    request = decode_request(body, headers[HEADER_LENGTH], (3, 2), 4)
    assert (request.min_accuracy, request.deadline_s) == (None, None)


@pytest.mark.parametrize("name", ["min_accuracy", "deadline_ms"])
@pytest.mark.parametrize("value", [0, -1, True, "0.5", [], float("nan"), float("inf"), 1e30])
def test_needs_that_nobody_can_meet_are_refused(name: str, value: object) -> None:
    tensor = {"name": "images", "shape": [1, 3, 2], "datatype": "UINT8", "data": [0] * 6}
    with pytest.raises(RequestError, match=f"'parameters.{name}' must be a number above 0, at most") as caught:
        decode_request(json.dumps({"inputs": [tensor], "parameters": {name: value}}).encode(), None, (3, 2), 4)
    assert caught.value.status == 422


ACCURACIES = {ORIGINAL: 0.94, "a": 0.92, "b": 0.93}
EXPECTED_S = {ORIGINAL: 0.3, "a": 0.1, "b": 0.2}


def limits(deadline_s: float | None) -> dict[str, float]:
    return dict.fromkeys(ACCURACIES, math.inf if deadline_s is None else deadline_s)


@pytest.mark.parametrize(
    ("min_accuracy", "deadline_s", "fitting"),
    [
        (None, None, [ORIGINAL, "b", "a"]),
        (0.925, None, [ORIGINAL, "b"]),
        (0.94, None, [ORIGINAL]),
        (None, 0.25, ["b", "a"]),
        (0.925, 0.25, ["b"]),
        (None, 0.1, ["a"]),
    ],
)
def test_paths_fit_by_accuracy_and_by_time(min_accuracy: float | None, deadline_s: float | None, fitting: list[str]) -> None:
    assert fitting_paths(ACCURACIES, EXPECTED_S, min_accuracy, limits(deadline_s)) == fitting


def test_an_accuracy_that_no_path_has_is_the_clients_fault() -> None:
    with pytest.raises(RequestError, match=r"no path has min_accuracy 0.95; the most accurate has 0.9400") as caught:
        fitting_paths(ACCURACIES, EXPECTED_S, 0.95, limits(None))
    assert (caught.value.status, caught.value.retry_after_s) == (422, None)


def test_a_deadline_that_no_path_meets_is_refused_at_once_with_the_time_to_wait() -> None:
    with pytest.raises(RequestError, match="an answer would take 300 ms, which exceeds 50") as caught:
        fitting_paths(ACCURACIES, EXPECTED_S, 0.94, limits(0.05))
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


def test_a_request_waits_behind_what_is_under_way_on_its_servers() -> None:
    original, cross = TINY[0], TINY[1]
    under_way, known = UnderWay(share=1.0), reports(SECONDS)
    assert under_way.expected(original, original.work(10, known)) == pytest.approx(0.1)
    assert under_way.expected(cross, cross.work(10, known)) == pytest.approx(0.08)
    work = original.work(100, known)
    assert work == {"home": pytest.approx(1.0)}
    under_way.add(work)
    assert under_way.expected(original, original.work(10, known)) == pytest.approx(1.1)
    assert under_way.expected(cross, cross.work(10, known)) == pytest.approx(1.08)
    under_way.remove(work)
    assert under_way.expected(cross, cross.work(10, known)) == pytest.approx(0.08)


def test_one_of_two_routers_counts_what_it_sees_twice() -> None:
    under_way, known = UnderWay(share=0.5), reports(SECONDS)
    under_way.add(TINY[0].work(100, known))
    assert under_way.expected(TINY[0], TINY[0].work(10, known)) == pytest.approx(2.1)


def test_of_a_route_that_is_not_up_nothing_is_known() -> None:
    assert TINY[0].work(10, {}) == {}
    assert UnderWay(1.0).expected(TINY[0], {}) == 0


def test_an_answer_may_be_json_in_part() -> None:
    request = InferRequest(np.zeros((2, 3, 2), np.uint8), binary=frozenset({"logits"}))
    value = np.eye(2, 3, dtype=np.float32)
    body, headers = encode_response("service", request, value, ("a", "b", "c"), "original", "original")
    length = int(headers[HEADER_LENGTH])
    numbers, label = json.loads(body[:length])["outputs"]
    assert numbers["parameters"] == {"binary_data_size": value.nbytes}
    assert body[length:] == value.tobytes()
    assert label["data"] == ["a", "b"]
