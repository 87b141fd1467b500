"""One provider's server: its services' blocks and the links that live with it, run leg by leg."""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import ray
import torch

from code_ray.artifact import RunDirectory
from code_ray.errors import CodeRayError, DeploymentError, PlanError
from code_ray.metering import ComputeBucket
from code_ray.packing import SMALL, packed, unpacked
from code_ray.plan import Plan
from code_ray.service import ServiceSpec
from deployments.config import ProviderOptions
from deployments.hosting import Hosting, from_wire
from deployments.plan_watch import Offer, PlanWatch, read_offer
from deployments.routes import LegReport, ProviderReport, Refusal
from deployments.worker import Array, HostedLeg, LegWorker

Sent = Array | bytes

logger = logging.getLogger("ray.serve")

FAILURES = 5
STUCK_S = 60.0
"""A chunk takes milliseconds; a server that has been at one for so long does not come back."""
KEPT_S = 60.0
"""How long legs stay that belong to no plan of a router that has asked: requests may be under way."""


class Provider:
    """Hosts all legs of a plan that run at provider ``name``, and of the plans that take its place in the run directory.

    ``plan``: what is served where the run directory has none by now, or none that can be; ``origin`` is where it came from.
    ``specs``: the description of every service of the plan, those of other providers without their weights.

    Raises:
        ServiceError, IntegrityError, PlanError: for services or links that are not those of the plan.
        DeploymentError: for a device that is not here.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        run: RunDirectory,
        origin: RunDirectory,
        specs: dict[str, ServiceSpec],
        options: ProviderOptions,
    ) -> None:
        # Arrays arrive read-only from Ray's object store, and are only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        torch.set_num_threads(options.threads)
        self._name = name
        self._device = choose_device(options)
        self._turn = ("", 0.0)  # the router that measures the network to here, and until when
        self._hosting = Hosting(name, plan, run.stores_dir / name, specs, options, self._device)
        bucket = ComputeBucket(plan.budgets.get(name, 1.0), options.burst_s, time.monotonic())
        self._worker = LegWorker({}, bucket, options.limits, options.threads)
        self._plans: dict[str, frozenset[str]] = {}  # the keys of its legs, by plan
        self._asked: dict[str, float] = {}  # when a router with that plan asked last
        self._watch = PlanWatch(name, run, plan)
        self._loading: asyncio.Task[None] | None = None
        self._node: str = ray.get_runtime_context().get_node_id()
        self._start(plan, origin if origin.root.is_dir() else run)
        logger.info("provider %s is up on %s in %s with %d legs", name, self._device, self._hosting.mode, len(self._worker.legs))

    async def describe(self, plan_id: str = "") -> ProviderReport:
        """Execution mode, seconds computed so far, per leg the seconds per image as measured so far, packing included, and the plan.

        Routers ask every few seconds, for the plan ``plan_id`` that they follow: the time to look for another one.
        """
        now = time.monotonic()
        self._asked[plan_id] = now
        if (self._loading is None or self._loading.done()) and self._watch.has_changed(now):
            self._loading = asyncio.create_task(self._change_plan())
        self._drop_plans(now)
        hosted = self._worker.legs.items()
        legs = {
            key: LegReport(
                leg.seconds + leg.packing, leg.batch_size, leg.in_bytes, leg.out_bytes, leg.parcel.sizes if leg.parcel is not None else ()
            )
            for key, leg in hosted
        }
        busy, for_guests = self._worker.busy_seconds()
        mode, plan, refused = str(self._hosting.mode), self._watch.plan.id, self._watch.refused
        return ProviderReport(self._name, mode, legs, now, busy, for_guests, plan, refused, self._node)

    async def offer(self) -> Offer:
        """The plan that is served, for routers to follow."""
        return self._offer

    async def take_turn(self, router: str, seconds: float) -> bool:
        """Whether ``router`` may measure the network to here, for so many seconds: one at a time."""
        now, (holder, until) = time.monotonic(), self._turn
        if holder != router and now < until:
            return False
        self._turn = (router, now + seconds)
        return True

    async def transfer(self, payload: Sent, answer_bytes: int) -> Sent:
        """Answer so many bytes, whatever comes: routers time it."""
        sent: Sent = packed(np.ones(answer_bytes, np.uint8), SMALL)
        return sent

    async def run(self, key: str, value: Sent | Refusal) -> Sent | Refusal | list[ray.ObjectRef[Sent]]:
        """Run leg ``key`` on images (n, *image_shape) or what the leg before made; a refusal is handed on. Where a trunk ends there is a
        reference for each branch: what is one service's goes to its provider alone. Small arrays come and go ``packed``.

        Raises:
            PlanError: for a leg that is not hosted here, or an array of another shape: the caller follows another plan.
        """
        if isinstance(value, Refusal):
            return value
        array: Array = unpacked(value)
        leg = self._worker.legs.get(key)
        if leg is None:
            raise PlanError(f"provider {self._name!r} hosts no leg {key!r}; deploy it with the router's plan")
        if array.shape[1:] != leg.in_shape or len(array) == 0:
            raise PlanError(f"leg {key!r} takes arrays (n, {leg.in_shape}), not {array.shape}; deploy provider and router with one plan")
        accepted = self._worker.submit(key, array)
        if isinstance(accepted, Refusal):
            return accepted
        output: Array | Refusal = await asyncio.wrap_future(accepted)
        if leg.parcel is not None and not isinstance(output, Refusal):
            return [ray.put(packed(part, SMALL)) for part in leg.parcel.unpack(output)]
        sent: Sent | Refusal = packed(output, SMALL)
        return sent

    async def check_health(self) -> None:
        """Called by Serve, which replaces this replica where it raises. A server with nothing to do runs a leg on a sample of ones;
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
        # Its own service as it is: the one leg of its own that every provider has and that takes samples.
        key, leg = next((key, leg) for key, leg in self._worker.legs.items() if not leg.guest and leg.position == 0)
        example: Array = np.ones((1, *leg.in_shape), leg.dtype)
        accepted = self._worker.submit(key, example, is_probe=True)
        if isinstance(accepted, Refusal):
            return  # it has work
        try:
            output = await asyncio.wrap_future(accepted)
        except RuntimeError as error:
            raise DeploymentError(f"provider {self._name!r} cannot run {key!r} ({error}); it is replaced") from error
        if not isinstance(output, Refusal) and not bool(from_wire(output).isfinite().all()):
            raise DeploymentError(f"provider {self._name!r} makes no finite numbers of {key!r}; it is replaced")

    def _start(self, plan: Plan, origin: RunDirectory) -> None:
        """Begin with the plan that lies in the run directory: a replica that takes a dead one's place serves what that one served."""
        try:
            found = self._watch.read() if self._watch.has_changed(time.monotonic()) else None
            run, offer = found or (origin, read_offer(origin, plan, self._name))
            self._take_over(offer, self._hosting.make_legs(offer.plan, run, {}, beside_traffic=False))
        except CodeRayError as error:
            self._watch.refuse(error, time.monotonic())
            offer = read_offer(origin, plan, self._name)
            self._take_over(offer, self._hosting.make_legs(plan, origin, {}, beside_traffic=False))

    async def _change_plan(self) -> None:
        """Make the new plan's legs ready while the old one's are served, and host them beside these; or refuse it."""
        with ThreadPoolExecutor(1, thread_name_prefix="plan") as thread:
            ask = partial(asyncio.get_running_loop().run_in_executor, thread)
            try:
                found = await ask(self._watch.read)
                if found is not None:
                    run, offer = found
                    legs = await ask(partial(self._hosting.make_legs, offer.plan, run, dict(self._worker.legs), beside_traffic=True))
                    self._take_over(offer, legs)
            except CodeRayError as error:
                self._watch.refuse(error, time.monotonic())
            except RuntimeError as error:  # what torch raises: its links load, and do not run
                self._watch.refuse(PlanError(f"its legs do not run ({error})"), time.monotonic())

    def _take_over(self, offer: Offer, legs: dict[str, HostedLeg]) -> None:
        self._offer = offer
        self._watch.accept(offer.plan)
        self._worker.host(legs, offer.plan.budgets.get(self._name, 1.0))
        self._plans[offer.plan.id], self._asked[offer.plan.id] = frozenset(legs), time.monotonic()
        logger.info("provider %s serves plan %s", self._name, offer.plan.id)

    def _drop_plans(self, now: float) -> None:
        """Forget plans that no router follows any more, with the legs that are theirs alone."""
        gone = {plan for plan in self._plans if plan != self._watch.plan.id and now - self._asked.get(plan, now) > KEPT_S}
        if gone:
            self._plans = {plan: keys for plan, keys in self._plans.items() if plan not in gone}
            self._worker.drop(set(self._worker.legs).difference(*self._plans.values()))


def choose_device(options: ProviderOptions) -> str:
    """The torch device to run on.

    Raises:
        DeploymentError: where CUDA is asked for and not here.
    """
    available = torch.cuda.is_available()
    if options.device == "cuda" and not available:
        raise DeploymentError("device is 'cuda' but torch sees no GPU here; set it to 'auto' or 'cpu', or num_gpus to at least 1")
    return "cuda" if available and (options.device == "cuda" or (options.device == "auto" and options.num_gpus > 0)) else "cpu"
