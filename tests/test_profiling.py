"""Profiles: block times add up, every link has one, and what a sample on a path costs each server and edge (DESIGN 2.3)."""

import time
from pathlib import Path

import pytest
import torch

from code_ray.blocks import ExecutionMode
from code_ray.errors import PlanError
from code_ray.path import InferencePath, Segment, original_path, parse_path, path_from_vector
from code_ray.profiling import (
    Execution,
    Profile,
    best_execution,
    candidate_modes,
    fastest_size,
    leg_out_shape,
    measure_profile,
    median_seconds,
    spec_key,
    time_modules,
)
from code_ray.runner import slot_spec, walk
from code_ray.service import Service

PLACEMENT = {"tiny": "a", "host": "b", "second": "c"}
PATHS = {
    "original": original_path("tiny", 6),
    "cross": path_from_vector((1, 2, 4, 5), "tiny", 6, "host", 6),
    "raw cross": path_from_vector((0, 2, 4, 5), "tiny", 6, "host", 6),
    "reduced cross": path_from_vector((1, 2, 4, 5), "tiny", 6, "host", 6, rank=3),
    "skip": path_from_vector((1, 4), "tiny", 6),
    "raw skip": path_from_vector((0, 4), "tiny", 6),
    "exit": path_from_vector((3,), "tiny", 6),
    "two hosts": parse_path("tiny[0:1] > host[2:4] > second[1:3] > tiny[5:6]", 6),
}


@pytest.fixture(scope="module")
def profile(tiny_services: dict[str, Service]) -> Profile:
    """The small services and all of ``PATHS``, measured at one batch size."""
    return measure_profile(PATHS.values(), tiny_services, PLACEMENT, batch_sizes=(8,))


def width(profile: Profile, sender: str) -> int:
    """Bytes of a value in the number format in which ``sender`` computes."""
    return {"float32": 4, "bfloat16": 2}[profile.mode_of(sender).dtype]


def sizes(services: dict[str, Service], name: str, position: int) -> int:
    """Values per sample at a boundary."""
    return int(torch.Size(services[name].boundaries[position].shape).numel())


def link_seconds(profile: Profile, name: str, services: dict[str, Service]) -> list[float]:
    """Measured seconds of each link of one of ``PATHS``, looked up where the walk places it."""
    path = PATHS[name]
    slots = [(leg.provider, step) for leg in walk(path, PLACEMENT) for step in leg.steps if not isinstance(step, Segment)]
    return [profile.link_seconds[provider][spec_key(slot_spec(slot, path, services))] for provider, slot in slots]


def test_block_seconds_add_up_to_the_whole_service(profile: Profile, tiny_services: dict[str, Service]) -> None:
    for name, service in tiny_services.items():
        assert len(profile.block_seconds[name]) == service.num_blocks
        assert all(seconds > 0 for seconds in profile.block_seconds[name])
        assert profile.original_seconds(name) == pytest.approx(profile.executions[name].seconds)


@pytest.mark.parametrize("name", [name for name in PATHS if name != "original"])
def test_every_link_of_every_path_has_a_time(name: str, profile: Profile, tiny_services: dict[str, Service]) -> None:
    times = link_seconds(profile, name, tiny_services)
    assert len(times) == len(PATHS[name].link_slots)
    assert all(0 < seconds < 1 for seconds in times)


def test_a_link_that_two_paths_share_is_measured_once(profile: Profile) -> None:
    # Exit links of "cross", "raw cross" are the same; so is nothing else at the host but the entry links and the reduced pair.
    assert len(profile.link_seconds["b"]) == 6
    assert len(profile.link_seconds["a"]) == 3
    assert len(profile.link_seconds["c"]) == 2


def test_progress_names_every_service_and_the_links(tiny_services: dict[str, Service]) -> None:
    lines: list[str] = []
    only = {"tiny": tiny_services["tiny"]}
    measure_profile([PATHS["skip"]], only, PLACEMENT, progress=lines.append, batch_sizes=(4,))
    assert lines[0].startswith("tiny: ")
    assert "at batch 4" in lines[0]
    assert lines[-1] == "1 different links measured"


