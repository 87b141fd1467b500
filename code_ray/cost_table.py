"""What the paths of a space cost, by the chunk: a ``Profile`` laid out as tables (DESIGN 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from code_ray.path import InferencePath, path_from_vector
from code_ray.path_space import KIND, KINDS, LIN, LOUT, RANK, PathSpace, Rows, visits_of
from code_ray.profiling import Profile, link_key
from code_ray.service import Service
from code_ray.throughput import FloatArray, Limits

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class HostCosts:
    """Seconds a sample at one host, whose blocks are ``blocks`` in sum up to a boundary (0 first).

    ``entry`` (rank, lout, hin - 1), ``exit`` (rank, hout, lin), ``head`` (hout,): its links; the last rank of ``entry`` is that of
    probes, whose links are never reduced. ``out`` (lout,) and ``back`` (lin,), at its end the logits of probes:
    bytes of what a hop there or back hands over, ``onward`` (hout,) of one to another host; where both ends are one provider there is none.
    """

    provider: str
    blocks: FloatArray
    entry: FloatArray
    exit: FloatArray
    head: FloatArray
    out: FloatArray
    back: FloatArray
    onward: FloatArray = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class CostTable:
    """Seconds a sample of everything the paths of a space run. ``blocks`` as in ``HostCosts``; ``skip`` (rank, lout, lin) and
    ``head`` (lout,) are links on the local server, ``providers`` all servers in the order of columns, ``pack_seconds_per_byte`` what
    a hop costs either end. ``between``, by the numbers of two hosts, (rank, hout of the one, hin - 1 of the other): links from host to
    host, the last rank that of probes.
    """

    local_provider: str
    providers: tuple[str, ...]
    blocks: FloatArray
    skip: FloatArray
    head: FloatArray
    hosts: tuple[HostCosts, ...]
    pack_seconds_per_byte: float
    between: Mapping[tuple[int, int], FloatArray] = field(default_factory=dict)

    def seconds(self, rows: Rows) -> FloatArray:
        """Seconds a sample of each row on each of ``providers``, (n, providers)."""
        found = np.zeros((len(rows), len(self.providers)))
        local = self.providers.index(self.local_provider)
        lout, lin, rank = (rows[:, column] for column in (LOUT, LIN, RANK))
        found[:, local] = self.blocks[lout] + self.blocks[-1] - self.blocks[lin]
        skip, leaves, cross = (rows[:, KIND] == KINDS.index(kind) for kind in ("skip", "exit", "cross"))
        found[skip, local] += self.skip[rank[skip], lout[skip], lin[skip]]
        found[leaves, local] += self.head[lout[leaves]]
        inward = np.where(cross, rank, -1)  # links of probes are never reduced
        for stay in self._stays(rows):
            host = self.hosts[stay.host]
            server = self.providers.index(host.provider)
            links = host.entry if stay.before is None else self.between[stay.before, stay.host]
            work = host.blocks[stay.stop] - host.blocks[stay.start]
            found[stay.on, server] += work + links[inward[stay.on], stay.left_at, stay.start]
            returns, ends = stay.is_last & cross[stay.on], stay.is_last & ~cross[stay.on]
            back = stay.on[returns]
            found[back, server] += host.exit[rank[back], stay.stop[returns], lin[back]]
            found[stay.on[ends], server] += host.head[stay.stop[ends]]
        for sender, receiver, on, size in self._hops(rows):
            for end in (sender, receiver):
                found[on, self.providers.index(end)] += self.pack_seconds_per_byte * size
        return found

    def taken(self, rows: Rows, limits: Limits) -> FloatArray:
        """Seconds a sample of each row of each of ``limits.resources``, (n, resources)."""
        seconds, bytes_over = self.seconds(rows), np.zeros((len(rows), len(limits.bandwidth)))
        edges = list(limits.bandwidth)
        for sender, receiver, on, size in self._hops(rows) if edges else ():
            if (sender, receiver) in edges:
                bytes_over[on, edges.index((sender, receiver))] += size
        servers = seconds[:, [self.providers.index(provider) for provider in limits.budgets]]
        return np.column_stack([servers, bytes_over / np.array([*limits.bandwidth.values()])])

    def _stays(self, rows: Rows) -> Iterator[_Stay]:
        on_way = visits_of(rows)
        for step, (at, hin, hout) in enumerate(on_way):
            is_last = np.full(len(rows), True) if step + 1 == len(on_way) else rows[:, on_way[step + 1][0]] < 0
            for before in range(len(self.hosts)) if step else (None,):
                came = np.full(len(rows), True) if before is None else rows[:, on_way[step - 1][0]] == before
                for host in range(len(self.hosts)):
                    on = np.flatnonzero(came & (rows[:, at] == host))
                    left_at = rows[on, on_way[step - 1][2] if step else LOUT]
                    if len(on):
                        yield _Stay(on, host, before, left_at, rows[on, hin] - 1, rows[on, hout], is_last[on])

    def _hops(self, rows: Rows) -> Iterator[tuple[str, str, Indices, FloatArray]]:
        """What crosses from provider to provider: (from, to, which rows, bytes a sample)."""
        for stay in self._stays(rows):
            host = self.hosts[stay.host]
            sender = self.local_provider if stay.before is None else self.hosts[stay.before].provider
            if sender != host.provider:
                yield sender, host.provider, stay.on, (host.out if stay.before is None else self.hosts[stay.before].onward)[stay.left_at]
            if host.provider != self.local_provider:
                back = stay.on[stay.is_last]
                yield host.provider, self.local_provider, back, host.back[rows[back, LIN]]


class _Stay(NamedTuple):
    """Rows (their positions ``on``) that run blocks ``start .. stop - 1`` of a host, having left another one, or with None the local
    service, at boundary ``left_at``. ``is_last``: whether no host follows.
    """

    on: Indices
    host: int
    before: int | None
    left_at: Rows
    start: Rows
    stop: Rows
    is_last: npt.NDArray[np.bool_]


def cost_table(space: PathSpace, profile: Profile, services: Mapping[str, Service]) -> CostTable:
    """The costs of ``space`` as ``profile`` measured them, ``services`` being those that the asker has; NaN for links that it did not
    measure, which no path of the space needs.
    """
    local, n = services[space.local], space.num_blocks
    home = profile.placement[space.local]
    ranks = range(len(space.ranks))

    def table(provider: str, shape: tuple[int, ...], make: Callable[..., tuple[InferencePath, int] | None]) -> FloatArray:
        found = np.full(shape, np.nan)
        for place in np.ndindex(shape):
            if (asked := make(*place)) is not None:
                path, slot = asked
                key = link_key(path.link_slots[slot], path, services)
                found[place] = profile.link_seconds.get(provider, {}).get(key, np.nan)
        return found

    def path(vector: Sequence[int], rank: int | None = None, host: str | None = None, then: str | None = None) -> InferencePath:
        others = {} if then is None else {then: space.hosts[then]}
        return path_from_vector(vector, space.local, n, host, space.hosts.get(host or ""), rank, others)

    def onward(first: str, second: str) -> FloatArray:
        blocks = space.hosts[second]

        def link(r: int, hout: int, start: int) -> tuple[InferencePath, int] | None:
            way = (0, 1, hout, start + 1, blocks - 1)
            probe = r == len(ranks)
            return (path(way if probe else (*way, n - 1), None if probe else space.ranks[r], first, second), 1) if hout else None

        return table(profile.placement[second], (len(ranks) + 1, space.hosts[first], blocks - 1), link)

    hosts = []
    for name, blocks in space.hosts.items():
        provider = profile.placement[name]
        there, back = ([profile.hop_bytes(local, place, sender) for place in range(n + 1)] for sender in (home, provider))
        hosts.append(
            HostCosts(
                provider,
                _summed(profile.block_seconds[name]),
                table(
                    provider,
                    (len(ranks) + 1, n, blocks - 1),
                    lambda r, lout, start, name=name, blocks=blocks: (
                        (path((lout, start + 1, blocks - 1), None, name), 0)
                        if r == len(ranks)
                        else ((path((lout, start + 1, blocks - 1, n - 1), space.ranks[r], name), 0) if lout < n - 1 else None)
                    ),
                ),
                table(
                    provider,
                    (len(ranks), blocks, n),
                    lambda r, hout, lin, name=name: (path((0, 1, hout, lin), space.ranks[r], name), 1) if hout and lin else None,
                ),
                table(provider, (blocks,), lambda hout, name=name: (path((0, 1, hout), None, name), 1) if hout else None),
                np.array(there),
                np.array(back),
                # Of a host that keeps its shapes to itself nothing is known, and no path goes on from there.
                np.array([profile.hop_bytes(services[name], place, provider) for place in range(blocks) if name in services]),
            )
        )
    skip = table(
        home, (len(ranks), n, n), lambda r, lout, lin: (path((lout, lin), space.ranks[r]), 0) if lout < lin and lout < n - 1 else None
    )
    head = table(home, (n,), lambda lout: (path((lout,)), 0) if lout else None)
    providers = tuple(dict.fromkeys([home, *(host.provider for host in hosts)]))
    names = list(space.hosts)
    pairs = permutations(range(len(names)), 2) if space.hosts_per_path > 1 else ()
    between = {(first, second): onward(names[first], names[second]) for first, second in pairs}
    own = _summed(profile.block_seconds[space.local])
    return CostTable(home, providers, own, skip, head, tuple(hosts), profile.pack_seconds_per_byte, between)


def _summed(seconds: Sequence[float]) -> FloatArray:
    return np.concatenate([[0.0], np.cumsum(seconds)])
