"""The one thread of a provider that runs models, and the queue in front of it. Pure: no Ray.

Own requests run before guests', later legs of a path before earlier ones (little work that finishes requests), else in
order of arrival. Work runs in chunks of a leg's best batch size: long requests are cut, short ones for the same leg run
together. So an own request waits for one guest chunk at most; where own requests came a moment ago these are cut to a slice
of time, and guests that wait behind own work for long are sent away.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from code_ray.metering import ComputeBucket
from deployments.heap import GIVE_BACK_EVERY_S, give_back
from deployments.parcel import Parcel
from deployments.routes import Refusal

Array = npt.NDArray[Any]

OWN_FIRST = "this server is busy with its own requests"

OWN_RECENTLY_S = 1.0
"""Guests run in slices while the latest own request is no older; a server that only guests use runs its best batches."""

SMOOTHING = 0.1
"""Weight of the newest full chunk in a leg's running time."""


@dataclass
class HostedLeg:
    """A leg ready to run: ``call`` maps (n, *in_shape) to (n, ...); ``position`` is the leg's place on its path.

    ``path`` is the path's text, ``dtype`` that of its input. ``guest``: it belongs to another provider's service. Per image: ``seconds``
    of compute, a running mean, and ``packing``, seconds to take the input out of a message and put the output into one, and the bytes of both. ``slice_seconds``: of
    compute in slices, as they were lately (None: there were none), since small batches take longer an image. ``parcel``: where a trunk
    ends, how what it makes for each branch is packed in the rows of its output.
    """

    call: Callable[[Array], Array]
    path: str
    in_shape: tuple[int, ...]
    guest: bool
    position: int
    batch_size: int
    seconds: float
    packing: float = 0.0
    in_bytes: int = 0
    out_bytes: int = 0
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint8))
    slice_seconds: float | None = None
    parcel: Parcel | None = None


@dataclass(frozen=True)
class QueueLimits:
    """Seconds: of own work that may wait before more is refused; of a guest chunk while there is own traffic, as such and as a part of
    what an own request takes from its arrival to its answer; that a guest waits while own work goes first, before it is sent away.
    """

    max_queue_s: float
    guest_slice_s: float
    guest_share_of_wait: float
    guest_wait_s: float


@dataclass
class _Job:
    value: Array
    future: Future[Array | Refusal]
    arrived: float
    started: int = 0
    parts: list[Array] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        return len(self.value) - self.started


