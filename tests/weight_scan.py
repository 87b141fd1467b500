"""Look for weights of a service where they must not be: in what crossed a network, in an object store, in files (DESIGN 3.3).

A run of ``RUN`` bytes of a weight tensor counts, in float32, float16 or bfloat16, in either memory layout, wherever it begins. Not found
are weights that somebody compressed, encrypted or wrote down as text, nor what was computed from them; nor runs of nearly nothing but
zeros, such as a last layer has for features that are always 0: messages are full of those.
"""

from __future__ import annotations

import mmap
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from code_ray.service import Service

Bytes = npt.NDArray[np.uint8]

RUN = 32
"""Short enough for the larger part of 64 bytes that Ray leaves before and behind an array as they were in memory."""
WINDOW = 16
STRIDE = RUN - WINDOW
"""A window of what is searched at every so many bytes is compared with all windows of the weights: each run of ``RUN`` bytes has one."""

TELLING = 6
"""Different bytes in a window that is a sign of something: one weight among zeros has 5 at most, 16 bytes of weights hardly ever fewer."""

CHUNK = 64 << 20
_BITS = 24


@dataclass(frozen=True)
class Found:
    """Where a run of weights was found: at which byte, how long it is, and of which tensor in which form."""

    at: int
    length: int
    of: str


class Weights:
    """The weights of services, ready to be looked for."""

    def __init__(self, services: Mapping[str, Service]) -> None:
        self.forms: list[tuple[str, Bytes]] = []
        seen: set[bytes] = set()
        for name, service in services.items():
            for key, tensor in service.blocks.state_dict().items():
                for form, content in _forms(tensor):
                    if len(content) >= RUN and content not in seen:
                        seen.add(content)
                        self.forms.append((f"{name} {key} {form}", np.frombuffer(content, np.uint8)))
        windows = [_windows(form, 1) for _, form in self.forms]
        keys = np.concatenate([_key(found) for found in windows])
        owners = np.repeat(np.arange(len(windows)), [len(found) for found in windows])
        places = np.concatenate([np.arange(len(found)) for found in windows])
        told = np.concatenate([_different(found) >= TELLING for found in windows])
        self._keys, first = np.unique(keys[told], return_index=True)
        self._owners, self._places = owners[told][first], places[told][first]
        # Nearly all that is searched is told apart by a few bits.
        self._some = np.zeros(1 << _BITS, np.bool_)
        self._some[self._keys >> np.uint64(64 - _BITS)] = True

    def find(self, data: Bytes) -> Found | None:
        """The first run of weights in ``data`` that is met, if there is one."""
        for start in range(0, max(len(data) - RUN + 1, 0), CHUNK):
            keys = _key(_windows(data[start : start + CHUNK + RUN], STRIDE))
            likely = np.flatnonzero(self._some[keys >> np.uint64(64 - _BITS)])
            at = np.minimum(np.searchsorted(self._keys, keys[likely]), len(self._keys) - 1)
            alike = self._keys[at] == keys[likely]
            for place, number in zip(likely[alike], at[alike], strict=True):
                name, form = self.forms[self._owners[number]]
                begin, end = _run(data, start + int(place) * STRIDE, form, int(self._places[number]))
                if end - begin >= RUN:
                    return Found(begin, end - begin, name)
        return None

    def find_in_files(self, *folders: Path) -> tuple[dict[str, Found], int]:
        """Runs of weights in files below folders, by file, and how many bytes were looked at."""
        found, looked = dict[str, Found](), 0
        for file in (file for folder in folders for file in folder.rglob("*")):
            with suppress(FileNotFoundError):  # it went while this looked
                if file.is_file() and not file.is_symlink() and (size := file.stat().st_size):
                    looked += size
                    with file.open("rb") as stream, mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) as content:
                        data = np.frombuffer(content, np.uint8)
                        if (run := self.find(data)) is not None:
                            found[str(file)] = run
                        del data  # the map cannot be closed under it
        return found, looked

    def find_in_stores(self, raylets: list[int]) -> tuple[dict[str, Found], int]:
        """The same of the object stores of ``raylets``, process ids on this machine: all that was ever written there and not overwritten."""
        found, looked = dict[str, Found](), 0
        for raylet in raylets:
            for part in object_store(raylet):
                looked += len(part)
                if (run := self.find(part)) is not None:
                    found[f"object store of raylet {raylet}"] = run
        return found, looked


def object_store(raylet: int) -> Iterator[Bytes]:
    """What an object store holds, in parts: the files in shared memory that a raylet keeps open, less what was never written."""
    for link in Path(f"/proc/{raylet}/fd").iterdir():
        # Of a process in another mount namespace the path begins elsewhere.
        if "/dev/shm/" not in os.readlink(link):
            continue
        with link.open("rb") as stream:
            size, end = os.fstat(stream.fileno()).st_size, 0
            while end < size:
                try:
                    start = os.lseek(stream.fileno(), end, os.SEEK_DATA)
                except OSError:
                    break  # nothing but holes is left
                end = os.lseek(stream.fileno(), start, os.SEEK_HOLE)
                yield np.frombuffer(os.pread(stream.fileno(), end - start, start), np.uint8)


def keep_copies(out: Path, kept: Path, over: threading.Event) -> None:
    """Copy what Tune writes beside a run as it appears: it is removed when the search has ended."""
    while not over.wait(0.3):
        with suppress(FileNotFoundError):  # removed meanwhile: the rest comes with the next round
            for file in out.glob("code_ray-tune-*/**/*"):
                if file.is_file():
                    target = kept / file.relative_to(out)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, target)


def _forms(tensor: torch.Tensor) -> Iterator[tuple[str, bytes]]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16) if tensor.is_floating_point() else (tensor.dtype,):
        cast = tensor.detach().cpu().to(dtype)
        yield str(dtype), _bytes(cast)
        if cast.dim() == 4:
            yield f"{dtype} channels last", _bytes(cast.permute(0, 2, 3, 1))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _windows(data: Bytes, stride: int) -> npt.NDArray[np.uint64]:
    """The ``WINDOW`` bytes from every ``stride``-th on, (n, 2) uint64."""
    if len(data) < WINDOW:
        return np.zeros((0, 2), np.uint64)
    views = np.lib.stride_tricks.sliding_window_view(data, WINDOW)[::stride]
    return np.ascontiguousarray(views).view(np.uint64)


def _different(windows: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    """How many different bytes each window has."""
    ordered = np.sort(windows.view(np.uint8), axis=1)
    return np.asarray(1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1))


def _key(windows: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    mixed = (windows[:, 0] * np.uint64(0x9E3779B97F4A7C15)) ^ windows[:, 1]
    return np.asarray(mixed * np.uint64(0xD6E8FEB86659FD93))


def _run(data: Bytes, at: int, form: Bytes, place: int) -> tuple[int, int]:
    """First and last byte of the run of equal bytes round ``data[at]`` and ``form[place]``, as far as ``RUN`` either way."""
    before, after = min(at, place, RUN), min(len(data) - at, len(form) - place, RUN)
    back = _equal(data[at - before : at][::-1], form[place - before : place][::-1])
    return at - back, at + _equal(data[at : at + after], form[place : place + after])


def _equal(a: Any, b: Any) -> int:
    """How many elements at the start are equal."""
    differs = np.flatnonzero(a != b)
    return int(differs[0]) if len(differs) else len(a)
