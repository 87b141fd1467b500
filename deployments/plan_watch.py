"""A plan that takes another's place in the run directory, noticed while the old one is served. Pure: no Ray."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from code_ray.artifact import RunDirectory
from code_ray.canaries import Canaries, load_canaries
from code_ray.errors import CodeRayError, PlanError
from code_ray.plan import Plan
from deployments.stores import open_plan

logger = logging.getLogger("ray.serve")

LOOK_S = 1.0
"""How often a provider looks at most."""

TRY_AGAIN_S = 10.0
"""A plan that was refused is tried again then: its links may still be on their way."""


@dataclass(frozen=True, eq=False)
class Offer:
    """A plan that a provider has taken over, for routers to follow, with the answers that they check first."""

    plan: Plan
    canaries: Canaries | None


def read_offer(run: RunDirectory, plan: Plan, provider: str) -> Offer:
    """``plan`` with its canaries, where it has any and ``provider`` is the local service's, which routers ask.

    Raises:
        PlanError, IntegrityError: for canaries that are missing, malformed or others than the plan's.
    """
    asked = provider == plan.placement[plan.local]
    return Offer(plan, load_canaries(run.canaries_file, plan.canaries) if asked and plan.canaries is not None else None)


def check_same_services(old: Plan, new: Plan) -> None:
    """Check that ``new`` can take the place of ``old`` without a restart.

    Raises:
        PlanError: where it is for another local service, or places services elsewhere. Hosts may have other versions.
    """
    needed = {
        "local": (old.local, new.local),
        "version of it": (old.services[old.local], new.services[new.local]),
        "num_blocks": (old.num_blocks, new.num_blocks),
        "placement": (old.placement, new.placement),
        "other local services": (_versions(old), _versions(new)),
    }
    for what, (before, after) in needed.items():
        if before != after:
            raise PlanError(f"its {what} is {after!r}, what runs has {before!r}; such a plan needs a new deployment")


def _versions(plan: Plan) -> dict[str, tuple[str, int]]:
    """Content and number of blocks of the local services beside ``local``."""
    return {name: (plan.services[name], task.num_blocks) for name, task in plan.tasks.items()}


class PlanWatch:
    """Of one run directory, which may be a symbolic link that is turned to another one, at provider ``provider``."""

    def __init__(self, provider: str, run: RunDirectory, plan: Plan) -> None:
        self.plan = plan
        self.refused: str | None = None
        self._provider = provider
        self._run = run
        self._seen: tuple[Path, int, int] | None = None
        self._look_at = 0.0

    def has_changed(self, now: float) -> bool:
        """Whether there may be another plan; cheap, and false most of the time. ``now``: seconds of a clock that only goes forward."""
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_S
        try:
            file = self._run.plan_file.resolve()
            status = file.stat()
        except OSError:
            return False  # between two plans, or a node that has no plan of its own
        seen = (file, status.st_mtime_ns, status.st_ino)
        if seen == self._seen:
            return False
        self._seen = seen
        return True

    def read(self) -> tuple[RunDirectory, Offer] | None:
        """The plan that lies there now, where it is another than ``plan``, and the run directory as it is without links.

        Raises:
            ArtifactError, PlanError, IntegrityError: for one that cannot take its place.
        """
        run, new = open_plan(self._run.root.resolve())
        if new.id == self.plan.id:
            self.refused = None
            return None
        check_same_services(self.plan, new)
        return run, read_offer(run, new, self._provider)

    def accept(self, plan: Plan) -> None:
        """``plan`` is served from now on."""
        self.plan, self.refused = plan, None

    def refuse(self, error: CodeRayError, now: float) -> None:
        """The plan that lies there is not one; it is looked at again in a while."""
        if str(error) != self.refused:
            logger.error("the new plan in %s is refused, the old one stays: %s", self._run.root, error)
        self.refused = str(error)
        self._seen, self._look_at = None, now + TRY_AGAIN_S
