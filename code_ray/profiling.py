"""Measured times of blocks, links and packing -> ``Profile`` (DESIGN 2.3).

Every time is the median of repeated runs, per sample, at the batch size and in the execution mode in which its server
is fastest. A path's time on a server is the sum over what it runs there. One core a provider: the caller sets
``torch.set_num_threads``.
"""

from __future__ import annotations

import math
import mmap
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from code_ray.blocks import Boundary, ExecutionMode, optimise
from code_ray.errors import PlanError
from code_ray.links import Link, LinkSpec
from code_ray.path import InferencePath, LinkSlot, Segment
from code_ray.runner import Bounded, Leg, Payload, Placement, slot_spec, walk
from code_ray.service import Service
from code_ray.throughput import PathCost, payload_by_edge

BATCH_SIZES = (16, 32, 64, 128)
REPEATS = 7
LONG_BATCH_S = 0.2
"""What a call costs beside its samples, at most a few milliseconds, is nothing in a batch that takes so long: larger ones gain nothing."""

MAX_SECONDS = 2.0
"""Past this no run is repeated more often than it takes for a median."""


class Execution(BaseModel):
    """How a service is run fastest on its server: mode and batch size, with the seconds per sample it took."""

    model_config = ConfigDict(frozen=True)

    mode: ExecutionMode
    batch_size: int
    seconds: float


def candidate_modes(device: str = "cpu") -> tuple[ExecutionMode, ...]:
    """Execution modes worth timing on a torch device: bf16 only where it computes in it."""
    modes = [ExecutionMode(), ExecutionMode(channels_last=True)]
    if torch.cuda.is_bf16_supported(including_emulation=False) if device.startswith("cuda") else supports_bf16():
        modes.append(ExecutionMode("bfloat16", channels_last=True))
    return tuple(modes)


def supports_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware; emulated, it is several times slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("arm_bf16"))


