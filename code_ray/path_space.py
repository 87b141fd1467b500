"""Spaces of paths as arrays: enumerated, described and costed by the chunk, however many there are (DESIGN 2.1).

A path is a row of ``COLUMNS``, so that ten million of them never exist at once, nor as objects: ``path`` makes the few that
somebody looks at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations, product

import numpy as np
import numpy.typing as npt

from code_ray.errors import PathError
from code_ray.links import joins
from code_ray.path import InferencePath, Kind, path_from_vector
from code_ray.throughput import FloatArray

COLUMNS = ("kind", "host", "lout", "hin", "hout", "lin", "rank")
KIND, HOST, LOUT, HIN, HOUT, LIN, RANK = range(len(COLUMNS))
"""Columns of a row: ``kind`` indexes ``KINDS``, ``host`` and ``rank`` the space's (host -1: none). hin and hout are the paper's,
0 without a host; lin is the number of local blocks where no local block follows. Where paths may go through several hosts, three more
columns for each after the first follow: host, hin, hout."""

KINDS: tuple[Kind, ...] = ("cross", "skip", "exit", "probe")

Rows = npt.NDArray[np.int16]

Pairs = npt.NDArray[np.int64]

Visit = tuple[int, int, int]
"""The columns of one host on the way: host, hin, hout."""

Sides = Mapping[str, Sequence[int]]
"""Service -> side of the map at each of its boundaries, 1 for a vector. Of a service that is not named nothing is known."""


Forms = Mapping[str, Sequence[str]]  # service -> what crosses at each of its boundaries (``Boundary.form``)
HOSTLESS, HEADLESS, RETURN = 0, 1, 1
"""Columns of features that say whether a path is without a host, without the local head; behind those of classes, where it comes back."""


def class_columns(hosts: Mapping[str, int], hosts_per_path: int = 1) -> int:
    """How many of the first columns of a space's features say of which class a path is: without a host, without the local head, of
    which host but the first, and which hosts follow that one.
    """
    return 2 + max(0, len(hosts) - 1) + (hosts_per_path - 1) * len(hosts)


def visits_of(rows: Rows) -> list[Visit]:
    """The columns of each host on the way, in order."""
    return [(HOST, HIN, HOUT), *((at, at + 1, at + 2) for at in range(len(COLUMNS), rows.shape[1], 3))]


@dataclass(frozen=True)
class PathSpace:
    """Every path from host to host, skip, exit and probe within the bounds of DESIGN 2.1, the original not among them.

    ``hosts`` gives the number of blocks of each host, head included; a path goes through at most ``hosts_per_path`` of them, one after
    the other. ``min_lout`` keeps raw inputs (lout = 0) at home; it binds paths that leave the local server. Links to logits have no
    reduced form. ``sides`` lets features say how far a link enlarges or reduces maps. ``forms`` say between which boundaries links lead
    (``links.joins``); of services that they do not name links lead everywhere.
    """

    local: str
    num_blocks: int
    hosts: Mapping[str, int]
    kinds: tuple[Kind, ...] = KINDS
    min_lout: int = 0
    ranks: tuple[int | None, ...] = (None,)
    sides: Sides = field(default_factory=dict)
    hosts_per_path: int = 1
    forms: Forms = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(_size, self._parts()))

    def chunks(self, size: int = 1 << 16) -> Iterator[Rows]:
        """All rows, at most ``size`` at a time, (n, 7) and three columns more for each host after the first."""
        for part in self._parts():
            total = _size(part)
            for start in range(0, total, size):
                yield self._product(part, start, min(start + size, total))

    def path(self, row: Rows) -> InferencePath:
        """The path of one row."""
        numbers, names = [int(number) for number in row], list(self.hosts)
        kind, on_way = KINDS[numbers[KIND]], [visit for visit in visits_of(row[None]) if row[visit[0]] >= 0]
        runs = [numbers[column] for _, hin, hout in on_way for column in (hin, hout)]
        returns = kind in ("cross", "skip")
        vector = (numbers[LOUT], *runs, *([numbers[LIN]] if returns else []))
        return self._from_vector(vector, [names[numbers[at]] for at, _, _ in on_way], self.ranks[numbers[RANK]] if returns else None)

    def rows(self, paths: Iterable[InferencePath]) -> Rows:
        """The rows of paths of this space, (n, 7) and three columns more for each host after the first."""
        names, found = list(self.hosts), []
        for path in paths:
            row = [-1, 0, 0] * self.hosts_per_path
            runs = path.vector[1 : 1 + 2 * len(path.hosts)]
            for i, host in enumerate(path.hosts):
                row[3 * i : 3 * i + 3] = names.index(host), *runs[2 * i : 2 * i + 2]
            lin = path.vector[-1] if path.ends_in_head else self.num_blocks
            rank = self.ranks.index(path.rank) if path.ends_in_head else 0
            found.append((KINDS.index(path.kind), row[0], path.lout, *row[1:3], lin, rank, *row[3:]))
        return np.array(found, dtype=np.int16).reshape(-1, self._width)

    def __contains__(self, path: InferencePath) -> bool:
        """Whether ``path`` is in the space."""
        if path.local != self.local or path.kind not in self.kinds or not set(path.hosts) <= set(self.hosts):
            return False
        try:
            same = self._from_vector(path.vector, path.hosts, path.rank)
        except PathError:
            return False
        ranks = self.ranks if path.ends_in_head else (None,)
        few = len(path.hosts) <= self.hosts_per_path
        inside = same == path and few and path.rank in ranks and (not path.hosts or path.lout >= self.min_lout)
        return inside and self.joins(path)

    def joins(self, path: InferencePath) -> bool:
        """Whether a link leads wherever ``path`` needs one."""
        return all(joins(self._form(*slot.source), self._form(*slot.target)) for slot in path.link_slots)

    def siblings(self, row: Rows) -> Rows:
        """All rows that leave the local service where ``row``, which has a host, does, for the same block of that host."""
        found = []
        for kind, hosts, ends, runs, ranks in self._parts():
            if hosts and hosts[0] == row[HOST]:
                first, *others = runs
                part = kind, hosts, ends[ends[:, 0] == row[LOUT]], [first[first[:, 0] == row[HIN]], *others], ranks
                if size := _size(part):
                    found.append(self._product(part, 0, size))
        return np.concatenate(found)

    def link_paths(self) -> list[InferencePath]:
        """A few paths that between them have every link of the space."""
        n, least = self.num_blocks, self.min_lout
        vectors: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
        for name, blocks in self.hosts.items():
            entries = [(lout, hin, blocks - 1) for lout in range(least, n) for hin in range(1, blocks)]
            vectors += [((name,), entry) for entry in entries if "probe" in self.kinds]
            vectors += [((name,), (*entry, n - 1)) for entry in entries if "cross" in self.kinds and entry[0] < n - 1]
            vectors += [((name,), (*self._way_to(name, hout, n), hout)) for hout in range(1, blocks) if "probe" in self.kinds]
            lins = range(least + 1, n) if "cross" in self.kinds else ()
            vectors += [((name,), (*self._way_to(name, hout, lin), hout, lin)) for hout in range(1, blocks) for lin in lins]
        for pair in permutations(self.hosts, 2) if self.hosts_per_path > 1 else ():
            first, second = (self.hosts[name] for name in pair)
            onward = [(least, 1, hout, hin, second - 1) for hout in range(1, first) for hin in range(1, second)]
            vectors += [(pair, run) for run in onward if "probe" in self.kinds]
            vectors += [(pair, (*run, n - 1)) for run in onward if "cross" in self.kinds and least < n - 1]
        vectors += [((), (lout,)) for lout in range(1, n) if "exit" in self.kinds]
        vectors += [((), (lout, lin)) for lout in range(n - 1) for lin in range(lout + 1, n) if "skip" in self.kinds]
        paths = (
            self._from_vector(vector, names, rank)
            for names, vector in vectors
            for rank in (self.ranks if len(vector) % 2 == 0 else (None,))
        )
        return [path for path in paths if self.joins(path)]

    def _way_to(self, host: str, hout: int, lin: int) -> tuple[int, int]:
        """[lout, hin] of some path by way of a host's block ``hout`` to local block ``lin``: the first that links lead on."""
        ways = [(lout, hin) for lout in range(self.min_lout, lin) for hin in range(1, hout + 1)]
        return next((way for way in ways if joins(self._form(self.local, way[0]), self._form(host, way[1] - 1))), ways[0])

    def _form(self, service: str, position: int) -> str | None:
        return self.forms[service][position] if service in self.forms else None

    def paths(self) -> list[InferencePath]:
        """All of them, for spaces small enough."""
        return [self.path(row) for rows in self.chunks() for row in rows]

    def features(self, rows: Rows) -> FloatArray:
        """What a predictor sees of paths, (n, d): class, positions as shares of each network, rank, links from host to host, octaves."""
        n = self.num_blocks
        first, *further = visits_of(rows)
        hosted, headless = rows[:, HOST] >= 0, np.isin(rows[:, KIND], (KINDS.index("exit"), KINDS.index("probe")))
        lout, lin = rows[:, LOUT] / n, rows[:, LIN] / n
        entry, depth = self._shares(rows, first)
        onward: list[FloatArray] = []
        for visit in further:
            there, (begin, end) = rows[:, visit[0]] >= 0, self._shares(rows, visit)
            onward += [begin, np.where(there, depth, 0.0), np.where(there, begin - depth, 0.0)]
            depth = np.where(there, end, depth)
        ranks = np.array([0.0 if rank is None else 1 / (1 + math.log2(rank)) for rank in self.ranks])[rows[:, RANK]]
        return np.column_stack(
            [
                ~hosted,
                headless,
                *(rows[:, HOST] == host for host in range(1, len(self.hosts))),
                *(rows[:, at] == host for at, _, _ in further for host in range(len(self.hosts))),
                lout,
                lin,
                lin - lout,
                entry,
                depth,
                # How far off a link leads: links join boundaries of like depth best.
                np.where(hosted, entry - lout, 0.0),
                np.where(hosted, depth - lin, 0.0),
                np.where(headless, 0.0, ranks),
                *onward,
                *self._octaves(rows),
            ]
        )

    def _shares(self, rows: Rows, visit: Visit) -> tuple[FloatArray, FloatArray]:
        """Where a host's blocks begin and end, as shares of its network; 0 without that host."""
        at, hin, hout = visit
        blocks = np.array([*self.hosts.values(), 1])[rows[:, at]]
        return np.where(rows[:, at] >= 0, rows[:, hin] - 1, 0) / blocks, rows[:, hout] / blocks

    def _octaves(self, rows: Rows) -> tuple[FloatArray, FloatArray]:
        """Octaves by which the links into hosts together, and the last link, enlarge or reduce the side of a map; 0 where not known."""
        if self.local not in self.sides:
            return np.zeros(len(rows)), np.zeros(len(rows))
        local, unknown = np.log2(np.asarray(self.sides[self.local], dtype=np.float64)), np.full(1, np.nan)
        entries, side = np.zeros(len(rows)), local[rows[:, LOUT]]  # that of the map that has come so far
        for at, hin, hout in visits_of(rows):
            for number, name in enumerate(self.hosts):
                on = np.flatnonzero(rows[:, at] == number)
                there = np.log2(np.asarray(self.sides[name], dtype=np.float64)) if name in self.sides else unknown.repeat(self.hosts[name])
                entries[on] += np.abs(there[rows[on, hin] - 1] - side[on])
                side[on] = there[rows[on, hout]]
        return np.nan_to_num(entries), np.nan_to_num(np.abs(local[rows[:, LIN]] - side))

    @property
    def _width(self) -> int:
        return len(COLUMNS) + 3 * (self.hosts_per_path - 1)

    def _from_vector(self, vector: Sequence[int], hosts: Sequence[str], rank: int | None) -> InferencePath:
        first = hosts[0] if hosts else None
        then = {name: self.hosts[name] for name in hosts[1:]}
        return path_from_vector(vector, self.local, self.num_blocks, first, self.hosts.get(first or ""), rank, then)

    def _product(self, part: _Part, start: int, stop: int) -> Rows:
        """Rows ``start .. stop - 1`` of a part."""
        kind, hosts, ends, runs, ranks = part
        end, *on_way, rank = np.unravel_index(np.arange(start, stop), (len(ends), *map(len, runs), len(ranks)))
        rows = np.zeros((stop - start, self._width), np.int16)
        rows[:, KIND], rows[:, [LOUT, LIN]], rows[:, RANK] = kind, ends[end], np.array(ranks)[rank]
        for number, (at, hin, hout) in enumerate(visits_of(rows)):
            rows[:, at] = hosts[number] if number < len(hosts) else -1
            if number < len(hosts):
                rows[:, [hin, hout]] = runs[number][on_way[number]]
        return rows

    def _parts(self) -> Iterator[_Part]:
        """Parts of the space, each a product in which every link leads somewhere; those with fewer hosts come first."""
        names = list(self.hosts)
        for kind, hosts, ends, runs, ranks in self._products():
            own = self._by_forms(self.local, ends, 0)
            ways = [self._by_forms(names[host], run, 1) for host, run in zip(hosts, runs, strict=True)]
            for (leaves, returns, some), *on_way in product(own, *ways):
                forms = [leaves, *(form for enters, exits, _ in on_way for form in (enters, exits)), returns]
                if all(map(joins, forms[::2], forms[1::2])):
                    yield kind, hosts, some, [run for _, _, run in on_way], ranks

    def _by_forms(self, service: str, pairs: Pairs, before: int) -> list[tuple[str | None, str | None, Pairs]]:
        """[first, last] pairs by the forms of the boundaries that they name, the first of them ``before`` its number."""
        found: dict[tuple[str | None, str | None], list[tuple[int, int]]] = {}
        for first, last in pairs.tolist():
            forms = self._form(service, first - before), self._form(service, last)
            found.setdefault(forms, []).append((first, last))
        return [(*forms, _pairs(some)) for forms, some in found.items()]

    def _products(self) -> Iterator[_Part]:
        """Parts of the space as if links led everywhere."""
        n = self.num_blocks
        every_rank = list(range(len(self.ranks)))
        runs = [_pairs((hin, hout) for hin in range(1, blocks) for hout in range(hin, blocks)) for blocks in self.hosts.values()]
        ways = [way for count in range(1, self.hosts_per_path + 1) for way in permutations(range(len(self.hosts)), count)]
        for kind in dict.fromkeys(self.kinds):
            number = KINDS.index(kind)
            if kind == "exit":
                yield number, (), _pairs((lout, n) for lout in range(1, n)), [], [0]
            if kind == "skip":
                yield number, (), _pairs((lout, lin) for lout in range(n - 1) for lin in range(lout + 1, n)), [], every_rank
            for way in ways:
                on_way = [runs[host] for host in way]
                if kind == "cross":
                    ends = _pairs((lout, lin) for lout in range(self.min_lout, n - 1) for lin in range(lout + 1, n))
                    yield number, way, ends, on_way, every_rank
                if kind == "probe":
                    yield number, way, _pairs((lout, n) for lout in range(self.min_lout, n)), on_way, [0]


_Part = tuple[int, tuple[int, ...], Pairs, list[Pairs], list[int]]
"""(kind, hosts on the way, [lout, lin] pairs, [hin, hout] runs of each host, rank indices): a part of a space is their product."""


def _size(part: _Part) -> int:
    _, _, ends, runs, ranks = part
    return len(ends) * math.prod(map(len, runs)) * len(ranks)


def _pairs(numbers: Iterable[tuple[int, int]]) -> Pairs:
    return np.array(list(numbers), dtype=np.int64).reshape(-1, 2)
