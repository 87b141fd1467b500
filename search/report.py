"""Write what a search found into its run directory: result.json, plan.json, evaluations.csv, pictures, report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from code_ray.artifact import RunDirectory, write_text
from code_ray.calibration import save_calibrations
from code_ray.controls import control_paths, with_trained_hosts
from code_ray.errors import ArtifactError
from code_ray.objective import Known, PaperObjective
from code_ray.party import Party
from code_ray.path import InferencePath
from code_ray.reward import Reward
from code_ray.space import Candidate
from code_ray.throughput import PathCost, cycle_throughput, host_efficiency
from search.campaign import Campaign
from search.findings import Findings
from search.html import report_page
from search.measuring import measure_test, payload_costs, with_answers
from search.plannable import plannable
from search.plots import draw_forecasts, draw_pareto, draw_paths, draw_trace
from search.problem import Problem
from search.results import (
    Arm,
    all_arms,
    best_arm,
    deployed,
    distilled_arms,
    fixed_speedups,
    frontiers,
    host_share,
    make_plan,
    plain_arms,
    replica_summaries,
    test_loss,
)


def write_report(campaign: Campaign, parties: Mapping[str, Party], seconds: float) -> dict[str, Any]:
    """Choose the plan, measure it once on test data, write everything; returns the content of ``result.json``. ``parties``: by
    provider, those whose services are not here.
    """
    problem = campaign.problem
    run, known = problem.run, plannable(campaign)
    for name, provider in problem.config.placement.items():
        if provider in parties:
            parties[provider].verify([name])
        else:
            problem.services[name].verify()
    arm = deployed(problem, campaign)
    arms = all_arms(problem, known) | distilled_arms(problem, known)
    plan = with_answers(problem, make_plan(problem, campaign, arm), parties)
    save_calibrations(plan, problem.services, problem.data.train.images, problem.profile.mode_of, run.stores_dir)
    hits = measure_test(problem, plan, parties)
    table = evaluations_table(campaign)
    result: dict[str, Any] = {
        "best": _best(problem, known, arm, hits),
        "deployed": arm.summary() | {"accuracies": _accuracies(problem, arm, known)} | _test_summary(arm, hits),
        "arms": {name: a.summary() for name, a in arms.items()} | replica_summaries(problem, arms),
        "without_gates": {name: a.summary() for name, a in plain_arms(problem, known).items()},
        "controls": _controls(campaign),
        "payload_costs": payload_costs(problem, plan, parties),
        "fixed_speedups": fixed_speedups(problem, known),
        "candidates": problem.faster,
        "paths_enumerated": problem.paths_enumerated,
        "trainings": campaign.full_trainings(),
        "refined": sum(job.fidelity == "refined" for job in campaign.records),
        "screened": sum(job.fidelity == "fit" for job in campaign.records),
        "failed": {str(job.path): reason for job, reason in campaign.failures.items()},
        "seconds": seconds,
        "sampler": problem.config.sampler,
        "objective": problem.config.objective,
        "seed": problem.config.seed,
        "stopped_because": campaign.sampler.stopped_because,
        "left": None if (left := campaign.sampler.left) is None else asdict(left),
        "forecast_coverage": _coverage(campaign),
        "verdict": verdict(arm),
    }
    table.to_csv(run.evaluations_file, index=False)
    write_text(run.plan_file, plan.model_dump_json(indent=1) + "\n")
    pictures = {
        "winning_plan": draw_paths(dict(sorted(arm.shares.items(), key=lambda item: -item[1])), problem.public),
        "pareto": draw_pareto(problem, table, {"deployed": result["deployed"], **result["arms"]}, frontiers(problem, known)),
        "search_trace": draw_trace(table),
    }
    if result["forecast_coverage"] is not None:
        pictures["forecasts"] = draw_forecasts(table)
    for name, picture in pictures.items():
        run.picture_file(name).write_bytes(picture)
    per_second, images = 1 / problem.objective.original_seconds, len(problem.data.validation)
    findings = Findings(problem.config, result, table, pictures, problem.accuracy_original, per_second, images, run.root.resolve())
    write_text(run.report_file, report_page(findings))
    write_text(run.result_file, json.dumps(result, indent=1) + "\n")
    return result


def read_result(run: RunDirectory) -> dict[str, Any] | None:
    """The content of ``result.json``; None where the search has not finished.

    Raises:
        ArtifactError: where the file is damaged.
    """
    if not run.result_file.exists():
        return None
    try:
        result: dict[str, Any] = json.loads(run.result_file.read_bytes())
        _ = result["verdict"], result["stopped_because"], result["trainings"], result["seconds"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{run.result_file} is damaged ({error!r}); delete it and run the same command again") from error
    return result


def verdict(arm: Arm) -> str:
    """One sentence for the operator: what was found, or that nothing pays."""
    if arm.mixture.rates and len([rate for rate in arm.mixture.rates if rate > 0]) == 1 and arm.mixture.rates[0] > 0:
        return (
            "nothing pays: every trained path loses more accuracy than the limit allows, or gains nothing; the original alone is deployed"
        )
    return (
        f"the plan serves {arm.throughput_ratio:.2f} times the original at {arm.loss_points:.2f} points average-accuracy loss (validation)"
    )


def evaluations_table(campaign: Campaign) -> pd.DataFrame:
    """One row an evaluation, in the order they were measured; ``pair_*`` is the original with that path at maximum offload."""
    problem = campaign.problem
    rows = []
    for job, record in campaign.records.items():
        # A random host does the same work as the one it stands for.
        cost = problem.profile.cost(with_trained_hosts(job.path, problem.public), problem.services)
        provider = problem.objective.local_provider
        arm = best_arm(problem, {job.path: (cost, record["accuracy"])}, loss_points=100.0)
        tau_l, tau_h = cost.at(provider), cost.elsewhere(provider)
        rows.append(
            {
                **job.to_config(),
                "kind": job.path.kind,
                "vector": str(list(job.path.vector)),
                "rank": job.path.rank,
                "accuracy_fit": record["accuracy_fit"],
                "accuracy": record["accuracy"],
                "loss_points": 100 * (problem.accuracy_original - record["accuracy"]),
                "tau_local_ms": 1e3 * tau_l,
                "tau_host_ms": 1e3 * tau_h,
                "host_efficiency": host_efficiency(problem.objective.original_seconds, tau_l, tau_h),
                "pair_throughput_ratio": arm.throughput_ratio,
                "pair_loss_points": arm.loss_points,
                **{name: record.get(name) for name in ("divergence", "explained", "expected_low", "expected_high")},
                "seconds": record["seconds"],
            }
        )
    columns = ["path", "fidelity", "seed", "role", "kind", "vector", "rank", "accuracy_fit", "accuracy", "loss_points"]
    columns += ["tau_local_ms", "tau_host_ms", "host_efficiency", "pair_throughput_ratio", "pair_loss_points"]
    columns += ["divergence", "explained", "expected_low", "expected_high", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def _leading_path(arm: Arm) -> InferencePath:
    """The path other than the original that carries most, or the original where it is alone."""
    others = [(rate, path) for path, rate in zip(arm.paths[1:], arm.mixture.rates[1:], strict=True) if rate > 0]
    return max(others)[1] if others else arm.paths[0]


def _coverage(campaign: Campaign) -> dict[str, float] | None:
    """How often a training came out within the 95 % interval that was forecast for it; None where nothing was forecast."""
    forecast = [record for record in campaign.records.values() if "expected_low" in record]
    if not forecast:
        return None
    inside = sum(record["expected_low"] <= record["accuracy"] <= record["expected_high"] for record in forecast)
    return {"nominal": 0.95, "share_inside": inside / len(forecast), "trainings": len(forecast)}


def _best(problem: Problem, known: Known, arm: Arm, hits: Any) -> dict[str, Any]:
    path = _leading_path(arm)
    original = arm.paths[0]
    objective = problem.objective
    cost, accuracy = known.get(path, (objective.original.cost, problem.accuracy_original))
    home = objective.local_provider
    tau_l, tau_h = cost.at(home), cost.elsewhere(home)
    settings = problem.config.reward
    reward = Reward(problem.accuracy_original - settings.accuracy_min_below_original / 100, settings.steepness, settings.exponent)
    paper = PaperObjective(objective.original, problem.accuracy_original, objective.limits, home, reward)
    f_path = float(paper.path_values([Candidate(path, cost)], np.array([[accuracy]]))[0, 0]) if path != original else paper.original_value
    costs = {p: c for p, (c, _) in known.items()} | {original: objective.original.cost}
    of_arm = [costs[p] for p in arm.paths]
    used = objective.limits.used(arm.mixture, of_arm)
    return {
        "vector": list(path.vector),
        "kind": path.kind,
        "rerun": path.rerun,
        "host": path.hosts[0] if path.hosts else None,
        "hosts": list(path.hosts),
        "accuracy_validation": accuracy,
        "accuracy_test": float(hits[path].mean()),
        "accuracy_original_test": float(hits[original].mean()),
        "throughput_ratio": arm.throughput_ratio,
        "throughput_ratio_cycle": _cycle_ratio(problem, path, cost),
        "average_accuracy_loss_points": test_loss(arm, hits)[0],
        "reward": f_path,
        "reward_original": paper.original_value,
        "host_share": host_share(problem, arm.mixture, of_arm),
        "network_share": max((share for edge, share in used.items() if isinstance(edge, tuple)), default=None),
        "host_efficiency": host_efficiency(objective.original_seconds, tau_l, tau_h),
    }


def _cycle_ratio(problem: Problem, path: InferencePath, cost: PathCost) -> float:
    """The pair's ratio by the second reading of b_l and b_h, 32 each (DESIGN 2.3): for comparison."""
    if path.kind == "original":
        return 1.0
    t0, pair = problem.objective.original_seconds, problem.objective.pair_seconds([Candidate(path, cost)])
    return float(t0 * cycle_throughput(t0, *pair, 1.0, own=32, offloaded=32)[0])


def _accuracies(problem: Problem, arm: Arm, known: Known) -> dict[str, float]:
    """Validation accuracy of each path that an arm uses."""
    return {str(path): known[path][1] if path in known else problem.accuracy_original for path in arm.shares}


def _test_summary(arm: Arm, hits: Any) -> dict[str, float]:
    loss, half = test_loss(arm, hits)
    return {"average_accuracy_loss_points_test": loss, "half_interval_95_points": half}


def _controls(campaign: Campaign) -> dict[str, dict[str, float] | None]:
    """Accuracy of each control of the leading cross path beside that path's own, all on validation."""
    cross = campaign.leading_cross()
    if cross is None:
        return {"random_host": None, "links_only": None, "skip": None}
    reached = campaign.accuracies[cross][1]
    controls: dict[str, dict[str, float] | None] = {}
    for role, path in control_paths(cross).items():
        found = [r["accuracy"] for j, r in campaign.records.items() if j.path == path and j.fidelity == campaign.longest(cross)]
        controls[role] = {"accuracy_validation": found[0], "cross_accuracy_validation": reached} if found else None
    return controls
