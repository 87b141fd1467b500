"""The wire: round trips, and what a malformed message is told (DESIGN 3.5, 3.6)."""

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from code_ray.errors import RequestError
from code_ray.framing import HEADER_LENGTH
from code_ray.wire import OUTPUTS, InferRequest, decode_request, decode_response, encode_request, encode_response

SHAPE = (3, 2)
MAX_IMAGES = 4
LABELS = ("cat", "dög", "")
TENSOR: dict[str, Any] = {"name": "images", "shape": [1, 3, 2], "datatype": "UINT8", "data": list(range(6))}


def decode(body: bytes, length: str | None = None) -> InferRequest:
    return decode_request(body, length, SHAPE, MAX_IMAGES)


def json_body(message: dict[str, Any] | None = None, **tensor: Any) -> bytes:
    """A JSON request of one image, with these fields of its tensor and of the message replaced."""
    return json.dumps({"inputs": [TENSOR | tensor]} | (message or {})).encode()


def binary_body(raw: bytes, **tensor: Any) -> tuple[bytes, str]:
    """A binary request with these fields of its tensor replaced, and its header's length."""
    fields = {"name": "images", "shape": [1, 3, 2], "datatype": "UINT8", "parameters": {"binary_data_size": len(raw)}}
    header = json.dumps({"inputs": [fields | tensor]}).encode()
    return header + raw, str(len(header))


images = st.integers(1, MAX_IMAGES).flatmap(lambda n: arrays.arrays(np.uint8, (n, *SHAPE)))
floats = st.integers(1, MAX_IMAGES).flatmap(
    lambda n: arrays.arrays(np.float32, (n, *SHAPE), elements=st.floats(0, 1, width=32, allow_subnormal=False))
)


@given(images, st.none() | st.text(min_size=1))
def test_binary_requests_come_through(value: npt.NDArray[np.uint8], path: str | None) -> None:
    body, headers = encode_request(value, path=path)
    request = decode(body, headers[HEADER_LENGTH])
    assert request.images.dtype == np.uint8
    assert np.array_equal(request.images, value)
    assert (request.path, request.binary, request.outputs) == (path, frozenset({"logits", "label"}), ("logits", "label"))


@given(images | floats, st.booleans(), st.none() | st.text())
def test_json_requests_come_through_flat_or_nested(value: npt.NDArray[Any], nested: bool, identifier: str | None) -> None:
    datatype = "UINT8" if value.dtype == np.uint8 else "FP32"
    data = value.tolist() if nested else value.ravel().tolist()
    request = decode(json_body({"id": identifier}, shape=list(value.shape), datatype=datatype, data=data))
    assert request.images.dtype == value.dtype
    assert np.array_equal(request.images, value)
    assert (request.id, request.path, request.binary) == (identifier, None, frozenset())


@given(floats)
def test_binary_floats_come_through_as_little_endian(value: npt.NDArray[np.float32]) -> None:
    body, length = binary_body(value.astype("<f4").tobytes(), shape=list(value.shape), datatype="FP32")
    assert np.array_equal(decode(body, length).images, value)


def test_an_array_that_is_not_contiguous_is_sent_as_it_looks() -> None:
    value = np.arange(24, dtype=np.uint8).reshape(2, 2, 6)[:, :, ::2].transpose(0, 2, 1)
    body, headers = encode_request(value)
    assert np.array_equal(decode(body, headers[HEADER_LENGTH]).images, value)


logits = st.integers(1, MAX_IMAGES).flatmap(
    lambda n: arrays.arrays(np.float32, (n, len(LABELS)), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False))
)


@given(logits, st.text())
def test_binary_answers_come_through(value: npt.NDArray[np.float32], path: str) -> None:
    request = InferRequest(np.zeros((len(value), *SHAPE), np.uint8), binary=frozenset(OUTPUTS))
    body, headers = encode_response("service", request, value, LABELS, path, "cross")
    labels, found, taken = decode_response(body, {name.lower(): text for name, text in headers.items()})
    assert labels == [LABELS[i] for i in value.argmax(axis=1)]
    assert np.array_equal(found, value)
    assert taken == path


@given(logits)
def test_json_answers_hold_what_was_asked_for(value: npt.NDArray[np.float32]) -> None:
    request = InferRequest(np.zeros((len(value), *SHAPE), np.uint8), id="seven", outputs=("label", "logits"))
    body, headers = encode_response("service", request, value, LABELS, "original", "original")
    answer = json.loads(body)
    assert headers == {"Content-Type": "application/json"}
    assert (answer["id"], answer["model_name"], answer["parameters"]) == ("seven", "service", {"path": "original", "kind": "original"})
    label, numbers = answer["outputs"]
    assert (label["name"], label["datatype"], label["shape"]) == ("label", "BYTES", [len(value)])
    assert np.array_equal(np.float32(numbers["data"]).reshape(numbers["shape"]), value)


