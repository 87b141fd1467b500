"""What the paths of a space cost, by the chunk: a ``Profile`` laid out as tables (DESIGN 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from code_ray.path import InferencePath, path_from_vector
from code_ray.path_space import HIN, HOST, HOUT, KIND, KINDS, LIN, LOUT, RANK, PathSpace, Rows
from code_ray.profiling import Profile, hop_bytes, link_key
from code_ray.service import Service
from code_ray.throughput import FloatArray, Limits


@dataclass(frozen=True)
class HostCosts:
    """Seconds a sample at one host, whose blocks are ``blocks`` in sum up to a boundary (0 first).

    ``entry`` (rank, lout, hin - 1), ``exit`` (rank, hout, lin), ``head`` (hout,): its links; the last rank of ``entry`` is that of
    probes, whose links are never reduced. ``out`` (lout,) and ``back`` (lin,), at its end the logits of probes:
    bytes of what a hop there or back hands over; 0 where the host shares the local server.
    """

    provider: str
    blocks: FloatArray
    entry: FloatArray
    exit: FloatArray
    head: FloatArray
    out: FloatArray
    back: FloatArray


@dataclass(frozen=True)
class CostTable:
    """Seconds a sample of everything the paths of a space run. ``blocks`` as in ``HostCosts``; ``skip`` (rank, lout, lin) and
    ``head`` (lout,) are links on the local server, ``providers`` all servers in the order of columns, ``pack_seconds_per_byte`` what
    a hop costs either end.
    """

    local_provider: str
    providers: tuple[str, ...]
    blocks: FloatArray
    skip: FloatArray
    head: FloatArray
    hosts: tuple[HostCosts, ...]
    pack_seconds_per_byte: float

    def seconds(self, rows: Rows) -> FloatArray:
        """Seconds a sample of each row on each of ``providers``, (n, providers)."""
        found = np.zeros((len(rows), len(self.providers)))
        local = self.providers.index(self.local_provider)
        lout, hin, hout, lin, rank = (rows[:, column] for column in (LOUT, HIN, HOUT, LIN, RANK))
        found[:, local] = self.blocks[lout] + self.blocks[-1] - self.blocks[lin]
        skip, leaves, cross = (rows[:, KIND] == KINDS.index(kind) for kind in ("skip", "exit", "cross"))
        found[skip, local] += self.skip[rank[skip], lout[skip], lin[skip]]
        found[leaves, local] += self.head[lout[leaves]]
        for number, host in enumerate(self.hosts):
            hosted, returns = rows[:, HOST] == number, cross & (rows[:, HOST] == number)
            hop, link = self.pack_seconds_per_byte * (host.out[lout] + host.back[lin]), np.zeros(len(rows))
            link[hosted] = host.head[hout[hosted]]
            link[returns] = host.exit[rank[returns], hout[returns], lin[returns]]
            found[hosted, local] += hop[hosted]
            entry = host.entry[np.where(cross, rank, len(host.entry) - 1)[hosted], lout[hosted], hin[hosted] - 1]
            work = host.blocks[hout[hosted]] - host.blocks[hin[hosted] - 1] + entry
            found[hosted, self.providers.index(host.provider)] += work + link[hosted] + hop[hosted]
        return found

    def taken(self, rows: Rows, limits: Limits) -> FloatArray:
        """Seconds a sample of each row of each of ``limits.resources``, (n, resources)."""
        seconds, bytes_over = self.seconds(rows), np.zeros((len(rows), len(limits.bandwidth)))
        for number, host in enumerate(self.hosts):
            hosted = rows[:, HOST] == number
            for column, edge in enumerate(limits.bandwidth):
                if edge == (self.local_provider, host.provider):
                    bytes_over[hosted, column] = host.out[rows[hosted, LOUT]]
                elif edge == (host.provider, self.local_provider):
                    bytes_over[hosted, column] = host.back[rows[hosted, LIN]]
        servers = seconds[:, [self.providers.index(provider) for provider in limits.budgets]]
        return np.column_stack([servers, bytes_over / np.array([*limits.bandwidth.values()])])


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

    def path(vector: Sequence[int], rank: int | None = None, host: str | None = None) -> InferencePath:
        return path_from_vector(vector, space.local, n, host, space.hosts.get(host or ""), rank)

    hosts = []
    for name, blocks in space.hosts.items():
        provider = profile.placement[name]
        away = float(provider != home)
        there, back = ([hop_bytes(local, place, profile.mode_of(sender)) for place in range(n + 1)] for sender in (home, provider))
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
                np.array(there) * away,
                np.array(back) * away,
            )
        )
    skip = table(
        home, (len(ranks), n, n), lambda r, lout, lin: (path((lout, lin), space.ranks[r]), 0) if lout < lin and lout < n - 1 else None
    )
    head = table(home, (n,), lambda lout: (path((lout,)), 0) if lout else None)
    providers = tuple(dict.fromkeys([home, *(host.provider for host in hosts)]))
    return CostTable(home, providers, _summed(profile.block_seconds[space.local]), skip, head, tuple(hosts), profile.pack_seconds_per_byte)


def _summed(seconds: Sequence[float]) -> FloatArray:
    return np.concatenate([[0.0], np.cumsum(seconds)])
