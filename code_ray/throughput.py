"""Throughput of mixtures of paths: the linear programme and its closed form (DESIGN 2.3).

Times are seconds per sample on each provider's server, rates samples per second. A provider's *budget* is the share of
its server that the local service may use: 1 for its own, kappa in (0, 1] for a host. A network edge of limited bandwidth is
one more *resource*, all of which may be used: a sample takes payload over bandwidth seconds of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

from code_ray.errors import PlanError

FloatArray = npt.NDArray[np.float64]
Edge = tuple[str, str]
"""A network edge in one direction: (from provider, to provider)."""
Resource = str | Edge
"""What samples take time of: a provider's server, or a network edge whose bandwidth is limited."""


@dataclass(frozen=True)
class PathCost:
    """What one sample on a path costs: seconds by provider, bytes by network edge and direction."""

    seconds: Mapping[str, float]
    payload_bytes: Mapping[Edge, float] = field(default_factory=dict)

    def at(self, provider: str) -> float:
        """Seconds per sample at ``provider`` (0 where the path does not touch it)."""
        return self.seconds.get(provider, 0.0)

    def elsewhere(self, provider: str) -> float:
        """Seconds per sample at all providers but ``provider``."""
        return sum(seconds for name, seconds in self.seconds.items() if name != provider)

    def plus(self, other: PathCost, share: float = 1.0) -> PathCost:
        """With what a ``share`` of the samples costs on another path as well: a gated path's reruns, another service's answer."""
        seconds, payload = dict(self.seconds), dict(self.payload_bytes)
        for provider, more in other.seconds.items():
            seconds[provider] = seconds.get(provider, 0.0) + share * more
        for edge, more in other.payload_bytes.items():
            payload[edge] = payload.get(edge, 0.0) + share * more
        return PathCost(seconds, payload)


def payload_by_edge(home: str, input_bytes: float, legs: Iterable[tuple[str, float]], end: str | None = None) -> dict[Edge, float]:
    """Bytes of one sample by network edge: it comes from ``home``, and its logits go back there, or to ``end``.

    ``legs``: where each leg runs, and the bytes that it hands on. What stays at one place crosses no edge.
    """
    found: dict[Edge, float] = {}
    sender, size = home, input_bytes
    for place, hands_on in (*legs, (home if end is None else end, 0.0)):
        if place != sender:
            found[sender, place] = found.get((sender, place), 0.0) + size
        sender, size = place, hands_on
    return found


@dataclass(frozen=True)
class Limits:
    """The right-hand sides of the programme.

    ``budgets`` share of each provider's server, ``loss_points`` the largest average-accuracy loss, ``bandwidth`` bytes
    per second by edge (an edge not named is unlimited).
    """

    budgets: Mapping[str, float]
    loss_points: float
    bandwidth: Mapping[Edge, float] = field(default_factory=dict)

    @property
    def resources(self) -> tuple[Resource, ...]:
        """What the rows of the programme are about: servers, then limited edges."""
        return (*self.budgets, *self.bandwidth)

    @property
    def shares(self) -> FloatArray:
        """How much of each resource may be used, (resources,)."""
        return np.array([*self.budgets.values(), *[1.0] * len(self.bandwidth)])

    def seconds(self, costs: Sequence[PathCost]) -> FloatArray:
        """Seconds that a sample on each path takes of each resource, (paths, resources)."""
        rows = [
            [
                *(cost.at(provider) for provider in self.budgets),
                *(cost.payload_bytes.get(edge, 0.0) / capacity for edge, capacity in self.bandwidth.items()),
            ]
            for cost in costs
        ]
        return np.asarray(rows, dtype=np.float64).reshape(len(costs), len(self.resources))

    def used(self, mixture: Mixture, costs: Sequence[PathCost]) -> dict[Resource, float]:
        """The share of each resource that a mixture of paths takes."""
        return dict(zip(self.resources, (np.array(mixture.rates) @ self.seconds(costs)).tolist(), strict=True))


@dataclass(frozen=True)
class Mixture:
    """Rates (samples per second) of the paths of a plan, in the order the paths were given."""

    rates: tuple[float, ...]

    @property
    def throughput(self) -> float:
        """Samples per second over all paths."""
        return sum(self.rates)

    def average_loss_points(self, accuracies: Sequence[float], accuracy_original: float) -> float:
        """Average-accuracy loss of the mixture in points."""
        lost = sum(rate * (accuracy_original - a) for rate, a in zip(self.rates, accuracies, strict=True))
        return 100 * lost / self.throughput if self.throughput > 0 else 0.0

    def load(self, provider: str, costs: Sequence[PathCost]) -> float:
        """Share of ``provider``'s server that the mixture uses."""
        return sum(rate * cost.at(provider) for rate, cost in zip(self.rates, costs, strict=True))


def best_mixture(costs: Sequence[PathCost], accuracies: Sequence[float], accuracy_original: float, limits: Limits) -> Mixture:
    """Solve the linear programme of DESIGN 2.3: most samples a second within the servers, the network and the loss limit.

    Raises:
        PlanError: for a path that touches a provider without a budget, or costs no time, or where HiGHS gives up.
    """
    return best_joint_mixture(costs, [Answers(accuracies, accuracy_original, limits.loss_points)], limits)