def median_seconds(run: Callable[[], object], repeats: int = REPEATS, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median time of ``run`` by ``clock`` after two warm-up calls; of what takes long, fewer runs say as much (three at the least)."""
    for _ in range(2):
        run()
    times: list[float] = []
    while len(times) < min(3, repeats) or (len(times) < repeats and sum(times) < MAX_SECONDS):
        started = clock()
        run()
        times.append(clock() - started)
    return statistics.median(times)


def time_modules(modules: Sequence[nn.Module], taken: Boundary, mode: ExecutionMode, batch_size: int, repeats: int = REPEATS) -> float:
    """Seconds per sample of ``modules`` in order, on a batch of noise such as the first of them is given."""
    module = optimise(nn.Sequential(*modules), mode)
    value = mode.cast(taken.noise(batch_size))
    with torch.inference_mode():
        return median_seconds(lambda: module(value), repeats) / batch_size


def best_execution(
    service: Service,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    modes: Iterable[ExecutionMode] | None = None,
    repeats: int = 5,
) -> Execution:
    """The mode and batch size at which the whole service takes least time per sample."""
    blocks, taken = list(service.blocks), service.boundaries[0]
    options = []
    for mode in modes or candidate_modes():
        seconds, size = fastest_size(partial(time_modules, blocks, taken, mode, repeats=repeats), batch_sizes)
        options.append(Execution(mode=mode, batch_size=size, seconds=seconds))
    return min(options, key=lambda option: option.seconds)


def fastest_size(seconds_at: Callable[[int], float], batch_sizes: Sequence[int]) -> tuple[float, int]:
    """Least seconds per sample and the batch size that takes it; ``seconds_at`` of a batch size gives seconds per sample.

    Sizes are tried from the smallest up, none beyond a batch that takes ``LONG_BATCH_S``.
    """
    tried: list[tuple[float, int]] = []
    for size in sorted(batch_sizes):
        tried.append((seconds_at(size), size))
        if tried[-1][0] * size > LONG_BATCH_S:
            break
    return min(tried)


class Times(BaseModel):
    """What one party measured of its services and of the links that live with them.

    ``block_seconds`` by service, ``link_seconds`` by provider the link lives at and ``link_key``, all per sample.
    """

    model_config = ConfigDict(frozen=True)

    executions: dict[str, Execution]
    block_seconds: dict[str, tuple[float, ...]]
    link_seconds: dict[str, dict[str, float]]


class Profile(Times):
    """Measured times of every block and link of a search (``profile.json``).

    ``pack_seconds_per_byte`` is what writing or reading a hop's tensor costs a server, ``payload`` how activations cross.
    """

    pack_seconds_per_byte: float
    placement: dict[str, str]
    payload: Payload | None = None

    def mode_of(self, provider: str) -> ExecutionMode:
        """Execution mode of a provider's server: that of its first service."""
        return next(execution.mode for name, execution in self.executions.items() if self.placement[name] == provider)

    def original_seconds(self, service: str) -> float:
        """T0: the whole service on its own server."""
        return sum(self.block_seconds[service])

    def cost(self, path: InferencePath, services: Mapping[str, Service]) -> PathCost:
        """Seconds by provider and bytes by edge for one sample on ``path``; ``services`` are those that the asker has.

        Raises:
            PlanError: for a path whose links this profile has not measured.
        """
        home, legs = self.placement[path.local], walk(path, self.placement)
        seconds: dict[str, float] = {}
        for leg in legs:
            seconds[leg.provider] = seconds.get(leg.provider, 0.0) + self._leg_seconds(leg, path, services)
        hands_on = ((leg.provider, self.hop_bytes(*leg_target(leg, services), leg.provider)) for leg in legs)
        payload = payload_by_edge(home, self.hop_bytes(services[path.local], 0, home), hands_on)
        for edge, size in payload.items():
            for end in edge:
                seconds[end] = seconds.get(end, 0.0) + size * self.pack_seconds_per_byte
        cost = PathCost(seconds, payload)
        return cost.plus(PathCost({home: self.original_seconds(path.local)}), path.rerun) if path.rerun else cost

    def hop_bytes(self, service: Service, position: int, provider: str) -> float:
        """Bytes a sample of what ``provider``'s server hands on at a boundary of ``service``."""
        return hop_bytes(service, position, self.mode_of(provider), self.payload)

    def _leg_seconds(self, leg: Leg, path: InferencePath, services: Mapping[str, Service]) -> float:
        total = 0.0
        for step in leg.steps:
            if isinstance(step, Segment):
                total += sum(self.block_seconds[step.service][step.start : step.stop])
            else:
                key = link_key(step, path, services)
                measured = self.link_seconds.get(leg.provider, {})
                if key not in measured:
                    raise PlanError(
                        f"link {key} of path {path} was not measured at {leg.provider!r}; profile again with this path in the space"
                    )
                total += measured[key]
        return total


def leg_target(leg: Leg, services: Mapping[str, Service]) -> tuple[Service, int]:
    """The service, and its boundary, that a leg's output belongs to."""
    last = leg.steps[-1]
    name, position = (last.service, last.stop) if isinstance(last, Segment) else last.target
    return services[name], position


def leg_out_shape(leg: Leg, path: InferencePath, services: Mapping[str, Service]) -> tuple[int, ...]:
    """Shape per sample of what a leg hands on."""
    service, position = leg_target(leg, services)
    return service.boundaries[position].shape


def hop_bytes(service: Service, position: int, mode: ExecutionMode, payload: Payload | None = None) -> float:
    """Bytes a sample of what a hop carries at a boundary, from a server that runs in ``mode``: images as they came, a byte a value, and
    four a token id; activations in the mode's number format, or that of ``payload``; logits as float32.
    """
    if position == 0:
        return float(service.spec.preprocessing.noise(1).nbytes)
    width = 4 if position == service.num_blocks else 2 if payload else mode.torch_dtype.itemsize
    return float(math.prod(service.boundaries[position].shape) * width)


def spec_key(spec: LinkSpec) -> str:
    """A link's description as a stable string, the key of its time."""
    shapes = "-".join("x".join(map(str, shape)) for shape in (spec.in_shape, spec.out_shape))
    kind = "tokens" if spec.tokens else spec.pool
    return f"{shapes},rank={spec.rank},relu={int(spec.relu)},{kind}{',masked' * spec.masked}"


def link_key(slot: LinkSlot, path: InferencePath, services: Mapping[str, Bounded]) -> str:
    """What a link's time is kept under: its description or, where one of its ends is of no service in ``services``, where it leads."""
    if {slot.source[0], slot.target[0]} <= set(services):
        return spec_key(slot_spec(slot, path, services))
    return f"{' > '.join(f'{service}[{position}]' for service, position in (slot.source, slot.target))},rank={slot.rank}"


def measure_profile(
    paths: Iterable[InferencePath],
    services: Mapping[str, Service],
    placement: Placement,
    progress: Callable[[str], None] = lambda _: None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> Profile:
    """Time every block of ``services`` and every link that one of ``paths`` needs."""
    return profile_of([measure_times(paths, services, placement, progress, batch_sizes)], placement)


def profile_of(measured: Sequence[Times], placement: Placement) -> Profile:
    """What all parties measured, with what packing costs here."""
    return Profile(
        executions={name: found for times in measured for name, found in times.executions.items()},
        block_seconds={name: found for times in measured for name, found in times.block_seconds.items()},
        link_seconds={provider: found for times in measured for provider, found in times.link_seconds.items()},
        pack_seconds_per_byte=_measure_packing(),
        placement=dict(placement),
    )


def measure_times(
    paths: Iterable[InferencePath],
    services: Mapping[str, Service],
    placement: Placement,
    progress: Callable[[str], None] = lambda _: None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    told: Mapping[str, Bounded] | None = None,
) -> Times:
    """Time every block of ``services`` and every link of ``paths`` that lives with one of their providers.

    ``told``: of other parties' services the boundaries that these links meet. Who has been told of some gives the times of all its
    links by where they lead: no shape is told on.
    """
    executions: dict[str, Execution] = {}
    block_seconds: dict[str, tuple[float, ...]] = {}
    for name, service in services.items():
        executions[name] = best_execution(service, batch_sizes)
        progress(
            f"{name}: {executions[name].seconds * 1e3:.3f} ms an image at batch {executions[name].batch_size}, {executions[name].mode}"
        )
        block_seconds[name] = _measure_blocks(service, executions[name])
    owners = {placement[name]: executions[name] for name in reversed(list(services))}
    needed: dict[str, dict[LinkSpec, set[str]]] = {}
    for path in paths:
        for leg in walk(path, placement):
            for slot in leg.slots if leg.provider in owners else ():
                spec = slot_spec(slot, path, {**(told or {}), **services})
                key = link_key(slot, path, services if told is None else {})
                needed.setdefault(leg.provider, {}).setdefault(spec, set()).add(key)
    link_seconds: dict[str, dict[str, float]] = {provider: {} for provider in needed}
    for provider, specs in needed.items():
        execution = owners[provider]
        for spec, keys in specs.items():
            seconds = time_modules(
                [Link(spec)], Boundary(spec.in_shape, nonnegative=False), execution.mode, execution.batch_size, repeats=5
            )
            link_seconds[provider] |= dict.fromkeys(sorted(keys), seconds)
    progress(f"{sum(map(len, needed.values()))} different links measured")
    return Times(executions=executions, block_seconds=block_seconds, link_seconds=link_seconds)


def _measure_blocks(service: Service, execution: Execution) -> tuple[float, ...]:
    """Seconds per sample of each block, scaled so that they add up to the whole service's time."""
    alone = [
        time_modules([block], boundary, execution.mode, execution.batch_size)
        for block, boundary in zip(service.blocks, service.boundaries, strict=False)
    ]
    factor = execution.seconds / sum(alone)
    return tuple(seconds * factor for seconds in alone)


def _measure_packing(size: int = 8 << 20) -> float:
    """Seconds per byte for one end of a hop: half of what a copy into fresh shared memory and out of it takes."""
    value = np.ones(size, np.uint8)

    def hop() -> None:
        with mmap.mmap(-1, size) as memory:
            memory.write(value.data)
            memory.seek(0)
            memory.read()

    return median_seconds(hop) / (2 * size)