def test_the_original_costs_its_blocks_and_no_transfer(profile: Profile, tiny_services: dict[str, Service]) -> None:
    cost = profile.cost(PATHS["original"], tiny_services)
    assert cost.seconds == {"a": pytest.approx(profile.original_seconds("tiny"))}
    assert not cost.payload_bytes


def test_a_skip_costs_what_is_left_and_its_link(profile: Profile, tiny_services: dict[str, Service]) -> None:
    blocks = profile.block_seconds["tiny"]
    cost = profile.cost(PATHS["skip"], tiny_services)
    assert cost.seconds == {"a": pytest.approx(blocks[0] + blocks[4] + blocks[5] + sum(link_seconds(profile, "skip", tiny_services)))}
    assert not cost.payload_bytes


def test_a_cross_costs_blocks_links_and_packing_at_both_ends(profile: Profile, tiny_services: dict[str, Service]) -> None:
    cost = profile.cost(PATHS["cross"], tiny_services)
    there, back = width(profile, "a") * sizes(tiny_services, "tiny", 1), width(profile, "b") * sizes(tiny_services, "tiny", 5)
    packing = (there + back) * profile.pack_seconds_per_byte
    local, host = profile.block_seconds["tiny"], profile.block_seconds["host"]
    assert cost.payload_bytes == {("a", "b"): there, ("b", "a"): back}
    assert packing > 0
    assert cost.seconds == {
        "a": pytest.approx(local[0] + local[5] + packing),
        "b": pytest.approx(sum(host[1:4]) + sum(link_seconds(profile, "cross", tiny_services)) + packing),
    }


def test_raw_images_cross_as_a_byte_a_value(profile: Profile, tiny_services: dict[str, Service]) -> None:
    cost = profile.cost(PATHS["raw cross"], tiny_services)
    there, back = 28 * 28, width(profile, "b") * sizes(tiny_services, "tiny", 5)
    assert cost.payload_bytes == {("a", "b"): there, ("b", "a"): back}
    assert cost.at("a") == pytest.approx(profile.block_seconds["tiny"][5] + (there + back) * profile.pack_seconds_per_byte)


def test_a_path_over_two_hosts_has_three_edges(profile: Profile, tiny_services: dict[str, Service]) -> None:
    cost = profile.cost(PATHS["two hosts"], tiny_services)
    # A hop carries what its sender's last block made: links wait at the host they enter.
    assert cost.payload_bytes == {
        ("a", "b"): width(profile, "a") * sizes(tiny_services, "tiny", 1),
        ("b", "c"): width(profile, "b") * sizes(tiny_services, "host", 4),
        ("c", "a"): width(profile, "c") * sizes(tiny_services, "tiny", 5),
    }
    first, last, back = cost.payload_bytes.values()
    assert cost.at("c") == pytest.approx(
        sum(profile.block_seconds["second"][1:3])
        + sum(link_seconds(profile, "two hosts", tiny_services)[1:])
        + (last + back) * profile.pack_seconds_per_byte
    )
    assert first > 0


def test_a_hop_carries_what_the_legs_modules_hand_on(tiny_services: dict[str, Service]) -> None:
    shapes = [leg_out_shape(leg, PATHS["cross"], tiny_services) for leg in walk(PATHS["cross"], PLACEMENT)]
    assert shapes == [tiny_services["tiny"].boundaries[position].shape for position in (1, 5, 6)]


def test_nothing_is_packed_within_one_provider(tiny_services: dict[str, Service]) -> None:
    together = dict.fromkeys(tiny_services, "a")
    measured = measure_profile([PATHS["cross"]], tiny_services, together, batch_sizes=(4,))
    cost = measured.cost(PATHS["cross"], tiny_services)
    assert not cost.payload_bytes
    expected = [measured.block_seconds["tiny"][0], measured.block_seconds["tiny"][5], *measured.block_seconds["host"][1:4]]
    assert cost.seconds == {"a": pytest.approx(sum(expected) + sum(measured.link_seconds["a"].values()))}


