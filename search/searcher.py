"""Tune's view of a campaign: a ``Searcher`` that hands out its jobs and journals what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from code_ray.errors import ArtifactError, CodeRayError, IntegrityError, ServiceError
from search.campaign import Campaign, Job


class CampaignSearcher(Searcher):
    """Feeds Tune from a campaign. State lives in the journal, so saving and restoring are empty: a restore of Tune's own
    files can fail without stopping a resumed search.
    """

    def __init__(self, campaign: Campaign, say: Callable[[str], None]) -> None:
        super().__init__(metric="accuracy", mode="max")
        self.campaign = campaign
        self.fatal: CodeRayError | None = None
        self._say = say
        self._jobs: dict[str, Job] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next job's config; None for 'not now', FINISHED when the campaign is over."""
        if self.fatal is not None:
            return str(Searcher.FINISHED)
        job = self.campaign.ask()
        if job is None:
            return str(Searcher.FINISHED) if self.campaign.finished else None
        self._jobs[trial_id] = job
        return job.to_config()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A trial reports once; see ``on_trial_complete``."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Journal the record of a finished job, or note its failure."""
        job = self._jobs.pop(trial_id)
        if result is None or error:
            self._fail(job, "its worker died twice")
        elif "fatal" in result:
            self.fatal = _FATAL[result["fatal_kind"]](result["fatal"])
            self._fail(job, result["fatal"])
        elif "failure" in result:
            self._fail(job, result["failure"])
        else:
            self._keep(job, json.loads(result["record"]))

    def _keep(self, job: Job, record: dict[str, Any]) -> None:
        try:
            self.campaign.tell(job, record)
        except ArtifactError as full:
            # Raised from here it would be lost in Tune's own handling; the launcher raises it when Tune has ended.
            self.fatal = full
            return
        self._say(_describe(job, record, self.campaign))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""

    def _fail(self, job: Job, reason: str) -> None:
        self.campaign.fail(job, reason)
        self._say(f"{job.role:11} {job.path} failed: {reason}")


_FATAL: dict[str, type[CodeRayError]] = {kind.__name__: kind for kind in (ArtifactError, IntegrityError, ServiceError)}
"""What one job found wrong and every further job would find too."""


def _describe(job: Job, record: dict[str, Any], campaign: Campaign) -> str:
    trainings, limit = len(campaign.sampler.trained), campaign.sampler.stopping.max_trainings
    text = f"{job.role:11} {job.path.kind:5} {list(job.path.vector)!s:13}"
    if job.fidelity == "fit":
        return f"{text} least squares {100 * record['accuracy']:5.2f} % in {record['seconds']:.0f} s"
    value = campaign.problem.plan_objective.value(campaign.accuracies)
    return (
        f"{text} {100 * record['accuracy_fit']:5.2f} -> {100 * record['accuracy']:5.2f} % in {record['seconds']:.0f} s; "
        f"training {trainings} of at most {limit}, best plan {value:.2f} x"
    )
