"""What a provider makes ready to run of a plan: legs of its own blocks and of the links that live with it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import ray
import torch

from code_ray.artifact import RunDirectory
from code_ray.blocks import ExecutionMode
from code_ray.joining import check_trunk
from code_ray.path import InferencePath
from code_ray.plan import Plan, PlannedPath, PlannedTrunk, load_leg_links
from code_ray.preprocessing import Preprocessing, TextPreprocessing
from code_ray.profiling import candidate_modes, fastest_size, leg_out_shape, median_seconds
from code_ray.runner import Leg, LegRunner, Payload, fan_out, handed_on, leg_modules, walk
from code_ray.service import Service, ServiceSpec
from code_ray.wire import GROUPED
from deployments.config import ProviderOptions
from deployments.parcel import Parcel
from deployments.routes import hosted_paths
from deployments.stores import load_own_services, outline
from deployments.worker import Array, HostedLeg

BATCH_SIZES = (16, 32, 64, 128)
MODE_BATCH_SIZE = 32
REPEATS = 3
BESIDE_TRAFFIC = 10
"""Nice value of a thread that makes legs ready while others are served."""


class Hosting:
    """Makes legs of plans for the services that ``plan`` places at provider ``name``, whose blocks it loads once.

    ``specs``: the description of every service of the plan, those of other providers without their weights.

    Raises:
        ServiceError, IntegrityError: for services that are not those of the plan.
    """

    def __init__(
        self, name: str, plan: Plan, store_dir: Path, specs: Mapping[str, ServiceSpec], options: ProviderOptions, device: str
    ) -> None:
        self._name = name
        self._specs = specs
        self._device = device
        self._threads = options.threads
        self._sizes = (options.batch_size,) if options.batch_size else BATCH_SIZES
        self._own = load_own_services(name, plan, store_dir)
        self.mode = options.execution_mode or _fastest_mode(next(iter(self._own.values())), device)
        self._pack_seconds_per_byte = _measure_packing()

    def make_legs(self, plan: Plan, run: RunDirectory, known: Mapping[str, HostedLeg], beside_traffic: bool) -> dict[str, HostedLeg]:
        """All legs of ``plan`` that run here, by key, with links from ``run``; those in ``known`` as they are, but for services that have
        another version now. ``beside_traffic``: in a thread that may be slowed down for good, and is measured by its own time.

        Raises:
            PlanError, IntegrityError: for links that are missing, of other shapes or other weights than the plan's.
            ServiceError: for another version of a service that is not there.
        """
        if beside_traffic:
            torch.set_num_threads(self._threads)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BESIDE_TRAFFIC)
        paths = hosted_paths(plan, {service: len(spec.boundaries) - 1 for service, spec in self._specs.items()})
        mine = [leg for _, path in paths for leg in walk(path, plan.placement) if leg.provider == self._name]
        changed = {service for service, loaded in self._own.items() if loaded.content_hash != plan.services[service]}
        own = load_own_services(self._name, plan, run.stores_dir / self._name) if changed else self._own
        services = own | {service: outline(spec, mine) for service, spec in self._specs.items() if service not in own}
        on_cpu = beside_traffic and self._device == "cpu"
        clock = time.thread_time if on_cpu else time.perf_counter
        measured = {(leg.path, leg.position): (leg.seconds, leg.batch_size) for leg in known.values()}
        legs: dict[str, HostedLeg] = {}
        for planned, path in paths:
            # Gated forms of a path have the legs of the plain one.
            made = {**(known if changed.isdisjoint((path.local, *path.hosts)) else {}), **legs}
            legs |= self._make_path(planned, path.plain, plan, run.stores_dir / self._name, services, made, measured, clock)
        for trunk in plan.trunks:
            legs |= self._make_fan(trunk, plan, run.stores_dir / self._name, services, {} if changed else known, clock)
        self._own = own
        return legs

    def _make_fan(
        self,
        trunk: PlannedTrunk,
        plan: Plan,
        store_dir: Path,
        services: Mapping[str, Service],
        known: Mapping[str, HostedLeg],
        clock: Callable[[], float],
    ) -> dict[str, HostedLeg]:
        """The leg with which a trunk ends, where that is here: its blocks once, then of each path the leg that begins with its exit link."""
        paths = check_trunk(plan, trunk)
        fan = fan_out(paths, plan.placement)
        index = len(fan.stem) - 1
        key = trunk.leg_key(index)
        if fan.stem[-1].provider != self._name:
            return {}
        if key in known:
            return {key: known[key]}
        whole = [(planned, path, walk(path, plan.placement)) for (planned, _), path in zip(plan.behind(trunk), paths, strict=True)]
        links = [load_leg_links(legs[index], path, planned, services, store_dir) for planned, path, legs in whole]
        stem = LegRunner(leg_modules(fan.stem[-1], services, links[0]), self.mode, self._device)
        ends = []
        for (planned, _, _), branch, own in zip(whole, fan.branches, links, strict=True):
            last = len(branch) == 1
            carried = None if last else planned.payload
            ends.append((LegRunner(leg_modules(branch[0], services, own), self.mode, self._device, carried), last))
        local = services[paths[0].local]
        shape, example = self._taken(
            local.spec.preprocessing, whole[0][2][index - 1] if index else None, paths[0], services, whole[0][0].payload
        )

        def answers(value: Array) -> list[Array]:
            shared = stem.run(local.preprocess(value) if index == 0 else from_wire(value))
            return [_output(runner, shared, last) for runner, last in ends]

        parcel = Parcel.of(answers(example[:1]))

        def call(value: Array) -> Array:
            return parcel.pack(answers(value))

        seconds, size = fastest_size(partial(_seconds_an_image, call, example, clock), self._sizes)
        guest = any(plan.placement[path.local] != self._name for path in paths)
        takes, gives = example[:1].nbytes, sum(parcel.sizes)
        packing = (takes + gives) * self._pack_seconds_per_byte
        name = GROUPED.join(str(path) for path in paths)
        return {key: HostedLeg(call, name, shape, guest, index, size, seconds, packing, takes, gives, example.dtype, parcel=parcel)}

    def _make_path(
        self,
        planned: PlannedPath,
        path: InferencePath,
        plan: Plan,
        store_dir: Path,
        services: Mapping[str, Service],
        known: Mapping[str, HostedLeg],
        measured: Mapping[tuple[str, int], tuple[float, int]],
        clock: Callable[[], float],
    ) -> dict[str, HostedLeg]:
        made = {}
        before: Leg | None = None
        legs, preprocessing = walk(path, plan.placement), services[path.local].spec.preprocessing
        for index, leg in enumerate(legs):
            key = planned.leg_key(index)
            if leg.provider == self._name:
                links = load_leg_links(leg, path, planned, services, store_dir)
                if key in known:
                    made[key] = known[key]
                else:
                    last = index == len(legs) - 1
                    carried = None if last else planned.payload
                    runner = LegRunner(leg_modules(leg, services, links), self.mode, self._device, carried)
                    call = _from_images(runner, preprocessing, last) if before is None else _from_activations(runner, last)
                    shape, example = self._taken(preprocessing, before, path, services, planned.payload)
                    # The same blocks with other links take as long.
                    seconds, size = measured.get((str(path), index)) or fastest_size(
                        partial(_seconds_an_image, call, example, clock), self._sizes
                    )
                    guest = plan.placement[path.local] != self._name
                    takes, gives = example[:1].nbytes, call(example[:1]).nbytes
                    packing = (takes + gives) * self._pack_seconds_per_byte
                    made[key] = HostedLeg(call, str(path), shape, guest, index, size, seconds, packing, takes, gives, example.dtype)
            before = leg
        return made

    def _taken(
        self,
        preprocessing: Preprocessing | TextPreprocessing,
        before: Leg | None,
        path: InferencePath,
        services: Mapping[str, Service],
        payload: Payload | None,
    ) -> tuple[tuple[int, ...], Array]:
        """Shape per sample of what a leg behind ``before`` takes (None: the first takes what clients send), and a batch like it."""
        if before is None:
            return preprocessing.sample_shape, preprocessing.noise(max(self._sizes))
        shape = leg_out_shape(before, path, services)
        return shape, to_wire(handed_on(self.mode.cast(torch.rand(max(self._sizes), *shape)), payload))


def to_wire(value: torch.Tensor) -> Array:
    """An activation as numpy carries it between legs: bfloat16, which numpy does not know, as its bits in int16."""
    value = value.cpu().contiguous()
    return value.view(torch.int16).numpy() if value.dtype == torch.bfloat16 else value.numpy()


def from_wire(value: Array) -> torch.Tensor:
    """The tensor that ``to_wire`` was given."""
    tensor = torch.from_numpy(value)
    return tensor.view(torch.bfloat16) if value.dtype == np.int16 else tensor


def _from_images(runner: LegRunner, preprocessing: Preprocessing | TextPreprocessing, last: bool) -> Callable[[Array], Array]:
    return lambda images: _output(runner, preprocessing.apply(images), last)


def _from_activations(runner: LegRunner, last: bool) -> Callable[[Array], Array]:
    return lambda value: _output(runner, from_wire(value), last)


def _output(runner: LegRunner, value: torch.Tensor, last: bool) -> Array:
    """Logits as float32; what goes on to another leg as the mode made it, half the bytes where that is bfloat16, or as the plan says."""
    output: Array = runner(value).numpy() if last else to_wire(runner.run(value))
    return output


def _measure_packing(size: int = 8 << 20) -> float:
    """Seconds a byte for one end of a hop: half of what an array costs into Ray's object store and out again."""
    value = np.ones(size, np.uint8)
    return median_seconds(lambda: np.array(ray.get(ray.put(value))), REPEATS) / (2 * size)


def _fastest_mode(service: Service, device: str) -> ExecutionMode:
    value = service.boundaries[0].noise(MODE_BATCH_SIZE)
    seconds = {}
    for mode in candidate_modes(device):
        seconds[mode] = median_seconds(partial(LegRunner(list(service.blocks), mode, device), value), REPEATS)
    return min(seconds, key=lambda mode: seconds[mode])


def _seconds_an_image(call: Callable[[Array], Array], example: Array, clock: Callable[[], float], size: int) -> float:
    return median_seconds(partial(call, example[:size]), REPEATS, clock) / size
