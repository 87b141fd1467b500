"""Run a campaign on Ray Tune."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from threadpoolctl import threadpool_limits

from code_ray.artifact import RunDirectory
from code_ray.errors import ArtifactError, CodeRayError, ConfigError
from search.campaign import Campaign
from search.carry_over import carry_over, check_source
from search.config import SearchConfig
from search.distilled import train_distilled
from search.parties import start_parties, trial_resources
from search.problem import load_inputs, prepare, teacher_logits
from search.report import read_result, write_report
from search.searcher import CampaignSearcher, RungScheduler
from search.trial import PathTrial


def run_search(
    config: SearchConfig, out: Path, say: Callable[[str], None], *, known: Path | None = None, train: bool = True
) -> dict[str, Any]:
    """Search, write the run directory, return the content of ``result.json``; a finished search only returns it.

    ``known``: a finished search whose evaluations count as if they were this one's. Without ``train`` the best plan is made of
    what is known. Uses the Ray cluster that ``RAY_ADDRESS`` names, else starts one of its own.

    Raises:
        CodeRayError: for input that cannot be used, a frozen block that changed (IntegrityError), or a run directory that
            cannot be written (ArtifactError).
    """
    started = time.monotonic()
    torch.set_num_threads(1)
    # Two threads make the predictor no faster, and take a core from the trainings.
    threadpool_limits(limits=1, user_api="blas")
    if config.apart:
        _start_ray(config)
    parties = start_parties(config)
    inputs = load_inputs(config, parties)
    if known is not None:
        check_source(RunDirectory(known), config, inputs.public)
    run = RunDirectory.create(out, config.model_dump(mode="json"))
    if (result := read_result(run)) is not None:
        say(f"this search has finished; delete {run.result_file.name} to write its report again")
        return result
    with _writing(out):
        if known is not None:
            carry_over(RunDirectory(known), config, run, inputs.services[config.local].num_blocks, say)
        campaign = Campaign(prepare(config, inputs, run, say), train=train)
    parties.clear()  # their actors end: workers start their own
    if campaign.records:
        say(f"resuming: {len(campaign.records)} evaluations are in the journal")
    if not campaign.nothing_to_do():
        with _writing(out):
            # A GPU has them sooner than this process would.
            teacher = None if config.gpus_per_trial > 0 else teacher_logits(campaign.problem).tobytes()
        _run_on_tune(campaign, teacher, say)
    with _writing(out):
        # No trial runs any more.
        torch.set_num_threads(config.concurrency)
        if train:
            train_distilled(campaign.problem)
        return write_report(campaign, start_parties(config, campaign.problem.profile), time.monotonic() - started)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{out} cannot be written ({error}); free space and run the same command again") from error


def _address() -> str:
    return os.environ.get("RAY_ADDRESS") or "local"


def _start_ray(config: SearchConfig) -> None:
    """Connect to the cluster that ``RAY_ADDRESS`` names, else start one."""
    if not ray.is_initialized():
        ray.init(address=_address(), num_cpus=config.concurrency if _address() == "local" else None, **_QUIET)


def _run_on_tune(campaign: Campaign, teacher: bytes | None, say: Callable[[str], None]) -> None:
    """Carry ``campaign`` through; what it knows from its journal is not done again."""
    config = campaign.problem.config
    # Tune's own progress boxes say nothing of paths; ours do.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    searcher = CampaignSearcher(campaign, say)
    _start_ray(config)
    if config.gpus_per_trial > (gpus := ray.cluster_resources().get("GPU", 0)):  # type: ignore[no-untyped-call]
        raise ConfigError(f"gpus_per_trial is {config.gpus_per_trial:g} and the Ray cluster has {gpus:g} GPUs; trials would wait for ever")
    settings: dict[str, Any] = {
        "config": config.model_dump_json(),
        "profile": campaign.problem.profile.model_dump_json(),
        "stores_dir": str(campaign.problem.run.stores_dir.resolve()),
        "teacher": teacher,
        "original_classes": campaign.problem.original_classes.tobytes(),
    }
    trainable = tune.with_resources(tune.with_parameters(PathTrial, settings=settings), trial_resources(config))
    # Tune wants to find its files from every node: on a cluster they lie where all nodes look for the links too.
    scratch_dir = str(campaign.problem.run.root.resolve()) if _address() != "local" else None
    with tempfile.TemporaryDirectory(prefix="code_ray-tune-", dir=scratch_dir) as storage:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                metric="accuracy",
                mode="max",
                search_alg=searcher,
                scheduler=RungScheduler(searcher),
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


_QUIET: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "WARNING"}
