"""What hosts are seen to do, and where weights could be met that do not belong there: on the switch, and in the object stores."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from capture import capture, read_capture
from furnish import ADDRESSES, PROVIDERS
from hosts import Room
from weight_scan import Weights, keep_copies

KINDS = {"trial": "ray::.*(PathTrial|Trainable)", "party": "ray::PartyActor"}
"""How processes are called that train for a search: what Tune makes of a trial's class, and the actors that hold a host's blocks."""
HEAD, LENDER = (f"10.99.0.{ADDRESSES[name]}" for name in ("head", "lender"))


def processes(room: Room, name: str) -> list[str]:
    """What runs on a host beside sshd and this question."""
    listed = room.run(name, "ps -eo pid=,args=").stdout.splitlines()
    return [line for line in listed if not any(known in line for known in ("sshd", "ps -eo"))]


@contextmanager
def watched(room: Room, run: Path) -> Iterator[set[tuple[str, str]]]:
    """While a search into ``run`` goes on: files/searched gets what crosses the switch and files/kept what Tune stores, which it removes
    at the end; yields which hosts trials and parties are seen to be at work on.
    """
    seen = set[tuple[str, str]]()
    over = threading.Event()

    def look() -> None:
        while not over.wait(1):
            for name in PROVIDERS:
                lines = processes(room, name)
                seen.update((name, kind) for kind, called in KINDS.items() if any(re.search(called, line) for line in lines))

    watching = [threading.Thread(target=look), threading.Thread(target=keep_copies, args=(run, room.files / "kept", over))]
    for thread in watching:
        thread.start()
    try:
        with capture(room.network, room.files / "searched"):
            yield seen
    finally:
        over.set()
        for thread in watching:
            thread.join()


def raylets(room: Room, name: str) -> list[int]:
    """The process on a host that keeps its object store open."""
    found = [process for process in room.processes(name) if Path(f"/proc/{process}/comm").read_text() == "raylet\n"]
    assert len(found) == (name != "operator"), found
    return found


def crossed(weights: Weights, file: Path, say: Callable[[str], None]) -> list[tuple[str, str]]:
    """Runs of weights in a capture: from whom to whom, and of what."""
    streams, others = read_capture(file)
    sent = dict.fromkeys([(HEAD, LENDER), (LENDER, HEAD)], 0)
    for stream in streams:
        if (stream.source, stream.target) in sent:
            sent[stream.source, stream.target] += sum(map(len, stream.pieces))
    whole = sum(len(piece) for stream in streams for piece in stream.pieces)
    say(
        f"{whole / 1e6:.1f} MB in {len(streams)} TCP streams and {len(others)} other frames crossed the switch, "
        f"{sent[HEAD, LENDER] / 1e6:.1f} MB from the head to the lender and {sent[LENDER, HEAD] / 1e6:.1f} MB back"
    )
    assert [stream for stream in streams if stream.missing] == []
    assert sum(sent.values()) > 100_000, "what was to be looked at did not cross"
    pieces = [(f"{stream.source} > {stream.target}", piece) for stream in streams for piece in stream.pieces]
    pieces += [("beside TCP", frame) for frame in others]
    found = [(ends, weights.find(np.frombuffer(piece, np.uint8))) for ends, piece in pieces]
    return [(ends, run.of) for ends, run in found if run is not None]
