"""What a plan may be made of: trained paths, and their gated forms (DESIGN 2.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from code_ray.objective import Known
from code_ray.path import InferencePath
from search.campaign import PLANNED, Campaign


def plannable(campaign: Campaign) -> Known:
    """Cost and validation accuracy of every path that was trained to its end, and of each with the gates that it was measured with."""
    problem = campaign.problem
    known = dict(campaign.accuracies)
    for path, (_, accuracy) in campaign.accuracies.items():
        record = planned_record(campaign, path)
        for gate in record.get("gates", ()):
            gated = replace(path, rerun=gate["rerun"])
            # What the gate gains was measured with one seed; the path's accuracy is the mean over its seeds.
            reached = min(1.0, max(0.0, accuracy + gate["accuracy"] - record["accuracy"]))
            known[gated] = problem.profile.cost(gated, problem.services), reached
    return known


def planned_record(campaign: Campaign, path: InferencePath) -> dict[str, Any]:
    """The record of the training whose links a plan takes for ``path``, gated or not."""
    fidelity = campaign.longest(path.plain)
    return next(r for j, r in campaign.records.items() if j.path == path.plain and j.role in PLANNED and j.fidelity == fidelity)


def threshold_of(campaign: Campaign, path: InferencePath) -> float | None:
    """Below which confidence answers of a gated path are made again; None for a plain one."""
    if not path.rerun:
        return None
    return float(next(gate["threshold"] for gate in planned_record(campaign, path)["gates"] if gate["rerun"] == path.rerun))