@pytest.mark.parametrize(
    "path",
    [
        path_from_vector((2, 3, 3, 4), "tiny", 6, "host", 6),
        path_from_vector((1, 2, 4, 5), "tiny", 6, "host", 6, rank=4),
        path_from_vector((2, 4), "tiny", 6),
    ],
    ids=str,
)
def test_a_path_with_a_link_that_was_not_measured_has_no_cost(
    path: InferencePath, profile: Profile, tiny_services: dict[str, Service]
) -> None:
    with pytest.raises(PlanError, match=r"was not measured at '[ab]'; profile again with this path in the space"):
        profile.cost(path, tiny_services)


def test_a_profile_comes_back_from_json_with_the_same_costs(profile: Profile, tiny_services: dict[str, Service], tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(profile.model_dump_json())
    loaded = Profile.model_validate_json((tmp_path / "profile.json").read_text())
    assert loaded == profile
    assert [loaded.cost(path, tiny_services) for path in PATHS.values()] == [profile.cost(path, tiny_services) for path in PATHS.values()]


def test_a_providers_mode_is_that_of_its_first_service() -> None:
    modes = [ExecutionMode(channels_last=True), ExecutionMode(), ExecutionMode("bfloat16")]
    executions = {name: Execution(mode=mode, batch_size=1, seconds=1) for name, mode in zip(("x", "y", "z"), modes, strict=True)}
    placement = {"x": "a", "y": "b", "z": "b"}
    profile = Profile(executions=executions, block_seconds={}, link_seconds={}, pack_seconds_per_byte=0, placement=placement)
    assert [profile.mode_of(provider) for provider in ("a", "b")] == modes[:2]


def test_the_execution_chosen_is_one_of_those_offered(tiny_service: Service) -> None:
    mode = ExecutionMode(channels_last=True)
    chosen = best_execution(tiny_service, batch_sizes=(2, 5), modes=[mode], repeats=1)
    assert chosen.mode == mode
    assert chosen.batch_size in (2, 5)
    assert chosen.seconds > 0


def test_bfloat16_is_tried_only_where_the_processor_computes_in_it() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "flags" not in cpuinfo.read_text():
        pytest.skip("this machine does not list its processor's flags in /proc/cpuinfo as x86 on Linux does")
    flags = set(cpuinfo.read_text().split())
    assert any(mode.dtype == "bfloat16" for mode in candidate_modes()) == bool(flags & {"avx512_bf16", "amx_bf16"})
    assert ExecutionMode() in candidate_modes()


def test_warm_up_calls_do_not_count() -> None:
    calls: list[float] = []

    def slow_at_first() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.2 if len(calls) <= 2 else 0.01)

    assert 0.01 <= median_seconds(slow_at_first, repeats=3) < 0.1
    assert len(calls) == 5


def test_times_are_per_sample(tiny_service: Service) -> None:
    started = time.perf_counter()
    per_sample = time_modules(list(tiny_service.blocks), tiny_service.boundaries[0], ExecutionMode(), batch_size=16, repeats=5)
    elapsed = time.perf_counter() - started
    # Two warm-ups and five runs of 16 samples; a median stands for at least the three slower runs.
    assert 3 * 16 * per_sample <= elapsed


@pytest.mark.parametrize(
    ("seconds_a_batch", "tried", "best"),
    [
        ({16: 0.016, 32: 0.024, 64: 0.032}, [16, 32, 64], 64),
        ({16: 0.016, 32: 0.024, 64: 0.064}, [16, 32, 64], 32),
        ({16: 0.16, 32: 0.31, 64: 0.5}, [16, 32], 32),
        ({16: 0.21, 32: 0.3, 64: 0.5}, [16], 16),
    ],
    ids=["the largest", "one that fits", "the first long one counts", "long from the start"],
)
def test_no_batch_is_tried_beyond_one_that_takes_long(seconds_a_batch: dict[int, float], tried: list[int], best: int) -> None:
    asked: list[int] = []

    def seconds_at(size: int) -> float:
        asked.append(size)
        return seconds_a_batch[size] / size

    assert fastest_size(seconds_at, (64, 16, 32)) == (seconds_a_batch[best] / best, best)
    assert asked == tried
