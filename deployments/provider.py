"""One provider's server: its services' blocks and the links that live with it, run leg by leg."""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import ray
import torch

from code_ray.blocks import ExecutionMode
from code_ray.errors import DeploymentError, PlanError
from code_ray.metering import ComputeBucket
from code_ray.path import InferencePath
from code_ray.plan import Plan, PlannedPath, leg_key, load_leg_links
from code_ray.profiling import candidate_modes, fastest_size, leg_out_shape, median_seconds
from code_ray.runner import Leg, LegRunner, leg_modules, walk
from code_ray.service import Preprocessing, Service, ServiceSpec
from deployments.config import ProviderOptions
from deployments.routes import LegReport, ProviderReport, Refusal, hosted_paths
from deployments.stores import load_stored_service, outline
from deployments.worker import Array, HostedLeg, LegWorker

logger = logging.getLogger("ray.serve")

BATCH_SIZES = (16, 32, 64, 128)
MODE_BATCH_SIZE = 32
REPEATS = 3
FAILURES = 5
STUCK_S = 60.0
"""A chunk takes milliseconds; a server that has been at one for so long does not come back."""


class Provider:
    """Hosts all legs of a plan that run at provider ``name``.

    ``specs``: the description of every service of the plan, those of other providers without their weights.

    Raises:
        ServiceError, IntegrityError, PlanError: for services or links that are not those of the plan.
        DeploymentError: for a device that is not here.
    """

    def __init__(self, name: str, plan: Plan, store_dir: Path, specs: dict[str, ServiceSpec], options: ProviderOptions) -> None:
        # Arrays arrive read-only from Ray's object store, and are only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        torch.set_num_threads(options.threads)
        self._name = name
        self._plan = plan
        self._device = choose_device(options)
        paths = hosted_paths(plan, {service: len(spec.boundaries) - 1 for service, spec in specs.items()})
        own = _load_own_services(name, plan, store_dir)
        mine = [path for _, path in paths if any(leg.provider == name for leg in walk(path, plan.placement))]
        self._services = own | {service: outline(spec, mine) for service, spec in specs.items() if service not in own}
        self._mode = options.execution_mode or _fastest_mode(next(iter(own.values())), self._device)
        self._pack_seconds_per_byte = _measure_packing()
        self._legs: dict[str, HostedLeg] = {}
        self._probe: tuple[str, Array] = ("", np.zeros(0))
        for planned, path in paths:
            self._legs |= self._host(planned, path, store_dir, (options.batch_size,) if options.batch_size else BATCH_SIZES)
        bucket = ComputeBucket(plan.budgets.get(name, 1.0), options.burst_s, time.monotonic())
        self._worker = LegWorker(self._legs, bucket, options.limits, options.threads)
        logger.info("provider %s is up on %s in %s with %d legs", name, self._device, self._mode, len(self._legs))

    async def describe(self) -> ProviderReport:
        """Execution mode, seconds computed so far, and per leg the seconds per image as measured so far, packing included."""
        legs = {key: LegReport(leg.seconds + leg.packing, leg.batch_size) for key, leg in self._legs.items()}
        busy, for_guests = self._worker.busy_seconds()
        return ProviderReport(self._name, str(self._mode), legs, time.monotonic(), busy, for_guests)

    async def run(self, key: str, value: Array | Refusal) -> Array | Refusal:
        """Run leg ``key`` on images (n, *image_shape) or what the leg before made; a refusal is handed on.

        Raises:
            PlanError: for a leg that is not hosted here, or an array of another shape: the caller follows another plan.
        """
        if isinstance(value, Refusal):
            return value
        leg = self._legs.get(key)
        if leg is None:
            raise PlanError(f"provider {self._name!r} hosts no leg {key!r}; deploy it with the router's plan")
        if value.shape[1:] != leg.in_shape or len(value) == 0:
            raise PlanError(f"leg {key!r} takes arrays (n, {leg.in_shape}), not {value.shape}; deploy provider and router with one plan")
        accepted = self._worker.submit(key, value)
        if isinstance(accepted, Refusal):
            return accepted
        output: Array | Refusal = await asyncio.wrap_future(accepted)
        return output

    async def check_health(self) -> None:
        """Called by Serve, which replaces this replica where it raises. A server with nothing to do runs a leg on an image of zeros;
        of one that is busy requests tell as much.

        Raises:
            DeploymentError: where the thread that runs models is dead or hangs, or a leg fails or makes no numbers.
        """
        if self._worker.stuck_for() > STUCK_S:
            raise DeploymentError(f"provider {self._name!r} has not finished a chunk for {STUCK_S:.0f} s; it is replaced")
        if self._worker.failed_in_a_row >= FAILURES:
            raise DeploymentError(f"provider {self._name!r} has failed at {FAILURES} chunks in a row; it is replaced")
        if self._worker.is_idle:
            await self._try_leg()

    async def _try_leg(self) -> None:
        key, example = self._probe
        accepted = self._worker.submit(key, example, is_probe=True)
        if isinstance(accepted, Refusal):
            return  # it has work
        try:
            output = await asyncio.wrap_future(accepted)
        except RuntimeError as error:
            raise DeploymentError(f"provider {self._name!r} cannot run {key!r} ({error}); it is replaced") from error
        if not isinstance(output, Refusal) and not bool(from_wire(output).isfinite().all()):
            raise DeploymentError(f"provider {self._name!r} makes no finite numbers of {key!r}; it is replaced")

    def _host(self, planned: PlannedPath, path: InferencePath, store_dir: Path, sizes: tuple[int, ...]) -> dict[str, HostedLeg]:
        hosted = {}
        before: Leg | None = None
        legs = walk(path, self._plan.placement)
        for index, leg in enumerate(legs):
            if leg.provider == self._name:
                links = load_leg_links(leg, path, planned, self._services, store_dir)
                runner = LegRunner(leg_modules(leg, self._services, links), self._mode, self._device)
                last = index == len(legs) - 1
                if before is None:
                    preprocessing = self._services[path.local].spec.preprocessing
                    call, shape = _from_images(runner, preprocessing, last), preprocessing.image_shape
                    example: Array = np.zeros((max(sizes), *shape), np.uint8)
                else:
                    call, shape = _from_activations(runner, last), leg_out_shape(before, path, self._services)
                    example = to_wire(self._mode.cast(torch.rand(max(sizes), *shape)))
                seconds, size = fastest_size(partial(_seconds_an_image, call, example), sizes)
                guest = self._plan.placement[path.local] != self._name
                hop_bytes = example[:1].nbytes + call(example[:1]).nbytes
                packing = hop_bytes * self._pack_seconds_per_byte
                if not guest:
                    self._probe = leg_key(planned.id, index), example[:1].copy()
                hosted[leg_key(planned.id, index)] = HostedLeg(call, shape, guest, index, size, seconds, packing)
            before = leg
        return hosted


