"""Ten thousand requests that are not what they should be, over real HTTP and bare sockets.

python -m benchmarks.serving.malformed [--requests 10000] [--seed 0] [--profile default|throughput]

A client's fault is answered by a 4xx status, no process of the server dies, and after each hundred a good request is answered.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import socket
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from benchmarks.serving.processes import PROFILES, process_ids, proxy_ids
from code_ray.client import Client
from code_ray.data import load_data
from code_ray.framing import HEADER_LENGTH
from code_ray.plan import read_plan
from code_ray.wire import encode_request
from deployments.config import DEFAULT_RUN_DIR
from examples.demo import deployed, say
from examples.load import Images

AT_ONCE, EVERY = 16, 100


@dataclass(frozen=True)
class Malformed:
    """What to send. ``raw``: bytes for a bare socket, in place of an HTTP request."""

    kind: str
    path: str = ""
    method: str = "POST"
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None


class Maker:
    """Makes malformed requests for a service that takes ``images`` (n, ...), uint8."""

    def __init__(self, service: str, images: Images, seed: int) -> None:
        self._route = f"/v2/models/{service}/infer"
        self._body, self._headers = encode_request(images)
        self._length = int(self._headers[HEADER_LENGTH])
        self._random = random.Random(seed)
        self._kinds: list[Callable[[], Malformed]] = [
            self._truncated,
            self._too_long,
            self._bytes_changed,
            self._header_length,
            self._field,
            self._bomb,
            self._data_in_json,
            self._content_type,
            self._picture,
            self._address,
            self._cut_off,
            self._no_http,
        ]

    def make(self, number: int) -> Malformed:
        """Request ``number``; every kind comes equally often."""
        return self._kinds[number % len(self._kinds)]()

    def _send(self, kind: str, body: bytes, **headers: str) -> Malformed:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Malformed(kind, self._route, "POST", body, self._headers | named)

    def _json(self, kind: str, header: Any, tail: bytes = b"") -> Malformed:
        text = json.dumps(header).encode()
        return self._send(kind, text + tail, Inference_Header_Content_Length=str(len(text)))

    def _header(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._body[: self._length])
        return found

    def _truncated(self) -> Malformed:
        return self._send("truncated", self._body[: self._random.randrange(len(self._body) - 1)])

    def _too_long(self) -> Malformed:
        return self._send("too long", self._body + self._random.randbytes(self._random.randrange(1, 5000)))

    def _bytes_changed(self) -> Malformed:
        body = bytearray(self._body)
        for _ in range(self._random.randrange(1, 6)):
            body[self._random.randrange(self._length)] = self._random.randrange(256)
        return self._send("header bytes changed", bytes(body))

    def _header_length(self) -> Malformed:
        huge, after = "999999999999999999999", str(self._length + 1)
        values = ["-1", "0", "1", huge, "abc", "1e3", "\u0663", "", " ", "0x10", after, "1.5", "+5", "1_0"]
        return Malformed("header length", self._route, "POST", self._body, self._headers | {HEADER_LENGTH: self._random.choice(values)})

    def _field(self) -> Malformed:
        header, pick = self._header(), self._random.choice
        odd: list[Any] = [None, True, -1, 0, 1e308, 10**30, "x" * 1000, [], {}, [[[]]], [1, "a"], {"a": {"b": []}}, "\u0000", "UINT8"]
        place: Any = pick([header, header["inputs"][0], header["inputs"][0]["parameters"], header["parameters"]])
        key = pick([*place, "unknown"])
        if self._random.random() < 0.3:
            place.pop(key, None)
        elif key == "shape" and self._random.random() < 0.7:
            place[key] = pick([[0, 28, 28], [-1, 28, 28], [10**9, 28, 28], [1, 28], [1.5, 28, 28], [2**63, 2**63], [1] * 5000])
        else:
            place[key] = pick(odd)
        return self._json("a field of the header", header, self._body[self._length :])

    def _bomb(self) -> Malformed:
        depth = self._random.choice([100, 10_000, 200_000])
        text = self._random.choice(
            [b"[" * depth, b'{"a":' * depth, b'{"inputs":' + b"[" * depth + b"]" * depth + b"}", b"9" * depth, b'"' + b"\\u0000" * depth]
        )
        media = self._random.choice(["application/json", "application/octet-stream"])
        return self._send("JSON bomb", text, Content_Type=media, Inference_Header_Content_Length=str(len(text)))

    def _data_in_json(self) -> Malformed:
        data = self._random.choice(
            [[], [1, 2], [None] * 784, ["1"] * 784, [float("nan")] * 784, [1e999] * 784, [256] * 784, [-1] * 784, [[1]] * 784, "AAAA", {}]
        )
        tensor = {
            "name": "images",
            "shape": [1, 28, 28],
            "datatype": self._random.choice(["UINT8", "FP32", "BYTES", "INT64"]),
            "data": data,
        }
        text = json.dumps({"inputs": [tensor]}).encode()
        return Malformed("data in JSON", self._route, "POST", text, {"Content-Type": "application/json"})

    def _content_type(self) -> Malformed:
        media = self._random.choice(["text/html", "application/xml", "multipart/form-data", "image/gif", "a/b;" + "c" * 4000, ""])
        encoding = self._random.choice(["identity", "gzip", "br", "\u00ff"])
        body = zlib.compress(self._body) if encoding == "gzip" else self._body
        kept = {"Content-Type": media or "nonsense"} | ({"Content-Encoding": encoding} if encoding != "identity" else {})
        return Malformed("content type", self._route, "POST", body, kept)

    def _picture(self) -> Malformed:
        start = self._random.choice([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b""])
        # An IHDR that announces a picture of 4 billion pixels a side.
        bomb = b"\x00\x00\x00\rIHDR\xff\xff\xff\xff\xff\xff\xff\xff\x08\x02\x00\x00\x00" if self._random.random() < 0.5 else b""
        media = self._random.choice(["image/png", "image/jpeg"])
        return Malformed("picture", self._route, "POST", start + bomb + self._random.randbytes(200), {"Content-Type": media})

    def _address(self) -> Malformed:
        path = self._random.choice(
            ["/v2/models/nothing/infer", "/", "/v2/models//infer", "/v2/" + "a/" * 500, "/v2/models/%00/infer", "/v3"]
        )
        method = self._random.choice(["POST", "PUT", "DELETE", "PATCH"])
        return Malformed("address or method", path, method, self._body, self._headers)

    def _cut_off(self) -> Malformed:
        """A body that its sender does not finish."""
        head = (
            f"POST {self._route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(self._body)}\r\n\r\n"
        )
        return Malformed("cut off", raw=head.encode() + self._body[: self._random.randrange(len(self._body))])

    def _no_http(self) -> Malformed:
        lines = [b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 50, b"POST /v2 HTTP/1.1\r\nContent-Length: -5\r\n\r\n", b"A" * 20_000]
        lines += [
            b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
            b"GET /v2 HTTP/1.1\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        ]
        return Malformed("no HTTP", raw=self._random.choice([*lines, self._random.randbytes(500)]))


@dataclass
class Outcome:
    """Counts of (kind, status); ``wrong`` describes what must not be."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


