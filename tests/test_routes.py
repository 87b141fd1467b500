"""From a plan to hops and rates (DESIGN 2.3, 3.5)."""

import math
from dataclasses import replace

import pytest

from code_ray.errors import ConfigError, PlanError, RequestError
from code_ray.path import InferencePath, original_path, path_from_vector
from code_ray.plan import Plan, PlannedPath
from code_ray.policy import RatePolicy
from deployments.routes import Hop, LegReport, ProviderReport, Route, check_use, hosted_paths, make_routes, solve_rates

BLOCKS = {"tiny": 6, "host": 6}
CROSS = path_from_vector([1, 2, 4, 5], "tiny", 6, "host", 6)
SKIP = path_from_vector([1, 5], "tiny", 6)
RAW = path_from_vector([0, 1, 4, 5], "tiny", 6, "host", 6)


def planned(path: InferencePath, identifier: str, accuracy: float) -> PlannedPath:
    return PlannedPath(path=str(path), id=identifier, accuracy=accuracy, link_hashes={})


def make_plan(placement: dict[str, str] | None = None, kappa: float = 0.5, loss_points: float = 2.3) -> Plan:
    return Plan(
        local="tiny",
        num_blocks=6,
        services={"tiny": "a" * 64, "host": "b" * 64},
        placement=placement or {"tiny": "home", "host": "away"},
        kappa={"host": kappa},
        loss_points=loss_points,
        paths=(
            planned(original_path("tiny", 6), "o1", 0.90),
            planned(CROSS, "c1", 0.88),
            planned(SKIP, "s1", 0.80),
            planned(RAW, "r1", 0.90),
        ),
    )


PLAN = make_plan()
ROUTES = make_routes(PLAN, BLOCKS)
TINY = list(ROUTES["tiny"].values())
SECONDS = {
    "home": {"o1:0": 0.010, "c1:0": 0.002, "c1:2": 0.001, "s1:0": 0.004, "r1:1": 0.001},
    "away": {"c1:1": 0.005, "r1:0": 0.010, "original-host:0": 0.020},
}


def reports(seconds: dict[str, dict[str, float]]) -> dict[str, ProviderReport]:
    return {name: ProviderReport(name, "float32", {key: LegReport(s, 32) for key, s in legs.items()}) for name, legs in seconds.items()}


def without(provider: str, key: str) -> dict[str, ProviderReport]:
    return reports({name: {k: s for k, s in legs.items() if (name, k) != (provider, key)} for name, legs in SECONDS.items()})


def test_the_plans_paths_and_each_hosts_own_service_are_hosted() -> None:
    found = [(entry.id, path) for entry, path in hosted_paths(PLAN, BLOCKS)]
    assert found == [
        ("o1", original_path("tiny", 6)),
        ("c1", CROSS),
        ("s1", SKIP),
        ("r1", RAW),
        ("original-host", original_path("host", 6)),
    ]


def test_a_path_hops_between_providers_once_a_leg() -> None:
    hops = {route.id: route.hops for route in TINY}
    assert hops["original"] == (Hop("home", "o1:0"),)
    assert hops["c1"] == (Hop("home", "c1:0"), Hop("away", "c1:1"), Hop("home", "c1:2"))
    assert hops["s1"] == (Hop("home", "s1:0"),)
    # The raw input goes straight to the host.
    assert hops["r1"] == (Hop("away", "r1:0"), Hop("home", "r1:1"))


def test_within_one_provider_a_path_is_one_hop() -> None:
    routes = make_routes(make_plan({"tiny": "home", "host": "home"}), BLOCKS)
    assert routes["tiny"]["c1"].hops == (Hop("home", "c1:0"),)


def test_every_service_begins_with_its_original_path() -> None:
    assert {service: list(routes) for service, routes in ROUTES.items()} == {
        "tiny": ["original", "c1", "s1", "r1"],
        "host": ["original"],
    }
    assert ROUTES["host"]["original"] == Route("original", "original", 1.0, (Hop("away", "original-host:0"),), "original")


def test_a_routes_cost_adds_up_its_legs_by_provider() -> None:
    assert ROUTES["tiny"]["c1"].cost(reports(SECONDS)).seconds == pytest.approx({"home": 0.003, "away": 0.005})


def test_a_gated_route_costs_its_share_of_the_original_too_and_has_the_legs_of_the_plain_one() -> None:
    gated = PLAN.paths[1].model_copy(
        update={"path": f"{PLAN.paths[1].path} | rerun=0.25", "id": "c1-0.25", "links": "c1", "threshold": 0.8}
    )
    plan = PLAN.model_copy(update={"paths": (*PLAN.paths, gated)})
    route, plain = make_routes(plan, BLOCKS)["tiny"]["c1-0.25"], ROUTES["tiny"]["c1"]
    assert (route.hops, route.links, route.threshold, route.rerun) == (plain.hops, "c1", 0.8, 0.25)
    again = ROUTES["tiny"]["original"].cost(reports(SECONDS)).seconds["home"]
    wanted = dict(plain.cost(reports(SECONDS)).seconds)
    assert route.cost(reports(SECONDS)).seconds == pytest.approx(wanted | {"home": wanted["home"] + 0.25 * again})
    assert route.is_hosted(reports(SECONDS))
    assert not route.is_hosted(without("home", "o1:0"))