def choose_device(options: ProviderOptions) -> str:
    """The torch device to run on.

    Raises:
        DeploymentError: where CUDA is asked for and not here.
    """
    available = torch.cuda.is_available()
    if options.device == "cuda" and not available:
        raise DeploymentError("device is 'cuda' but torch sees no GPU here; set it to 'auto' or 'cpu', or num_gpus to at least 1")
    return "cuda" if available and (options.device == "cuda" or (options.device == "auto" and options.num_gpus > 0)) else "cpu"


def _load_own_services(name: str, plan: Plan, store_dir: Path) -> dict[str, Service]:
    own = {service: content for service, content in plan.services.items() if plan.placement[service] == name}
    services = {service: load_stored_service(service, store_dir) for service in own}
    plan.model_copy(update={"services": own}).check_services(services)
    return services


def to_wire(value: torch.Tensor) -> Array:
    """An activation as numpy carries it between legs: bfloat16, which numpy does not know, as its bits in int16."""
    value = value.cpu().contiguous()
    return value.view(torch.int16).numpy() if value.dtype == torch.bfloat16 else value.numpy()


def from_wire(value: Array) -> torch.Tensor:
    """The tensor that ``to_wire`` was given."""
    tensor = torch.from_numpy(value)
    return tensor.view(torch.bfloat16) if value.dtype == np.int16 else tensor


def _from_images(runner: LegRunner, preprocessing: Preprocessing, last: bool) -> Callable[[Array], Array]:
    return lambda images: _output(runner, preprocessing.apply(images), last)


def _from_activations(runner: LegRunner, last: bool) -> Callable[[Array], Array]:
    return lambda value: _output(runner, from_wire(value), last)


def _output(runner: LegRunner, value: torch.Tensor, last: bool) -> Array:
    """Logits as float32; what goes on to another leg as the mode made it: half the bytes where that is bfloat16."""
    output: Array = runner(value).numpy() if last else to_wire(runner.run(value))
    return output


def _measure_packing(size: int = 8 << 20) -> float:
    """Seconds a byte for one end of a hop: half of what an array costs into Ray's object store and out again."""
    value = np.ones(size, np.uint8)
    return median_seconds(lambda: np.array(ray.get(ray.put(value))), REPEATS) / (2 * size)


def _fastest_mode(service: Service, device: str) -> ExecutionMode:
    value = torch.rand(MODE_BATCH_SIZE, *service.boundaries[0].shape)
    seconds = {}
    for mode in candidate_modes(device):
        seconds[mode] = median_seconds(partial(LegRunner(list(service.blocks), mode, device), value), REPEATS)
    return min(seconds, key=lambda mode: seconds[mode])


def _seconds_an_image(call: Callable[[Array], Array], example: Array, size: int) -> float:
    return median_seconds(partial(call, example[:size]), REPEATS) / size
