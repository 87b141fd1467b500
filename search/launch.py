"""Run a campaign on Ray Tune."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune

from code_ray.artifact import RunDirectory
from code_ray.errors import CodeRayError
from search.campaign import Campaign
from search.config import SearchConfig
from search.problem import prepare
from search.report import write_report
from search.searcher import CampaignSearcher
from search.trial import PathTrial


def run_search(config: SearchConfig, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Search, write the run directory, return the content of ``result.json``. Uses a running Ray cluster or starts one.

    Raises:
        CodeRayError: for input that cannot be used, or a frozen block that changed (IntegrityError).
    """
    started = time.monotonic()
    torch.set_num_threads(1)
    run = RunDirectory.create(out, config.model_dump(mode="json"))
    problem = prepare(config, run, say)
    campaign = Campaign(problem)
    if campaign.records:
        say(f"resuming: {len(campaign.records)} evaluations are in the journal")
    # Tune's own progress boxes say nothing of paths; ours do.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    searcher = CampaignSearcher(campaign, say)
    if not ray.is_initialized():
        ray.init(address=os.environ.get("RAY_ADDRESS"), num_cpus=None if os.environ.get("RAY_ADDRESS") else config.concurrency, **_QUIET)
    settings = {
        "config": config.model_dump_json(),
        "profile": problem.profile.model_dump_json(),
        "stores_dir": str(run.stores_dir.resolve()),
    }
    trainable = tune.with_resources(tune.with_parameters(PathTrial, settings=settings), {"cpu": 1, "gpu": config.gpus_per_trial})
    with tempfile.TemporaryDirectory(prefix="code_ray-tune-") as storage:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric="accuracy",
                mode="max",
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=config.concurrency,
                reuse_actors=True,
            ),
            # Tune's own files are scratch: the journal is the record (Tune's snapshots are not written atomically).
            run_config=tune.RunConfig(storage_path=storage, verbose=0, failure_config=tune.FailureConfig(max_failures=1)),
        )
        tuner.fit()
    if searcher.fatal is not None:
        raise searcher.fatal
    if not campaign.finished:
        raise CodeRayError(f"the search ended early; {len(campaign.records)} evaluations are kept: run the same command again to go on")
    return write_report(campaign, time.monotonic() - started)


_QUIET: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "WARNING"}