async def run(url: str, service: str, images: Images, requests: int, seed: int) -> Outcome:
    """Send ``requests`` malformed ones, ``AT_ONCE`` at a time, and a good one after each hundred."""
    maker, outcome = Maker(service, images, seed), Outcome()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        for first in range(0, requests, EVERY):
            hundred = [maker.make(number) for number in range(first, min(first + EVERY, requests))]
            limit = asyncio.Semaphore(AT_ONCE)

            async def one(malformed: Malformed, limit: asyncio.Semaphore = limit) -> None:
                async with limit:
                    status = await send(session, url, malformed)
                outcome.statuses[malformed.kind, status] += 1
                if status >= 500 or (status == 0 and malformed.raw is None):
                    outcome.wrong.append(f"{malformed.kind}: status {status} for {malformed.headers} {malformed.body[:200]!r}")

            await asyncio.gather(*map(one, hundred))
            try:
                await asyncio.to_thread(_good, url, service, images)
            except ValueError as error:
                outcome.wrong.append(f"a good request after {first + len(hundred)} others: {error}")
    return outcome


def _good(url: str, service: str, images: Images) -> None:
    with Client(url, retries=0) as client:
        client.predict(service, images)


async def send(session: aiohttp.ClientSession, url: str, malformed: Malformed) -> int:
    """Status of the answer, 0 where the connection ended without one."""
    if malformed.raw is not None:
        return await _send_raw(url, malformed.raw)
    try:
        async with session.request(
            malformed.method, url + malformed.path, data=io.BytesIO(malformed.body), headers=malformed.headers
        ) as response:
            await response.read()
            return response.status
    except (aiohttp.ClientError, TimeoutError):
        return 0


async def _send_raw(url: str, raw: bytes) -> int:
    """Status of the answer, 0 where the connection ended without one, as it may."""
    parts = urlsplit(url)
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(raw)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write_eof()
        first = await asyncio.wait_for(reader.readline(), 30)
        writer.close()
    except (OSError, TimeoutError):
        return 0
    words = first.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


async def slow_clients(url: str, service: str, images: Images, count: int, seconds: float) -> float:
    """``count`` clients that send a byte a second for so long; returns what a good request takes meanwhile, at most."""
    parts = urlsplit(url)
    sockets = [socket.create_connection((parts.hostname, parts.port)) for _ in range(count)]
    for one in sockets:
        one.sendall(f"POST /v2/models/{service}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode())
    slowest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        for one in sockets:
            one.sendall(b"x")
        began = time.monotonic()
        await asyncio.to_thread(_good, url, service, images)
        slowest = max(slowest, time.monotonic() - began)
        await asyncio.sleep(1.0)
    for one in sockets:
        one.close()
    return slowest


def main() -> int:
    """0 where all holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", choices=PROFILES, default="default")
    options = parser.parse_args()
    os.environ |= PROFILES[options.profile]
    service, images = read_plan(DEFAULT_RUN_DIR / "plan.json").local, load_data("fashion-mnist").test.images[:2]
    with deployed(DEFAULT_RUN_DIR) as url:
        before = process_ids("ray::ServeReplica") | proxy_ids()
        outcome = asyncio.run(run(url, service, images, options.requests, options.seed))
        say("and a hundred clients that send a byte a second")
        slowest = asyncio.run(slow_clients(url, service, images, 100, 10.0))
        died = before - process_ids("ray::ServeReplica") - proxy_ids()
    counts = [f"{kind:22} {status or 'no answer'}: {count}" for (kind, status), count in sorted(outcome.statuses.items())]
    print("\n".join([*counts, *outcome.wrong[:20]]))
    print(f"{sum(outcome.statuses.values())} malformed requests, {len(outcome.wrong)} handled wrongly, {len(died)} processes died")
    print(f"beside a hundred slow clients a good request took {slowest:.2f} s at most")
    return int(bool(outcome.wrong or died))


if __name__ == "__main__":
    sys.exit(main())
