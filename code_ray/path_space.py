"""Spaces of one-host paths as arrays: enumerated, described and costed by the chunk, however many there are (DESIGN 2.1).

A path is a row of ``COLUMNS``, so that ten million of them never exist at once, nor as objects: ``path`` makes the few that
somebody looks at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from code_ray.errors import PathError
from code_ray.path import InferencePath, Kind, path_from_vector
from code_ray.throughput import FloatArray

COLUMNS = ("kind", "host", "lout", "hin", "hout", "lin", "rank")
KIND, HOST, LOUT, HIN, HOUT, LIN, RANK = range(len(COLUMNS))
"""Columns of a row: ``kind`` indexes ``KINDS``, ``host`` and ``rank`` the space's (host -1: none). hin and hout are the paper's,
0 without a host; lin is the number of local blocks where no local block follows."""

KINDS: tuple[Kind, ...] = ("cross", "skip", "exit", "probe")

Rows = npt.NDArray[np.int16]

Sides = Mapping[str, Sequence[int]]
"""Service -> side of the map at each of its boundaries, 1 for a vector. Of a service that is not named nothing is known."""


HOSTLESS, HEADLESS = 0, 1
"""Columns of features that say whether a path is without a host, without the local head."""


def class_columns(hosts: Mapping[str, int]) -> int:
    """How many of the first columns of a space's features say of which class a path is: without a host, without the local head, and
    of which host but the first.
    """
    return 2 + max(0, len(hosts) - 1)


@dataclass(frozen=True)
class PathSpace:
    """Every one-host path, skip, exit and probe within the bounds of DESIGN 2.1, the original not among them.

    ``hosts`` gives the number of blocks of each host, head included. ``min_lout`` keeps raw inputs (lout = 0) at home;
    it binds paths that leave the local server. Links to logits have no reduced form. ``sides`` lets features say how far a link
    enlarges or reduces maps.
    """

    local: str
    num_blocks: int
    hosts: Mapping[str, int]
    kinds: tuple[Kind, ...] = KINDS
    min_lout: int = 0
    ranks: tuple[int | None, ...] = (None,)
    sides: Sides = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(ends) * len(runs) * len(ranks) for _, _, ends, runs, ranks in self._parts())

    def chunks(self, size: int = 1 << 16) -> Iterator[Rows]:
        """All rows, at most ``size`` at a time, (n, 7)."""
        for kind, host, ends, runs, ranks in self._parts():
            total = len(ends) * len(runs) * len(ranks)
            for start in range(0, total, size):
                yield self._product(kind, host, ends, runs, ranks, start, min(start + size, total))

    def path(self, row: Rows) -> InferencePath:
        """The path of one row."""
        kind, host, lout, hin, hout, lin, rank = (int(number) for number in row)
        name = list(self.hosts)[host] if host >= 0 else None
        vector = {"cross": (lout, hin, hout, lin), "skip": (lout, lin), "exit": (lout,), "probe": (lout, hin, hout)}[KINDS[kind]]
        reduced = self.ranks[rank] if KINDS[kind] in ("cross", "skip") else None
        return path_from_vector(vector, self.local, self.num_blocks, name, self.hosts.get(name or ""), reduced)

    def rows(self, paths: Iterable[InferencePath]) -> Rows:
        """The rows of paths of this space, (n, 7)."""
        names = list(self.hosts)
        found = []
        for path in paths:
            vector, host = path.vector, names.index(path.hosts[0]) if path.hosts else -1
            run = vector[1:3] if path.hosts else (0, 0)
            lin = vector[-1] if path.ends_in_head else self.num_blocks
            rank = self.ranks.index(path.rank) if path.ends_in_head else 0
            found.append((KINDS.index(path.kind), host, path.lout, *run, lin, rank))
        return np.array(found, dtype=np.int16).reshape(-1, len(COLUMNS))

    def __contains__(self, path: InferencePath) -> bool:
        """Whether ``path`` is in the space."""
        if path.local != self.local or path.kind not in self.kinds or not set(path.hosts) <= set(self.hosts):
            return False
        host = next(iter(path.hosts), None)
        try:
            same = path_from_vector(path.vector, self.local, self.num_blocks, host, self.hosts.get(host or ""), path.rank)
        except PathError:
            return False
        ranks = self.ranks if path.ends_in_head else (None,)
        return same == path and path.rank in ranks and (host is None or path.lout >= self.min_lout)

    def siblings(self, row: Rows) -> Rows:
        """All rows that leave the local service where ``row``, which has a host, does, for the same block of that host; (n, 7)."""
        found = []
        for kind, host, ends, runs, ranks in self._parts():
            if host == row[HOST] >= 0:
                agreeing = ends[ends[:, 0] == row[LOUT]], runs[runs[:, 0] == row[HIN]]
                found.append(self._product(kind, host, *agreeing, ranks, 0, math.prod(map(len, (*agreeing, ranks)))))
        return np.concatenate(found)

    def link_paths(self) -> list[InferencePath]:
        """A few paths that between them have every link of the space."""
        n, least = self.num_blocks, self.min_lout
        vectors: list[tuple[str | None, tuple[int, ...]]] = []
        for name, blocks in self.hosts.items():
            entries = [(lout, hin, blocks - 1) for lout in range(least, n) for hin in range(1, blocks)]
            vectors += [(name, entry) for entry in entries if "probe" in self.kinds]
            vectors += [(name, (*entry, n - 1)) for entry in entries if "cross" in self.kinds and entry[0] < n - 1]
            vectors += [(name, (least, 1, hout)) for hout in range(1, blocks) if "probe" in self.kinds]
            lins = range(least + 1, n) if "cross" in self.kinds else ()
            vectors += [(name, (least, 1, hout, lin)) for hout in range(1, blocks) for lin in lins]
        vectors += [(None, (lout,)) for lout in range(1, n) if "exit" in self.kinds]
        vectors += [(None, (lout, lin)) for lout in range(n - 1) for lin in range(lout + 1, n) if "skip" in self.kinds]
        return [
            path_from_vector(vector, self.local, n, name, self.hosts.get(name or ""), rank)
            for name, vector in vectors
            for rank in (self.ranks if len(vector) in (2, 4) else (None,))
        ]

    def paths(self) -> list[InferencePath]:
        """All of them, for spaces small enough."""
        return [self.path(row) for rows in self.chunks() for row in rows]

    def features(self, rows: Rows) -> FloatArray:
        """What a predictor sees of paths, (n, d): class, positions as shares of each network, rank, octaves."""
        n = self.num_blocks
        hosted, headless = rows[:, HOST] >= 0, np.isin(rows[:, KIND], (KINDS.index("exit"), KINDS.index("probe")))
        blocks = np.array([*self.hosts.values(), 1])[rows[:, HOST]]
        lout, lin = rows[:, LOUT] / n, rows[:, LIN] / n
        entry, depth = np.where(hosted, rows[:, HIN] - 1, 0) / blocks, rows[:, HOUT] / blocks
        ranks = np.array([0.0 if rank is None else 1 / (1 + math.log2(rank)) for rank in self.ranks])[rows[:, RANK]]
        return np.column_stack(
            [
                ~hosted,
                headless,
                *(rows[:, HOST] == host for host in range(1, len(self.hosts))),
                lout,
                lin,
                lin - lout,
                entry,
                depth,
                # How far off a link leads: links join boundaries of like depth best.
                np.where(hosted, entry - lout, 0.0),
                np.where(hosted, depth - lin, 0.0),
                np.where(headless, 0.0, ranks),
                *self._octaves(rows),
            ]
        )

    def _octaves(self, rows: Rows) -> tuple[FloatArray, FloatArray]:
        """Octaves by which the link into a host, and the last link, enlarge or reduce the side of a map."""
        entry, last = np.zeros(len(rows)), np.zeros(len(rows))
        if self.local in self.sides:
            local = np.log2(np.asarray(self.sides[self.local], dtype=np.float64))
            alone = rows[:, HOST] < 0
            last[alone] = local[rows[alone, LIN]] - local[rows[alone, LOUT]]
            for number, name in enumerate(self.hosts):
                if name in self.sides:
                    there, host = np.log2(np.asarray(self.sides[name], dtype=np.float64)), rows[:, HOST] == number
                    entry[host] = there[rows[host, HIN] - 1] - local[rows[host, LOUT]]
                    last[host] = local[rows[host, LIN]] - there[rows[host, HOUT]]
        return np.abs(entry), np.abs(last)

    def _product(
        self, kind: int, host: int, ends: npt.NDArray[np.int64], runs: npt.NDArray[np.int64], ranks: list[int], start: int, stop: int
    ) -> Rows:
        """Rows ``start .. stop - 1`` of a part."""
        index, rank = np.divmod(np.arange(start, stop), len(ranks))
        end, run = np.divmod(index, len(runs))
        rows = np.empty((len(index), len(COLUMNS)), np.int16)
        rows[:, KIND], rows[:, HOST], rows[:, RANK] = kind, host, np.array(ranks)[rank]
        rows[:, [LOUT, LIN]], rows[:, [HIN, HOUT]] = ends[end], runs[run]
        return rows

    def _parts(self) -> Iterator[tuple[int, int, npt.NDArray[np.int64], npt.NDArray[np.int64], list[int]]]:
        """(kind, host, [lout, lin] pairs, [hin, hout] runs, rank indices): a part of the space is their product."""
        n, nowhere = self.num_blocks, np.zeros((1, 2), np.int64)
        every_rank = list(range(len(self.ranks)))
        for kind in dict.fromkeys(self.kinds):
            number = KINDS.index(kind)
            if kind == "exit":
                yield number, -1, _pairs((lout, n) for lout in range(1, n)), nowhere, [0]
            if kind == "skip":
                yield number, -1, _pairs((lout, lin) for lout in range(n - 1) for lin in range(lout + 1, n)), nowhere, every_rank
            for host, blocks in enumerate(self.hosts.values()):
                runs = _pairs((hin, hout) for hin in range(1, blocks) for hout in range(hin, blocks))
                if kind == "cross":
                    ends = _pairs((lout, lin) for lout in range(self.min_lout, n - 1) for lin in range(lout + 1, n))
                    yield number, host, ends, runs, every_rank
                if kind == "probe":
                    yield number, host, _pairs((lout, n) for lout in range(self.min_lout, n)), runs, [0]


def _pairs(numbers: Iterable[tuple[int, int]]) -> npt.NDArray[np.int64]:
    return np.array(list(numbers), dtype=np.int64).reshape(-1, 2)
