"""Requests of services for text: what they may carry, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest
from texts import TEXT, VOCABULARY

from code_ray.errors import RequestError
from code_ray.framing import HEADER_LENGTH
from code_ray.wire import InferRequest, decode_request, encode_request

TEXTS = ["It was great.", "not my cup of tea, at all!", "Naïve, but SO charming €5 中文 \u200b don't", ""]


def decoded(body: bytes, headers: dict[str, str]) -> InferRequest:
    return decode_request(body, headers.get(HEADER_LENGTH), (48,), 8, "bert-uncased")


def test_texts_and_their_tokens_are_the_same_request() -> None:
    tokens = TEXT.encode(TEXTS)
    as_json = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(TEXTS)], "data": TEXTS}]}
    wide = {"inputs": [{"name": "ids", "datatype": "INT64", "shape": [len(TEXTS), 48], "data": tokens.tolist()}]}
    for body, headers in (
        encode_request(TEXTS),
        encode_request(tokens),
        (json.dumps(as_json).encode(), {}),
        (json.dumps(wide).encode(), {}),
    ):
        found = decoded(body, headers).images
        assert found.dtype == np.int32
        assert np.array_equal(found, tokens)


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"datatype": "UINT8", "shape": [1, 48]}, 422, "send BYTES, one text each, or token ids as INT32 or INT64"),
        ({"shape": [2]}, 400, "needs as many texts in UTF-8"),
        ({"shape": [0], "data": []}, 422, r"this service takes \[-1\], at least one text"),
        ({"shape": [9], "data": ["a"] * 9}, 413, "9 texts in one request; at most 8"),
        ({"data": [7]}, 400, "needs as many texts in UTF-8"),
        ({"datatype": "INT32", "shape": [1, 47], "data": [1] * 47}, 422, r"this service takes \[-1, 48\]"),
        ({"datatype": "INT32", "shape": [1, 48], "data": [VOCABULARY] * 48}, 422, "token ids must be from 0 to 30521"),
        ({"datatype": "INT32", "shape": [1, 48], "data": [-1] * 48}, 422, "token ids must be from 0 to 30521"),
        ({"datatype": "INT32", "shape": [1, 48], "data": [0] * 48}, 422, "not all of a text 0"),
        ({"datatype": "INT64", "shape": [1, 48], "data": [1.5] * 48}, 422, "INT64 data must be whole numbers"),
    ],
)
def test_what_is_no_text_is_refused(changes: dict[str, Any], status: int, reason: str) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["fine"], **changes}
    with pytest.raises(RequestError, match=reason) as refused:
        decoded(json.dumps({"inputs": [tensor]}).encode(), {})
    assert refused.value.status == status


@pytest.mark.parametrize("raw", [b"\x05\x00\x00\x00fin", b"\x02\x00\x00\x00\xff\xfe", b"\x01\x00", b"\xff\xff\xff\xffa"])
def test_bytes_that_are_no_texts_are_refused(raw: bytes) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    header = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(RequestError, match="needs as many texts in UTF-8"):
        decoded(header + raw, {HEADER_LENGTH: str(len(header))})
