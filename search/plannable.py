"""What a plan may be made of: trained paths, and their gated forms (DESIGN 2.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from code_ray.objective import Known
from code_ray.path import InferencePath

if TYPE_CHECKING:
    from search.campaign import Campaign


def plannable(campaign: Campaign) -> Known:
    """Cost and validation accuracy of every path that was trained to its end, and of each with the gates that it was measured with."""
    return with_gates(campaign, campaign.accuracies)


def with_gates(campaign: Campaign, known: Known) -> Known:
    """``known`` plain paths with their gated forms that were measured."""
    problem, found = campaign.problem, dict(known)
    for path, (_, accuracy) in known.items():
        record = campaign.planned_record(path)
        for gate in record.get("gates", ()):
            gated = replace(path, rerun=gate["rerun"])
            # What the gate gains was measured with one seed; the path's accuracy is the mean over its seeds.
            reached = min(1.0, max(0.0, accuracy + gate["accuracy"] - record["accuracy"]))
            found[gated] = problem.profile.cost(gated, problem.services), reached
    return found


def threshold_of(campaign: Campaign, path: InferencePath) -> float | None:
    """Below which confidence answers of a gated path are made again; None for a plain one."""
    if not path.rerun:
        return None
    return float(next(gate["threshold"] for gate in campaign.planned_record(path)["gates"] if gate["rerun"] == path.rerun))
