"""Requests from the operator's machine, while something happens to the cluster, and what came of them."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from dataclasses import dataclass

from furnish import ADDRESSES, VENV, borrowing
from hosts import Room

URL = f"http://10.99.0.{ADDRESSES['head']}:8000"
CLIENTS = 4


@dataclass(frozen=True)
class Answer:
    """What came of one request: ``path`` is None where it failed, and ``said`` why; else ``said`` are the labels."""

    begun: float
    seconds: float
    path: str | None
    said: object


class Asking:
    """Requests from the operator's machine, in the background."""

    def __init__(self, room: Room, key: str, seconds: float) -> None:
        command = f"cd ~/operator; exec {VENV}/python ask.py {URL} {key} {seconds:g} {CLIENTS}"
        self._process = subprocess.Popen(room.ssh("operator", command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._say = room.say
        self.answers: list[Answer] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._process as process:
            for line in process.stdout or ():
                try:
                    self.answers.append(Answer(*json.loads(line)))
                except (ValueError, TypeError):
                    self._say(f"    client: {line.rstrip()}")

    def wait(self) -> list[Answer]:
        """All answers, when the time is over."""
        self._thread.join(300)
        assert self._process.returncode == 0
        return self.answers

    def stop(self) -> list[Answer]:
        """All answers until now; nothing more is asked."""
        self._process.terminate()
        self._thread.join(30)
        return self.answers

    def since(self, moment: float) -> list[Answer]:
        """Answers to requests that began after ``moment``, in seconds since 1970."""
        return [answer for answer in list(self.answers) if answer.begun > moment]


def summary(answers: list[Answer]) -> str:
    """How many there were, how long they took, and by which paths they came."""
    seconds = sorted(answer.seconds for answer in answers)
    paths = ", ".join(f"{path}: {count}" for path, count in Counter(str(answer.path) for answer in answers).most_common())
    return f"{len(answers)} requests, median {1000 * seconds[len(seconds) // 2]:.0f} ms, at most {seconds[-1]:.1f} s; {paths}"


def failures(answers: list[Answer]) -> list[object]:
    """What went wrong with those that failed."""
    return [answer.said for answer in answers if answer.path is None]


def borrowed(answers: list[Answer]) -> int:
    """How many of them took a path through the lender."""
    through = borrowing()
    return sum(answer.path in through for answer in answers)