@pytest.mark.parametrize(
    ("outputs", "names", "binary"),
    [
        ([], ("logits", "label"), set()),
        ([{"name": "label"}], ("label",), set()),
        ([{"name": "logits", "parameters": {"binary_data": True}}], ("logits",), {"logits"}),
        ([{"name": "label"}, {"name": "label"}, {"name": "logits"}], ("label", "logits"), set()),
        ([{"name": "label"}, {"name": "logits", "parameters": {"binary_data": True}}], ("label", "logits"), {"logits"}),
    ],
)
def test_outputs_can_be_chosen(outputs: list[dict[str, Any]], names: tuple[str, ...], binary: set[str]) -> None:
    request = decode(json_body({"outputs": outputs}))
    assert (request.outputs, request.binary) == (names, frozenset(binary))


@pytest.mark.parametrize("shape", [[1, 2, 3], [3, 2], [1, 6], [1, 3, 2, 1], [0, 3, 2], []], ids=str)
def test_another_shape_is_422_and_says_what_is_taken(shape: list[int]) -> None:
    with pytest.raises(RequestError, match=r"this service takes \[-1, 3, 2\], at least one image") as caught:
        decode(json_body(shape=shape))
    assert caught.value.status == 422


@pytest.mark.parametrize("datatype", ["FP64", "uint8", "", None, 8, ["UINT8"], {"UINT8": 1}], ids=str)
def test_another_datatype_is_422(datatype: Any) -> None:
    with pytest.raises(RequestError, match="send UINT8, or FP32 scaled to") as caught:
        decode(json_body(datatype=datatype))
    assert caught.value.status == 422


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_pixels_that_are_not_finite_are_422(bad: float) -> None:
    data = [0.5, bad, 0, 0, 0, 0]
    requests: list[tuple[bytes, str | None]] = [(json_body(datatype="FP32", data=data), None)]
    if abs(bad) != 1e39:
        requests.append(binary_body(np.array(data, "<f4").tobytes(), datatype="FP32"))
    for body, length in requests:
        with pytest.raises(RequestError, match="send finite pixels") as caught:
            decode(body, length)
        assert caught.value.status == 422


@pytest.mark.parametrize("bad", [-1, 256, 0.5, np.nan, None, np.inf])
def test_bytes_out_of_range_are_422(bad: float | None) -> None:
    with pytest.raises(RequestError, match="whole numbers from 0 to 255") as caught:
        decode(json_body(data=[0, bad, 0, 0, 0, 0]))
    assert caught.value.status == 422


def test_too_many_images_are_413() -> None:
    for body, length in ((json_body(shape=[5, 3, 2], data=[0] * 30), None), binary_body(bytes(30), shape=[5, 3, 2])):
        with pytest.raises(RequestError, match="5 images in one request; at most 4 are taken") as caught:
            decode(body, length)
        assert caught.value.status == 413


SIZES: dict[str, tuple[bytes, str | None]] = {
    "too few numbers": (json_body(data=[0] * 5), None),
    "too many numbers": (json_body(data=[0] * 7), None),
    "ragged": (json_body(data=[[0, 1], [2, 3], [4]]), None),
    "no data": (json_body(datatype="FP32", data=None), None),
    "text": (json_body(data=["a"] * 6), None),
    "object": (json_body(data={"0": 1}), None),
    "huge number": (json_body(data=[10**400] + [0] * 5), None),
    "nested 100 deep": (json_body(data="X").replace(b'"X"', b"[" * 100 + b"]" * 100), None),
    "too few bytes": binary_body(bytes(5)),
    "too many bytes": binary_body(bytes(7)),
    "bytes of another datatype": binary_body(bytes(6), datatype="FP32"),
    "size beyond the body": binary_body(bytes(6), parameters={"binary_data_size": 7}),
    "size short of the body": binary_body(bytes(6), parameters={"binary_data_size": 5}),
    "negative size": binary_body(bytes(6), parameters={"binary_data_size": -1}),
    "size as text": binary_body(bytes(6), parameters={"binary_data_size": "6"}),
    "size true": binary_body(bytes(1), parameters={"binary_data_size": True}),
    "bytes without a size": binary_body(bytes(6), parameters={}),
    "JSON and bytes behind it": (json_body() + b"\0", str(len(json_body()))),
    "negative shape": (json_body(shape=[-1, 3, 2]), None),
    "huge shape": (json_body(shape=[2**31, 3, 2]), None),
    "fractional shape": (json_body(shape=[1.0, 3, 2]), None),
    "shape true": (json_body(shape=[True, 3, 2]), None),
    "shape as text": (json_body(shape="132"), None),
}


