"""What a search found, in plain sentences: what the report's page says besides tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from code_ray.plain_predictors import PREDICTORS
from search.campaign import FINISHED, PLANNED
from search.config import SearchConfig

WORTH = 1.01
"""Borrowing pays where a plan with hosts serves at least so many times what the best one without serves: a hundredth is less than
the times of blocks are known to.
"""


@dataclass(frozen=True)
class Findings:
    """Configuration, content of ``result.json``, table of evaluations, pictures by name (PNG), and what these leave out.

    ``accuracy_original`` is a fraction of ``validation_images``; ``original_per_second`` are images.
    """

    config: SearchConfig
    result: Mapping[str, Any]
    table: pd.DataFrame
    pictures: Mapping[str, bytes]
    accuracy_original: float
    original_per_second: float
    validation_images: int
    run_dir: Path

    def rows(self, *fidelities: str) -> list[dict[str, Any]]:
        """Evaluations of these fidelities, in the order they were measured."""
        found = self.table[self.table.fidelity.isin(fidelities)]
        return [{str(name): value for name, value in row.items()} for row in found.to_dict("records")]

    @property
    def forecasts(self) -> bool:
        """Whether the sampler is one that forecasts."""
        return self.config.sampler in PREDICTORS


def two(value: float | None) -> str:
    """Points, percent or a ratio with two decimals; a dash for what is not known or does not exist."""
    return "-" if value is None or math.isnan(value) else f"{value:z.2f}"


def verdict(findings: Findings) -> str:
    """The verdict of ``result.json`` as a sentence."""
    text: str = findings.result["verdict"]
    return f"{text[:1].upper()}{text[1:]}."


def nothing_pays(findings: Findings) -> bool:
    """Whether the original alone is deployed."""
    return bool(findings.result["verdict"].startswith("nothing pays"))


def borrowing(findings: Findings) -> str:
    """Whether hosts are worth having, over plans without one and over copying the model."""
    arms = findings.result["arms"]
    if not findings.config.hosts:
        return "No host is in the space: there was nothing to borrow."
    ratios = {name: arm["throughput_ratio"] for name, arm in arms.items()}
    mixture, host_free, replica, copied = (ratios[name] for name in ("mixture", "host_free", "replica", "replica_host_free"))
    small = ratios.get("distilled", 0.0)
    if mixture < WORTH * host_free:
        said = f"Borrowing does not pay: the best plan without a host serves as much ({host_free:.2f} times the original)."
    elif mixture < WORTH * small:
        said = (
            f"Borrowing does not pay: a small network distilled from the original, gated, serves as much ({small:.2f} times the original)."
        )
    else:
        said = (
            f"Borrowing pays: within the loss limit the best plan with hosts serves {mixture:.2f} times the original, "
            f"the best plan without one {host_free:.2f} times"
        )
        said += f", with a small network distilled from the original {small:.2f} times." if small > host_free else "."
        said += _rivals_left_out(findings)
    best_copied = max(copied, ratios.get("replica_distilled", 0.0))
    full = f" A full copy of the model on each host's share would serve {replica:.2f} times the original at no loss"
    if best_copied > replica:
        full += f", and {best_copied:.2f} times it within the limit if it followed the best plan without a host"
        full += " and the small network" if best_copied > copied else ""
    advice = ": where copying is allowed, copy." if max(replica, best_copied) >= mixture else "; borrowing serves more than either."
    return said + full + (advice if best_copied > replica or replica >= mixture else "; borrowing serves more.")


def _rivals_left_out(findings: Findings) -> str:
    """What weakens the comparison with plans without a host."""
    rows = [row for row in findings.rows(*FINISHED, "stopped") if row["kind"] in ("exit", "skip")]
    counted = {row["path"] for row in rows if row["fidelity"] in FINISHED and row["role"] in PLANNED}
    left_out = {row["path"] for row in rows} - counted
    said = "" if counted else " No exit and no skip was trained for comparison."
    if left_out:
        said += f" Exits and skips stopped at a rung, and so in no plan: {len(left_out)}."
    return said


def objective(config: SearchConfig) -> str:
    """What was maximised."""
    if config.objective == "plan":
        return "plan: throughput of the best mixture of paths over the original's, within the loss limit"
    reward = config.reward
    return (
        f"paper: F = xi(A) (Th / Th0)^{reward.exponent:g} of the original and one path, steepness {reward.steepness:g}, "
        f"A_min {reward.accuracy_min_below_original:g} points below the original"
    )


def left(findings: Findings) -> str:
    """What the search did not try, and what that might have been worth."""
    rest, unit = findings.result["left"], "times the original" if findings.config.objective == "plan" else "of F"
    if rest is None:
        return "no path" if findings.forecasts else f"not known: the sampler {findings.config.sampler!r} forecasts nothing"
    gain = rest["expected_improvement"]
    return (
        f"{rest['paths']} paths that were not trained. Where the search ended, before any path was trained longer, the plan stood at "
        f"{rest['value']:.2f} {unit}. The most that training one more was expected to add is "
        f"{'less than 0.0001' if gain < 0.0001 else f'{gain:.4f}'}; at the good end of its 95 % interval one would have brought the plan "
        f"to {rest['bound']:.2f}"
    )


def work(findings: Findings) -> str:
    """What the search cost."""
    result, stopped = findings.result, len(findings.rows("stopped"))
    return (
        f"{result['trainings']} trainings to the end (controls and confirmation included; {result['refined']} of them longer), "
        f"{stopped} stopped at a rung, "
        f"{result['screened']} paths scored without training; {result['seconds']:.0f} s in the last call"
    )


def plan(findings: Findings) -> str:
    """What the deployed plan gives and takes."""
    deployed, best = findings.result["deployed"], findings.result["best"]
    loss, half = deployed["average_accuracy_loss_points_test"], deployed["half_interval_95_points"]
    said = (
        f"It serves {deployed['throughput_ratio']:.2f} times the original and takes {100 * best['host_share']:.0f} % of the busiest "
        f"host's server. Average-accuracy loss: {two(deployed['average_accuracy_loss_points'])} points on validation images, "
        f"{two(loss)} ± {two(half)} points (95 % interval) on test images, by which nothing was chosen."
    )
    if nothing_pays(findings):
        said = "The original serves every sample; no path beside it gains anything within the loss limit."
    if costs := findings.result["payload_costs"]:
        path, most = max(costs.items(), key=lambda item: item[1])
        said += f" Activations cross as {findings.config.payload}, by which {path} loses most, {two(most)} points on validation images."
    if findings.config.objective == "paper":
        said += (
            f" The search maximised the paper's reward: F = {best['reward']:.3f}, {best['reward_original']:.3f} for the original alone. "
            f"Where the plan is served, rates are solved again within the loss limit of {findings.config.loss_points:g} points."
        )
    return said


def host_counts(findings: Findings) -> str:
    """Whether the cross path is clearly above its controls, by two standard errors of the difference."""
    trained = {name: control for name, control in findings.result["controls"].items() if control is not None}
    if not trained:
        return f"No control was trained. {_why_no_control(findings)}"
    name, rival = max(trained.items(), key=lambda item: item[1]["accuracy_validation"])
    cross, best = rival["cross_accuracy_validation"], rival["accuracy_validation"]
    error = 100 * math.sqrt((cross * (1 - cross) + best * (1 - best)) / findings.validation_images)
    ahead = 100 * (cross - best)
    side = "above" if ahead >= 0 else "below"
    said = f"The cross path is {two(abs(ahead))} points {side} the best of its controls, {name.replace('_', ' ')}"
    if ahead > 2 * error:
        return f"{said}, more than two standard errors ({two(2 * error)} points): the host's knowledge counts."
    return f"{said}; two standard errors are {two(2 * error)} points. That the host's knowledge counts is not shown."


def _why_no_control(findings: Findings) -> str:
    if not any(row["kind"] == "cross" and row["role"] == "search" for row in findings.rows("trained")):
        return "No cross path was trained to its end, so there was nothing to compare."
    return "Their trainings failed." if findings.config.controls else "The configuration asks for none."


def coverage(findings: Findings) -> str:
    """How good the forecasts were."""
    found = findings.result["forecast_coverage"]
    if found is None:
        because = "nothing was trained" if findings.forecasts else f"the sampler {findings.config.sampler!r} makes no forecasts"
        return f"Nothing was forecast: {because}."
    inside = round(found["share_inside"] * found["trainings"])
    return f"{inside} of {found['trainings']} trainings came out inside their {100 * found['nominal']:g} % interval."
