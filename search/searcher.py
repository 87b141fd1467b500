"""Tune's view of a campaign: a ``Searcher`` that hands out its jobs and journals what comes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from code_ray.errors import ArtifactError, CodeRayError, IntegrityError, ServiceError
from search.campaign import Campaign, Job
from search.plannable import plannable


class CampaignSearcher(Searcher):
    """Feeds Tune from a campaign. State lives in the journal, so saving and restoring are empty: a restore of Tune's own
    files can fail without stopping a resumed search.
    """

    def __init__(self, campaign: Campaign, say: Callable[[str], None]) -> None:
        super().__init__(metric="accuracy", mode="max")
        self.campaign = campaign
        self.fatal: CodeRayError | None = None
        self._say = say
        self._jobs: dict[str, tuple[Job, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles searchers into its storage, and behind this one stand all services that are here, weights included."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next jobs as a config; None for 'not now', FINISHED when the campaign is over."""
        if self.fatal is not None:
            return str(Searcher.FINISHED)
        jobs = self.campaign.ask()
        if not jobs:
            return str(Searcher.FINISHED) if self.campaign.finished else None
        self._jobs[trial_id] = jobs
        return {"jobs": [job.to_config() for job in jobs]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """What is reported on the way is for the scheduler."""

    def keep_training(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a training that has come to a rung goes on."""
        return self.campaign.keep_training(self._jobs[trial_id][0], json.loads(result["rung"])["rungs"][-1])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Journal the records of finished jobs, or note their failure."""
        jobs = self._jobs.pop(trial_id)
        outcomes: list[dict[str, Any]]
        if result is None or error:
            outcomes = [{"failure": "its worker died twice"}] * len(jobs)
        elif "fatal" in result:
            self.fatal = _FATAL[result["fatal_kind"]](result["fatal"])
            outcomes = [{"failure": result["fatal"]}] * len(jobs)
        else:
            outcomes = json.loads(result["outcomes"]) if "outcomes" in result else [{"stopped": json.loads(result["rung"])}]
        for job, outcome in zip(jobs, outcomes, strict=True):
            if "failure" in outcome:
                self._fail(job, outcome["failure"])
            else:
                self._keep(job, outcome)

    def _keep(self, job: Job, outcome: dict[str, Any]) -> None:
        try:
            if "stopped" in outcome:
                self.campaign.tell_stopped(job, outcome["stopped"])
            else:
                self.campaign.tell(job, outcome["record"])
        except ArtifactError as full:
            # Raised from here it would be lost in Tune's own handling; the launcher raises it when Tune has ended.
            self.fatal = full
            return
        self._say(_describe(job, outcome, self.campaign))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it."""

    def _fail(self, job: Job, reason: str) -> None:
        self.campaign.fail(job, reason)
        self._say(f"{job.role:11} {job.path} failed: {reason}")


_FATAL: dict[str, type[CodeRayError]] = {kind.__name__: kind for kind in (ArtifactError, IntegrityError, ServiceError)}
"""What one job found wrong and every further job would find too."""


def _describe(job: Job, outcome: dict[str, Any], campaign: Campaign) -> str:
    trainings, limit = len(campaign.sampler.trained), campaign.sampler.stopping.max_trainings
    text = f"{job.role:11} {job.path.kind:5} {list(job.path.vector)!s:13}"
    if len(campaign.problem.config.hosts) > 1 and job.path.hosts:
        text += f" {' > '.join(Path(host).name for host in job.path.hosts)}"
    record = outcome.get("record") or outcome["stopped"]
    if job.fidelity == "fit":
        return f"{text} least squares {100 * record['accuracy']:5.2f} % in {record['seconds']:.1f} s"
    change = f"{text} {100 * record['accuracy_fit']:5.2f} -> {100 * record['accuracy']:5.2f} %"
    if "stopped" in outcome:
        return f"{change}, stopped after {record['rungs'][-1]['steps']} steps and {record['seconds']:.0f} s: others add more"
    value = campaign.problem.plan_objective.value(plannable(campaign))
    return f"{change} in {record['seconds']:.0f} s; training {trainings} of at most {limit}, best plan {value:.2f} x"


class RungScheduler(FIFOScheduler):
    """Stops trainings at rungs as the campaign decides."""

    def __init__(self, searcher: CampaignSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Tune's word for whether ``trial`` goes on."""
        keep = result.get("done") or self._searcher.keep_training(trial.trial_id, result)
        return str(self.CONTINUE if keep else self.STOP)