@dataclass(frozen=True)
class Answers:
    """What one service answers on each column of a programme: ``accuracies`` (columns,), and its loss row: average accuracy may fall by
    ``loss_points`` below ``accuracy_original``.
    """

    accuracies: Sequence[float]
    accuracy_original: float
    loss_points: float


def best_joint_mixture(costs: Sequence[PathCost], answers: Sequence[Answers], limits: Limits) -> Mixture:
    """As ``best_mixture``, for frames that several services answer at once: a column is a way to get all of their answers to a frame,
    each service has a loss row of its own. ``limits.loss_points`` is not a limit here.

    Raises:
        PlanError: as ``best_mixture``.
    """
    matrix, bounds, scale = _server_and_network_rows(costs, limits)
    # In points: HiGHS' absolute tolerances then mean something.
    loss_rows = [[100 * (service.accuracy_original - a) - service.loss_points for a in service.accuracies] for service in answers]
    solution = linprog(-np.ones(len(costs)), A_ub=np.vstack([matrix, *loss_rows]), b_ub=[*bounds, *[0.0] * len(answers)], method="highs")
    if not solution.success:
        raise PlanError(f"the linear programme has no solution: {solution.message}")
    return _mixture(solution.x, scale)


def least_loss_mixture(
    costs: Sequence[PathCost], accuracies: Sequence[float], accuracy_original: float, limits: Limits, throughput: float
) -> Mixture | None:
    """The mixture of exactly ``throughput`` samples a second that loses least average accuracy; None where out of reach.

    ``limits.loss_points`` is not a limit here.

    Raises:
        PlanError: as ``best_mixture``.
    """
    matrix, bounds, scale = _server_and_network_rows(costs, limits)
    loss = [100 * (accuracy_original - a) for a in accuracies]
    total = np.ones((1, len(costs)))
    solution = linprog(loss, A_ub=matrix, b_ub=bounds, A_eq=total, b_eq=[throughput / scale], method="highs")
    return _mixture(solution.x, scale) if solution.success else None


def _server_and_network_rows(costs: Sequence[PathCost], limits: Limits) -> tuple[FloatArray, list[float], float]:
    """Rows, bounds, and the rate in which the programme counts: a lone path's, so that any machine's is well scaled."""
    for cost in costs:
        if missing := set(cost.seconds) - set(limits.budgets):
            raise PlanError(f"no budget is given for provider(s) {sorted(missing)}; name a kappa for each host")
        if not sum(cost.seconds.values()) > 0:
            raise PlanError(f"path cost {dict(cost.seconds)} is not positive; measure the profile again")
    scale = max(1 / max(cost.seconds.values()) for cost in costs)
    return limits.seconds(costs).T * scale, limits.shares.tolist(), scale


def _mixture(rates: FloatArray, scale: float) -> Mixture:
    return Mixture(tuple(float(max(rate, 0.0)) * scale for rate in rates))


def pair_throughput(t0: float, tau_l: FloatArray | float, tau_h: FloatArray | float, kappa: float) -> tuple[FloatArray, FloatArray]:
    """Closed form for the paper's pair, original + one path at maximum offload: (Th_l, Th_h) in samples a second.

    Seconds per sample; broadcasts. A path that frees no local time, or uses no host, gets Th_h as DESIGN 2.3 says.
    """
    tau_l, tau_h = np.asarray(tau_l, dtype=np.float64), np.asarray(tau_h, dtype=np.float64)
    with np.errstate(divide="ignore"):
        by_host = np.where(tau_h > 0, kappa / tau_h, np.inf)
        by_local = np.where(tau_l > 0, 1 / tau_l, np.inf)
    th_h = np.where(tau_l < t0, np.minimum(by_host, by_local), 0.0)
    th_l = np.maximum(1 - th_h * tau_l, 0.0) / t0
    return th_l, th_h


def pair_seconds(limits: Limits, local_provider: str, seconds: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What ``pair_throughput`` asks for at kappa = 1, of paths' seconds of each resource (n, resources): tau_l (n,), and tau_h / kappa
    (n,) of the host or network edge that is full first.
    """
    local = limits.resources.index(local_provider)
    return seconds[:, local], np.delete(seconds / limits.shares, local, axis=1).max(axis=1, initial=0.0)


def cycle_throughput(t0: float, tau_l: FloatArray, tau_h: FloatArray, kappa: float, own: int, offloaded: int) -> FloatArray:
    """The second reading of b_l and b_h: a cycle serves ``own`` + ``offloaded`` samples (``throughput: cycle``)."""
    local_busy = t0 * own + np.asarray(tau_l) * offloaded
    return np.asarray((own + offloaded) / np.maximum(local_busy, np.asarray(tau_h) * offloaded / kappa))


def host_efficiency(t0: float, tau_l: float, tau_h: float) -> float | None:
    """e(p): local work saved per host work spent; None for a path that uses no host."""
    return (t0 - tau_l) / tau_h if tau_h > 0 else None