@pytest.mark.parametrize(("body", "length"), SIZES.values(), ids=SIZES.keys())
def test_sizes_that_do_not_match_are_400(body: bytes, length: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        decode(body, length)
    assert caught.value.status == 400


MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"hello",
    "not UTF-8": b'{"inputs": "\xff"}',
    "a list": b"[]",
    "null": b"null",
    "no inputs": b"{}",
    "two inputs": json.dumps({"inputs": [TENSOR, TENSOR]}).encode(),
    "an input that is none": b'{"inputs": [3]}',
    "no name": json_body(name=None),
    "a number of 5,000 digits": b'{"inputs": 1' + b"1" * 5000 + b"}",
    "nested without end": b'{"inputs": ' + b"[" * 1_000_000,
    "parameters that are none": json_body({"parameters": [1]}),
    "tensor parameters that are none": json_body(parameters="x"),
    "id": json_body({"id": 7}),
    "path": json_body({"parameters": {"path": ["a"]}}),
    "outputs": json_body({"outputs": "logits"}),
    "an unknown output": json_body({"outputs": [{"name": "probabilities"}]}),
    "an output without a name": json_body({"outputs": [{}]}),
    "an output's name": json_body({"outputs": [{"name": ["logits"]}]}),
    "an output's parameters": json_body({"outputs": [{"name": "logits", "parameters": 1}]}),
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_messages_are_400_and_quoted_briefly(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        decode(body)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("depth", range(900, 1050, 10))
def test_any_depth_of_nesting_is_400(depth: int) -> None:
    # Round the depth at which Python's parser, or the printing of what it read, gives up.
    for near in range(depth, depth + 10):
        with pytest.raises(RequestError):
            decode(b'{"inputs": ' + b"[" * near + b"]" * near + b"}")


@pytest.mark.parametrize("length", ["", "-1", "1e2", " 5", "٣", "99999999999999999999", "1000", "5", "0"])
def test_a_header_length_that_is_none_is_400(length: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode(json_body(), length)
    assert caught.value.status == 400


def check_only_request_errors(body: bytes, length: str | None) -> None:
    """A server may take a message or refuse it; anything else would be a 500."""
    try:
        outcome: object = decode(body, length).images.shape[1:]
    except RequestError as error:
        outcome = error.status
    assert outcome in (SHAPE, 400, 413, 422)


@given(st.binary(max_size=200), st.none() | st.text(max_size=8) | st.integers(-2, 300).map(str))
def test_arbitrary_bytes_raise_nothing_else(body: bytes, length: str | None) -> None:
    check_only_request_errors(body, length)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["UINT8", "FP32", "logits", "images"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "binary_data_size", "path", "data"]), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), values),
    st.dictionaries(st.sampled_from(["inputs", "outputs", "parameters", "id"]), values, max_size=2),
    st.binary(max_size=8),
)
def test_headers_of_anything_raise_nothing_else(tensor: dict[str, Any], message: dict[str, Any], tail: bytes) -> None:
    header = json_body(message, **tensor)
    check_only_request_errors(header + tail, str(len(header)))


@given(st.data())
def test_a_changed_byte_raises_nothing_else(data: st.DataObject) -> None:
    body, headers = encode_request(np.arange(12, dtype=np.uint8).reshape(2, *SHAPE), path="a")
    position = data.draw(st.integers(0, len(body) - 1))
    changed = body[:position] + bytes([data.draw(st.integers(0, 255))]) + body[position + 1 :]
    check_only_request_errors(changed, headers[HEADER_LENGTH])
    check_only_request_errors(body[:position], headers[HEADER_LENGTH])


@given(st.data())
def test_a_damaged_answer_is_read_or_502(data: st.DataObject) -> None:
    request = InferRequest(np.zeros((2, *SHAPE), np.uint8), binary=frozenset(OUTPUTS))
    body, headers = encode_response("service", request, np.eye(2, 3, dtype=np.float32), LABELS, "original", "original")
    position = data.draw(st.integers(0, len(body) - 1))
    changed = body[:position] + data.draw(st.binary(max_size=3)) + body[position + 1 :]
    for damaged in (changed, body[:position], data.draw(st.binary(max_size=50))):
        status = 200
        try:
            decode_response(damaged, {HEADER_LENGTH.lower(): headers[HEADER_LENGTH]})
        except RequestError as error:
            status = error.status
        assert status in (200, 502)