@pytest.mark.parametrize(("provider", "key"), [("home", "c1:0"), ("away", "c1:1"), ("home", "c1:2")])
def test_a_route_is_up_when_every_leg_is(provider: str, key: str) -> None:
    route = ROUTES["tiny"]["c1"]
    assert route.is_hosted(reports(SECONDS))
    assert not route.is_hosted(without(provider, key))
    assert not route.is_hosted({name: r for name, r in reports(SECONDS).items() if name != provider})


def test_the_largest_message_of_a_route_is_what_a_leg_takes_or_hands_on_and_unknown_where_it_is_not_up() -> None:
    found = reports(SECONDS)
    route = ROUTES["tiny"]["c1"]
    legs = {"c1:0": LegReport(0.002, 32, 784, 6272), "c1:1": LegReport(0.005, 32, 6272, 2048), "c1:2": LegReport(0.001, 32, 2048, 40)}
    up = {name: replace(report, legs={key: legs.get(key, leg) for key, leg in report.legs.items()}) for name, report in found.items()}
    assert route.largest_message(up) == 6272
    assert ROUTES["tiny"]["original"].largest_message(up) == 0
    assert route.largest_message(without("away", "c1:1")) == math.inf


def test_rates_solve_the_programme_with_the_times_of_the_spot() -> None:
    # The cross alone: the host lends half, so 100 images a second; they leave 0.7 of the home server to the original.
    rates = solve_rates(TINY, PLAN, reports(SECONDS), ["c1"])
    assert rates == pytest.approx({"original": 70.0, "c1": 100.0})
    twice_as_slow = SECONDS | {"away": SECONDS["away"] | {"c1:1": 0.010}}
    rates = solve_rates(TINY, PLAN, reports(twice_as_slow), ["c1"])
    assert rates == pytest.approx({"original": 85.0, "c1": 50.0})


def test_kappa_and_the_loss_limit_come_from_the_plan() -> None:
    generous = solve_rates(TINY, make_plan(kappa=1.0), reports(SECONDS), ["c1"])
    assert generous == pytest.approx({"original": 40.0, "c1": 200.0})
    # At most a quarter of the images may lose two points.
    strict = solve_rates(TINY, make_plan(loss_points=0.5), reports(SECONDS), ["c1"])
    assert strict["c1"] / sum(strict.values()) == pytest.approx(0.25)


def test_all_paths_together_keep_every_limit_and_beat_each_alone() -> None:
    every = solve_rates(TINY, PLAN, reports(SECONDS), None)
    costs = {route.id: route.cost(reports(SECONDS)) for route in TINY}
    assert sum(rate * costs[r].at("home") for r, rate in every.items()) <= 1 + 1e-6
    assert sum(rate * costs[r].at("away") for r, rate in every.items()) <= 0.5 + 1e-6
    assert sum(rate * (0.9 - ROUTES["tiny"][r].accuracy) for r, rate in every.items()) <= 0.023 * sum(every.values()) + 1e-6
    for only in ("c1", "s1", "r1"):
        assert sum(every.values()) >= sum(solve_rates(TINY, PLAN, reports(SECONDS), [only]).values()) - 1e-6


def test_an_operator_can_keep_to_the_original() -> None:
    rates = solve_rates(TINY, PLAN, reports(SECONDS), [])
    assert rates == pytest.approx({"original": 100.0})
    # Nor can a request ask for a path that is left out.
    with pytest.raises(RequestError, match="path 'c1' is not one that may be used; there are: original"):
        RatePolicy(rates).choose(1, 0.0, pinned="c1")


def test_without_the_host_its_paths_get_nothing() -> None:
    home_alone = {"home": reports(SECONDS)["home"]}
    rates = solve_rates(TINY, PLAN, home_alone, None)
    assert (rates["c1"], rates["r1"]) == (0.0, 0.0)
    assert rates["s1"] > 0
    assert rates["original"] > 0


@pytest.mark.parametrize(
    "present", [{}, {"away": reports(SECONDS)["away"]}, without("home", "o1:0")], ids=["nobody", "the host", "no original"]
)
def test_without_the_original_nothing_gets_a_rate(present: dict[str, ProviderReport]) -> None:
    assert solve_rates(TINY, PLAN, present, None) == dict.fromkeys(["original", "c1", "s1", "r1"], 0.0)


def test_a_leg_without_a_time_is_an_error_that_says_so() -> None:
    with pytest.raises(PlanError, match="is not positive; measure the profile again"):
        solve_rates(TINY, PLAN, reports(SECONDS | {"home": SECONDS["home"] | {"s1:0": 0.0}}), None)


def test_the_operators_choice_must_name_paths_of_the_plan() -> None:
    check_use(None, PLAN)
    check_use([], PLAN)
    check_use(["original", "c1"], PLAN)
    with pytest.raises(ConfigError, match=r"'use' names \['zz'\], which the plan does not hold; there are: c1, o1, original, r1, s1"):
        check_use(["c1", "zz"], PLAN)
