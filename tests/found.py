"""A small search with every kind of row, made up: what the page of a search is tested with."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from search.config import SearchConfig
from search.findings import Findings

ORIGINAL = "svc[0:6]"
CROSS = "svc[0:1] > lender[1:4] > svc[5:6]"
EXIT = "svc[0:2] > logits"
CONTROL = "svc[0:1] > lender-random[1:4] > svc[5:6]"

CONFIG = SearchConfig.model_validate({"local": "svc", "data": "digits", "hosts": {"lender": {"kappa": 0.5}}, "loss_points": 2.3})


def evaluation(path: str, kind: str, accuracy: float, **changes: Any) -> dict[str, Any]:
    """A row of evaluations.csv for an original that gets 92 % right."""
    vector = {"cross": "[1, 2, 4, 5]", "exit": "[2]"}[kind]
    row = {"path": path, "fidelity": "trained", "seed": 0, "role": "search", "kind": kind, "vector": vector, "rank": None}
    row |= {"accuracy_fit": accuracy - 0.03, "accuracy": accuracy, "loss_points": 100 * (0.92 - accuracy), "seconds": 12.34}
    row |= {"host_efficiency": 1.25 if kind == "cross" else None, "pair_throughput_ratio": 1.9, "pair_loss_points": 1.0}
    return row | {"expected_low": None, "expected_high": None} | changes


def arm(ratio: float, loss: float, **paths: float) -> dict[str, Any]:
    names = {"original": ORIGINAL, "cross": CROSS, "exit": EXIT}
    shares = {names[name]: share for name, share in paths.items()}
    return {"throughput_ratio": ratio, "average_accuracy_loss_points": loss, "paths": shares}


def result() -> dict[str, Any]:
    """A search that found a cross path worth borrowing."""
    best = {"accuracy_original_test": 0.915, "host_share": 0.43, "reward": 0.81, "reward_original": 0.514}
    mixture = arm(1.62, 2.21, cross=0.75, original=0.25)
    accuracies = {CROSS: 0.89, ORIGINAL: 0.92}
    return {
        "best": best,
        "deployed": mixture | {"accuracies": accuracies, "average_accuracy_loss_points_test": 2.34, "half_interval_95_points": 0.45},
        "arms": {
            "original": arm(1, 0, original=1),
            "paper_pair": mixture,
            "host_free": arm(1.31, 2.3, exit=0.6, original=0.4),
            "mixture": mixture,
            "mixture_lout_1": mixture,
            "probe": arm(1, 0, original=1),
            "distilled": arm(1.4, 2.3, exit=0.8, original=0.2),
            "mixture_distilled": mixture,
            "replica": {"throughput_ratio": 1.5, "average_accuracy_loss_points": 0.0},
            "replica_host_free": {"throughput_ratio": 1.58, "average_accuracy_loss_points": 2.3},
            "replica_distilled": {"throughput_ratio": 1.6, "average_accuracy_loss_points": 2.3},
        },
        "without_gates": {"host_free": arm(1.22, 2.3, exit=0.5, original=0.5), "mixture": arm(1.58, 2.2, cross=1.0)},
        "controls": {
            "random_host": {"accuracy_validation": 0.81, "cross_accuracy_validation": 0.90},
            "links_only": {"accuracy_validation": 0.70, "cross_accuracy_validation": 0.90},
            "skip": None,
        },
        "payload_costs": None,
        "fixed_speedups": {"1.4": {"average_accuracy_loss_points": 0.77, "host_share": 0.2}, "1.6": None, "1.8": None},
        "candidates": 44,
        "paths_enumerated": 55,
        "trainings": 6,
        "refined": 0,
        "screened": 24,
        "failed": {},
        "seconds": 66.6,
        "sampler": "gp",
        "objective": "plan",
        "seed": 7,
        "stopped_because": "no path left is expected to gain 0.01",
        "left": {"paths": 41, "value": 1.7, "expected_improvement": 0.0042, "bound": 1.77},
        "forecast_coverage": {"nominal": 0.95, "share_inside": 2 / 3, "trainings": 3},
        "verdict": "the plan serves 1.62 times the original at 2.21 points average-accuracy loss (validation)",
    }


TABLE = pd.DataFrame(
    [
        evaluation(EXIT, "exit", 0.88, fidelity="fit"),
        evaluation(CROSS, "cross", 0.90, expected_low=0.85, expected_high=0.91),
        evaluation(EXIT, "exit", 0.87, fidelity="stopped"),
        evaluation(EXIT, "exit", 0.885),
        evaluation(CROSS, "cross", 0.88, role="confirm", seed=1),
        evaluation(CONTROL, "cross", 0.81, role="random_host"),
    ]
)


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), "white").save(stream, "PNG")
    return stream.getvalue()


FINDINGS = Findings(
    config=CONFIG,
    result=result(),
    table=TABLE,
    pictures={name: picture() for name in ("winning_plan", "pareto", "search_trace", "forecasts")},
    accuracy_original=0.92,
    original_per_second=789.4,
    validation_images=5000,
    run_dir=Path("/runs/one"),
)
