"""What crosses the switch of a room: every frame, written to a file, and the bytes that connections carried, put together again.

python capture.py FILE, in the room's network: until its standard input ends; prints how many frames the kernel could not keep for it.
"""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEVICE = "switch"
BUFFER = 1 << 28
LONGEST = 1 << 17
"""Of a frame: between namespaces the kernel hands over what a card would cut in pieces."""
# From linux/if_packet.h and asm-generic/socket.h; Python does not name them.
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_STATISTICS, PACKET_MR_PROMISC, SO_RCVBUFFORCE = 263, 1, 6, 1, 33
ETH_P_ALL, IPV4, TCP, SYN = 3, b"\x08\x00", 6, 0x02


@dataclass(frozen=True)
class Stream:
    """One direction of a TCP connection: ``pieces`` are its bytes in order, cut where ``missing`` of them were not seen."""

    source: str
    target: str
    pieces: tuple[bytes, ...]
    missing: int


@contextmanager
def capture(network: list[str], file: Path) -> Iterator[None]:
    """Write what crosses the switch meanwhile to ``file``; ``network`` is what a command begins with that runs beside the switch.

    Raises:
        RuntimeError: where frames were lost.
    """
    command = [*network, sys.executable, __file__, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            lost, _ = process.communicate(timeout=60)
    if lost != "0\n":
        raise RuntimeError(f"the capture lost {lost.strip() or 'all'} frames; nothing can be said of what crossed")


def read_capture(file: Path) -> tuple[list[Stream], list[bytes]]:
    """The TCP streams that were captured, and the frames of everything else."""
    # A connection that takes the ports of an earlier one is another.
    segments: dict[tuple[bytes, int], list[tuple[int, bytes]]] = defaultdict(list)
    openings: dict[bytes, int] = defaultdict(int)
    others = []
    for frame in _frames(file):
        begin = 14 + 4 * (frame[14] & 15)
        if frame[12:14] != IPV4 or frame[23] != TCP:
            others.append(frame)
            continue
        (length,), (number,) = struct.unpack_from("!H", frame, 16), struct.unpack_from("!I", frame, begin + 4)
        ends = frame[26:34] + frame[begin : begin + 4]
        openings[ends] += bool(frame[begin + 13] & SYN)
        if payload := frame[begin + 4 * (frame[begin + 12] >> 4) : 14 + length]:
            segments[ends, openings[ends]].append((number, payload))
    return [_stream(ends, found) for (ends, _), found in segments.items()], others


def _frames(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while header := stream.read(4):
            yield stream.read(*struct.unpack("<I", header))


def _stream(ends: bytes, segments: list[tuple[int, bytes]]) -> Stream:
    first, half = segments[0][0], 1 << 31
    pieces, missing, end = [bytearray()], 0, None
    for at, payload in sorted((((number - first + half) % (2 * half)) - half, payload) for number, payload in segments):
        end = at if end is None else end
        if at > end:
            missing += at - end
            pieces.append(bytearray())
        # What was sent again is known already.
        pieces[-1] += payload[max(0, end - at) :]
        end = max(end, at + len(payload))
    source, target = (socket.inet_ntoa(ends[start : start + 4]) for start in (0, 4))
    return Stream(source, target, tuple(map(bytes, pieces)), missing)


def main(file: str) -> None:
    """Capture until standard input ends."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as taken, open(file, "wb") as out:
        taken.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        taken.bind((DEVICE, ETH_P_ALL))
        # Else a bridge shows what is for itself alone.
        everything = struct.pack("IHH8s", socket.if_nametoindex(DEVICE), PACKET_MR_PROMISC, 0, b"")
        taken.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, everything)
        print("ready", flush=True)
        while taken in select.select([taken, sys.stdin], [], [])[0]:
            frame = taken.recv(LONGEST)
            out.write(struct.pack("<I", len(frame)) + frame)
        print(struct.unpack("II", taken.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1])


if __name__ == "__main__":
    main(sys.argv[1])
