"""The page of a search: what stands on it, that it is whole in itself, and what it says where something is missing."""

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from found import CONFIG, CONTROL, CROSS, EXIT, FINDINGS, ORIGINAL, TABLE, arm, evaluation, picture, result
from PIL import Image

from search.config import SearchConfig
from search.findings import Findings
from search.html import report_page
from search.plots import draw_forecasts, draw_trace

VOID = {"meta", "img"}


class Page(HTMLParser):
    """What a browser makes of a page: its text, its elements in order; fails where tags do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text = ""
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self._open else ""

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(findings: Findings = FINDINGS, config: dict[str, Any] | None = None, **changes: Any) -> Page:
    """The page of ``findings`` with some keys of the configuration and of ``result.json`` changed."""
    settings = SearchConfig.model_validate(findings.config.model_dump() | (config or {}))
    return Page(report_page(replace(findings, config=settings, result={**findings.result, **changes})))


@pytest.mark.parametrize(
    "said",
    [
        "Paths for svc",
        "Hosts: lender (kappa 0.5). Data: digits.",
        "The plan serves 1.62 times the original at 2.21 points average-accuracy loss (validation).",
        "92.00 % right on validation images, 91.50 % on test images; 789 images a second",
        "2.3 points of average accuracy",
        "lender: 50 % of its server",
        "55 paths, 44 of them",
        "no path left is expected to gain 0.01",
        "41 paths that were not trained",
        "the plan stood at 1.70 times the original",
        "was expected to add is 0.0042; at the good end",
        "the plan to 1.77",
        "6 trainings to the end (controls and confirmation included; 0 of them longer), 1 stopped at a rung, 24 paths scored without training; 67 s",
        "takes 43 % of the busiest host's server",
        "2.34 ± 0.45 points (95 % interval) on test images",
        "serve run deployments:build_app run_dir=/runs/one",
    ],
)
def test_the_page_says_what_the_search_found(said: str) -> None:
    assert said in page_of().text


def test_sections_stand_in_the_order_in_which_an_operator_asks() -> None:
    text = page_of().text
    titles = ["The plan serves", "Borrowing pays", "Loss limit", "The plan", "Throughput and loss", "The plan and its rivals"]
    titles += ["Is it the host?", "Least loss at fixed speed-ups", "Forecasts", "training by training", "All trained paths"]
    titles += ["What failed", "Serve it"]
    place = 0
    for title in titles:
        place = text.index(title, place) + len(title)


def test_a_gated_path_is_called_so_and_what_gates_are_worth_is_said() -> None:
    gated = f"{CROSS} | rerun=0.1"
    deployed = result()["deployed"] | {"paths": {gated: 1.0}, "accuracies": {gated: 0.911}}
    text = page_of(deployed=deployed).text
    assert "cross, gated" in text
    assert "91.10" in text
    assert "Without gated paths: best plan without a host 1.22, best plan of all 1.58." in text


def test_borrowing_is_set_against_plans_without_a_host_and_a_copy_of_the_model() -> None:
    text = page_of().text
    assert "Borrowing pays: within the loss limit the best plan with hosts serves 1.62 times the original" in text
    assert "the best plan without one 1.31 times, with a small network distilled from the original 1.40 times." in text
    assert "would serve 1.50 times the original at no loss, and 1.60 times it within the limit if it followed the best plan" in text
    assert "without a host and the small network; borrowing serves more than either." in text
    assert "; borrowing serves more than either." in text


def test_where_the_best_plan_without_a_host_serves_as_much_borrowing_does_not_pay() -> None:
    arms = result()["arms"]
    text = page_of(arms=arms | {"host_free": arms["mixture"], "replica": {**arms["replica"], "throughput_ratio": 2.0}}).text
    small = page_of(arms=arms | {"distilled": arms["mixture"]}).text
    assert "Borrowing does not pay: a small network distilled from the original, gated, serves as much (1.62 times" in small
    alone = {name: entry for name, entry in arms.items() if "distilled" not in name}
    assert "small network" not in page_of(arms=alone).text
    copied = arms["replica_host_free"] | {"throughput_ratio": 1.9}
    assert "1.90 times it within the limit" in page_of(arms=arms | {"replica_host_free": copied}).text
    assert "where copying is allowed, copy." in page_of(arms=arms | {"replica_host_free": copied}).text
    assert "Borrowing does not pay: the best plan without a host serves as much (1.62 times the original)." in text
    assert "would serve 2.00 times the original at no loss: where copying is allowed, copy." in text


def test_a_rival_that_was_never_trained_is_no_proof() -> None:
    crosses = FINDINGS.table[FINDINGS.table.kind == "cross"]
    assert "No exit and no skip was trained for comparison." in page_of(replace(FINDINGS, table=crosses)).text
    stopped = FINDINGS.table[(FINDINGS.table.kind == "cross") | (FINDINGS.table.fidelity == "stopped")]
    assert "stopped at a rung, and so in no plan: 1." in page_of(replace(FINDINGS, table=stopped)).text
    assert "No exit and no skip" not in page_of().text
    assert "in no plan" not in page_of().text


def test_a_path_of_the_plan_has_the_mean_accuracy_of_its_seeds() -> None:
    plan = page_of().text.split("The plan and its rivals")[0]
    assert f"75.0cross{CROSS}89.003.00" in plan
    assert f"25.0original{ORIGINAL}92.000.00" in plan


def test_every_training_has_a_row_and_those_that_were_stopped_say_so() -> None:
    text = page_of().text
    assert f"searchcross{CROSS}90.002.001.251.9012.3trained" in text
    assert f"searchexit{EXIT}87.005.00-1.9012.3stopped" in text
    assert f"random hostcross{CONTROL}81.0011.001.251.9012.3trained" in text
    assert "88.00" not in text.split("All trained paths")[1].split(CROSS)[0]


def test_controls_stand_beside_the_cross_path() -> None:
    text = page_of().text
    assert "9.00 points above the best of its controls, random host, more than two standard errors (1.40 points)" in text
    assert "random host: the same blocks with random weights81.0090.009.00" in text
    assert "skip: the same local blocks, no hostnot trained90.00-" in text


def test_a_control_that_does_as_well_leaves_the_host_unproved() -> None:
    controls = result()["controls"] | {"skip": {"accuracy_validation": 0.905, "cross_accuracy_validation": 0.90}}
    text = page_of(controls=controls).text
    assert "0.50 points below the best of its controls, skip; two standard errors are 1.19 points" in text
    assert "That the host's knowledge counts is not shown." in text


def test_speed_ups_out_of_reach_are_told() -> None:
    assert "1.40.77201.6out of reach-1.8out of reach-" in page_of().text.replace("\n", "")


def test_the_forecasts_are_counted() -> None:
    assert "2 of 3 trainings came out inside their 95 % interval." in page_of().text


def test_failures_are_told_with_their_reasons() -> None:
    assert f"{EXIT}its worker died twice" in page_of(failed={EXIT: "its worker died twice"}).text
    assert "What failedNothing." in page_of().text


def test_pictures_are_inside_the_page_and_described() -> None:
    images = page_of().all("img")
    assert len(images) == 4
    for image in images:
        kind, _, content = image["src"].partition(",")
        assert (kind, base64.b64decode(content, validate=True)) == ("data:image/png;base64", picture())
        assert len(image["alt"]) > 40
    assert f"75.0 % of the samples take {CROSS}" in images[0]["alt"]


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    page = report_page(FINDINGS)
    parsed = Page(page)
    assert {tag for tag, _ in parsed.elements}.isdisjoint({"script", "link", "iframe", "object", "embed", "form", "base"})
    for _, attributes in parsed.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
        assert ":" not in attributes.get("href", "")
    assert not any(word in page for word in ("http://", "https://", "url(", "@import"))
    assert page.isascii()


def test_whatever_comes_from_outside_is_text() -> None:
    evil = "<script>alert('x')</script>&\"'"
    config = CONFIG.model_dump() | {"local": f"/srv/{evil}", "hosts": {evil: {"kappa": 1}}, "providers": {evil: "a", f"/srv/{evil}": "b"}}
    table = FINDINGS.table.assign(path=FINDINGS.table.path.str.replace("lender", "<b>&lt;"))
    findings = replace(FINDINGS, config=SearchConfig.model_validate(config), table=table, run_dir=Path(f"/runs/{evil}"))
    deployed = result()["deployed"] | {"paths": {f"{evil} > svc[1:6]": 1.0}, "accuracies": {f"{evil} > svc[1:6]": 0.9}}
    changes = {"failed": {evil: evil}, "stopped_because": evil, "verdict": evil, "deployed": deployed}
    page = page_of(findings, **changes)
    assert page.all("script") == page.all("b") == []
    assert page.text.count(evil) >= 7
    assert "<b>&lt;[1:4]" in page.text
    assert evil in page.all("img")[0]["alt"]


def test_a_name_that_is_no_unicode_does_not_spoil_the_page() -> None:
    page = report_page(replace(FINDINGS, run_dir=Path("/runs/\udcff-größe")))
    assert page.isascii()
    assert "größe" in Page(page).text


def test_where_nothing_pays_the_page_shows_the_original_alone() -> None:
    deployed = arm(1, 0, original=1) | {"average_accuracy_loss_points_test": 0.0, "half_interval_95_points": 0.0}
    deployed |= {"accuracies": {ORIGINAL: 0.92}}
    arms = {name: {"throughput_ratio": 1.0, "average_accuracy_loss_points": 0.0} for name in result()["arms"]}
    page = page_of(deployed=deployed, arms=arms, verdict="nothing pays: the original alone is deployed")
    assert {"class": "verdict nothing"} in page.all("p")
    assert "Nothing pays: the original alone is deployed." in page.text
    assert "Borrowing does not pay" in page.text
    assert f"100.0original{ORIGINAL}92.000.00" in page.text
    assert "The original serves every sample" in page.text


def test_without_a_host_or_a_path_the_page_says_so() -> None:
    findings = replace(FINDINGS, table=TABLE[:0], pictures={"pareto": picture(), "winning_plan": picture(), "search_trace": picture()})
    nothing = {"random_host": None, "links_only": None, "skip": None}
    page = page_of(findings, {"hosts": {}}, controls=nothing, left=None, forecast_coverage=None, deployed=result()["deployed"])
    assert "Hosts: none." in page.text
    assert "No host is in the space: there was nothing to borrow." in page.text
    assert "No control was trained. No cross path was trained to its end" in page.text
    assert "Nothing was forecast: nothing was trained." in page.text
    assert "Nothing was trained." in page.text
    assert "All trained pathsNone." in page.text
    assert len(page.all("img")) == 2


@pytest.mark.parametrize(("asked", "why"), [(True, "Their trainings failed."), (False, "The configuration asks for none.")])
def test_where_no_control_was_trained_the_page_says_why(asked: bool, why: str) -> None:
    controls = {"random_host": None, "links_only": None, "skip": None}
    assert f"No control was trained. {why}" in page_of(config={"controls": asked}, controls=controls).text


@pytest.mark.parametrize("sampler", ["random", "printed"])
def test_a_sampler_that_forecasts_nothing_is_named(sampler: str) -> None:
    pictures = {name: content for name, content in FINDINGS.pictures.items() if name != "forecasts"}
    page = page_of(replace(FINDINGS, pictures=pictures), {"sampler": sampler}, left=None, forecast_coverage=None)
    assert f"Nothing was forecast: the sampler '{sampler}' makes no forecasts." in page.text
    assert f"not known: the sampler '{sampler}' forecasts nothing" in page.text
    assert len(page.all("img")) == 3


def test_the_papers_objective_is_named_with_its_parameters_and_rewards() -> None:
    text = page_of(config={"objective": "paper"}).text
    assert "F = xi(A) (Th / Th0)^1 of the original and one path, steepness 8, A_min 0.7 points below the original" in text
    assert "F = 0.810, 0.514 for the original alone" in text
    assert "rates are solved again within the loss limit of 2.3 points" in text
    assert "the plan stood at 1.70 of F" in text


def test_what_is_not_known_is_a_dash() -> None:
    deployed = result()["deployed"] | {"half_interval_95_points": float("nan")}
    assert "2.34 ± - points" in page_of(deployed=deployed).text


def test_pictures_of_many_trainings_stay_of_a_size_to_look_at() -> None:
    table = pd.DataFrame([evaluation(CROSS, "cross", 0.5 + 0.001 * i, expected_low=0.6, expected_high=0.9) for i in range(300)])
    for draw in (draw_trace, draw_forecasts):
        with Image.open(io.BytesIO(draw(table))) as drawn:
            assert drawn.format == "PNG"
            assert all(250 <= side <= 3000 for side in drawn.size)


def test_pictures_of_no_training_can_be_drawn() -> None:
    for draw in (draw_trace, draw_forecasts):
        with Image.open(io.BytesIO(draw(TABLE[:0]))) as drawn:
            assert drawn.format == "PNG"
