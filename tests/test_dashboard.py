"""The Grafana dashboard that ships asks for metrics that there are."""

import json
import re
from pathlib import Path

import pytest

import deployments
from deployments import metrics

DASHBOARD = json.loads((Path(deployments.__file__).parent / "grafana.json").read_text())
NAMES = set(re.findall(r'"(code_ray_\w+)"', Path(metrics.__file__).read_text()))
SUFFIXES = ("", "_total", "_bucket", "_count", "_sum")


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_every_panel_asks_for_metrics_of_ours(panel: dict[str, list[dict[str, str]]]) -> None:
    for target in panel["targets"]:
        asked = re.findall(r"ray_(code_ray_\w+)", target["expr"])
        assert asked
        for name in asked:
            assert name in {known + suffix for known in NAMES for suffix in SUFFIXES}


def test_every_metric_of_ours_is_shown() -> None:
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    assert [name for name in NAMES if name not in shown] == []