class LegWorker:
    """Runs legs one chunk at a time in a thread of its own."""

    def __init__(self, legs: Mapping[str, HostedLeg], bucket: ComputeBucket, limits: QueueLimits, threads: int) -> None:
        self._legs = dict(legs)
        self._queues: dict[str, deque[_Job]] = {key: deque() for key in self._legs}
        self._bucket = bucket
        self._limits = limits
        self._own_arrived = -math.inf
        self._own_took = math.inf  # from arrival to answer, a running mean
        self._promised = {True: 0.0, False: 0.0}
        self._condition = threading.Condition()
        self._busy_since: float | None = None
        self._worked = self._worked_for_guests = 0.0
        self.failed_in_a_row = 0  # chunks that raised since one did not
        self._thread = threading.Thread(target=self._run, args=(threads,), name="legs", daemon=True)
        self._thread.start()

    def submit(self, key: str, value: Array, *, is_probe: bool = False) -> Future[Array | Refusal] | Refusal:
        """Queue ``value`` for a leg, or refuse it: guests above their share or in a surge of own work, own work where too much waits.
        A guest that is sent away later gets its refusal as the result. A probe of the server's health is no own traffic.
        """
        leg = self._legs[key]
        with self._condition:
            seconds = self._seconds(leg) * len(value)
            if leg.guest:
                wait = self._bucket.wait_for(self._promised[True], time.monotonic())
                if wait > 0:
                    return Refusal("the share of this server that is lent is used up", wait)
                if self._promised[False] > self._limits.guest_wait_s:
                    return Refusal(OWN_FIRST, self._promised[False])
            elif self._promised[False] > self._limits.max_queue_s:
                return Refusal("this server's queue is full", self._promised[False] - self._limits.max_queue_s)
            elif not is_probe:
                self._own_arrived = time.monotonic()
            job = _Job(value, Future(), time.monotonic())
            self._promised[leg.guest] += seconds
            self._queues[key].append(job)
            self._condition.notify()
        job.future.add_done_callback(lambda _: self._settle(leg.guest, seconds))
        return job.future

    def host(self, legs: Mapping[str, HostedLeg], share: float) -> None:
        """Run ``legs`` too from now on, and lend ``share`` of the server."""
        with self._condition:
            self._legs |= legs
            self._queues |= {key: self._queues.get(key, deque()) for key in legs}
            self._bucket.lend(share, time.monotonic())

    def drop(self, keys: Collection[str]) -> None:
        """Legs that are not asked for any more; one with work waiting stays."""
        with self._condition:
            for key in keys:
                if not self._queues.get(key):
                    self._legs.pop(key, None)
                    self._queues.pop(key, None)

    @property
    def legs(self) -> Mapping[str, HostedLeg]:
        """What is hosted, by key."""
        return self._legs

    def stuck_for(self) -> float:
        """Seconds that the current chunk has been running; infinite where the thread has died."""
        if not self._thread.is_alive():
            return float("inf")
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        with self._condition:
            return self._busy_since is None and not any(self._queues.values())

    def busy_seconds(self) -> tuple[float, float]:
        """Seconds that the thread has worked since it began, the current chunk included; and those for guests."""
        with self._condition:
            return self._worked + (0.0 if self._busy_since is None else time.monotonic() - self._busy_since), self._worked_for_guests

    def _settle(self, guest: bool, seconds: float) -> None:
        with self._condition:
            self._promised[guest] -= seconds

    def _run(self, threads: int) -> None:
        torch.set_num_threads(threads)
        gave_back = time.monotonic()
        while True:
            with self._condition:
                if self._busy_since is not None:
                    self._worked += time.monotonic() - self._busy_since
                self._busy_since = None
                while not (taken := self._take()):
                    self._condition.wait()
                self._busy_since = time.monotonic()
            self._execute(*taken)
            if time.monotonic() - gave_back > GIVE_BACK_EVERY_S:
                give_back()
                gave_back = time.monotonic()

    def _take(self) -> tuple[HostedLeg, list[tuple[_Job, Array]]] | None:
        """The next chunk: pieces of one leg's jobs, at most its batch size unless one job alone is cut."""
        for queue in self._queues.values():
            while queue and queue[0].future.done():  # its caller has given up, or an earlier chunk failed
                queue.popleft()
        waiting = [key for key, queue in self._queues.items() if queue]
        if not waiting:
            return None
        key = min(waiting, key=self._turn)
        leg, queue = self._legs[key], self._queues[key]
        if not leg.guest:
            self._send_guests_away()
        pieces: list[tuple[_Job, Array]] = []
        room = size = self._chunk_size(leg)
        while queue and room > 0:
            job = queue[0]
            if job.future.done():
                queue.popleft()
                continue
            # A job that fits into a chunk of its own is not cut to fill this one. Numbers of another type mean other pixels
            # (uint8 0..255, float32 0..1): together they would be converted to one type.
            if pieces and (room < job.waiting <= size or job.value.dtype != pieces[0][1].dtype):
                break
            count = min(job.waiting, room)
            pieces.append((job, job.value[job.started : job.started + count]))
            job.started += count
            room -= count
            if job.waiting == 0:
                queue.popleft()
        return leg, pieces

    def _chunk_size(self, leg: HostedLeg) -> int:
        """Images of the next chunk of a leg."""
        if not self._is_sliced(leg):
            return leg.batch_size
        most = min(self._limits.guest_slice_s, self._limits.guest_share_of_wait * self._own_took)
        return max(1, min(leg.batch_size, int(most / max(self._seconds(leg), 1e-9))))

    def _seconds(self, leg: HostedLeg) -> float:
        """Of compute an image, in the chunks that would run now."""
        return leg.slice_seconds if leg.slice_seconds is not None and self._is_sliced(leg) else leg.seconds

    def _is_sliced(self, leg: HostedLeg) -> bool:
        return leg.guest and time.monotonic() - self._own_arrived <= OWN_RECENTLY_S

    def _send_guests_away(self) -> None:
        """Own work is next: guests that have waited too long take another path while they still can."""
        latest = time.monotonic() - self._limits.guest_wait_s
        for key, queue in self._queues.items():
            while self._legs[key].guest and queue and queue[0].arrived < latest:
                job = queue.popleft()
                if job.future.set_running_or_notify_cancel():
                    # Who is told settles the account, which takes the lock that this thread holds: it may be taken again.
                    job.future.set_result(Refusal(OWN_FIRST, self._promised[False]))

    def _turn(self, key: str) -> tuple[bool, int, float]:
        """Order of service: own before guests', later legs first, else whoever has waited longest."""
        return self._legs[key].guest, -self._legs[key].position, self._queues[key][0].arrived

    def _execute(self, leg: HostedLeg, pieces: list[tuple[_Job, Array]]) -> None:
        batch = pieces[0][1] if len(pieces) == 1 else np.concatenate([piece for _, piece in pieces])
        began = time.monotonic()
        try:
            output = leg.call(batch)
        except RuntimeError as error:  # what torch raises, out of memory included; it concerns these requests only
            self.failed_in_a_row += 1
            for job, _ in pieces:
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(error)
            return
        self.failed_in_a_row = 0
        seconds = time.monotonic() - began
        with self._condition:
            if leg.guest:
                self._worked_for_guests += seconds
                self._bucket.charge(seconds, time.monotonic())
        weight = SMOOTHING * min(1.0, len(batch) / leg.batch_size)
        leg.seconds += weight * (seconds / len(batch) - leg.seconds)
        if self._is_sliced(leg):
            before = leg.seconds if leg.slice_seconds is None else leg.slice_seconds
            leg.slice_seconds = before + SMOOTHING * (seconds / len(batch) - before)
        position = 0
        for job, piece in pieces:
            job.parts.append(output[position : position + len(piece)])
            position += len(piece)
            if _finish(job) and not leg.guest:
                took = time.monotonic() - job.arrived
                self._own_took = took if math.isinf(self._own_took) else self._own_took + SMOOTHING * (took - self._own_took)


def _finish(job: _Job) -> bool:
    """Answer a job whose parts are all there; whether that is so."""
    if sum(map(len, job.parts)) < len(job.value) or not job.future.set_running_or_notify_cancel():
        return False
    job.future.set_result(job.parts[0] if len(job.parts) == 1 else np.concatenate(job.parts))
    return True
