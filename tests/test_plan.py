"""Plans: links in the stores of their providers, hashes that have to fit, and what a damaged file says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_service
from safetensors.torch import load_file, save_file

from code_ray.data import DataSet
from code_ray.errors import ArtifactError, IntegrityError, PlanError
from code_ray.links import Link
from code_ray.path import InferencePath, original_path, parse_path, path_from_vector
from code_ray.plan import Plan, PlannedPath, load_leg_links, path_id, read_plan, save_links
from code_ray.runner import make_links, walk
from code_ray.service import Service

PLACEMENT = {"tiny": "a", "host": "b", "second": "c"}
CROSS = path_from_vector((1, 2, 4, 5), "tiny", 6, "host", 6)
TWO_HOSTS = parse_path("tiny[0:1] > host[2:4] > second[1:3] > tiny[5:6]", 6)


def seeded_links(path: InferencePath, services: dict[str, Service], seed: int = 0) -> dict[str, Link]:
    torch.manual_seed(seed)
    return make_links(path, services)


def store(path: InferencePath, services: dict[str, Service], stores_dir: Path, seed: int = 0) -> PlannedPath:
    """Random links of ``path`` in their stores, as an entry of a plan."""
    identifier = path_id(path, services)
    hashes = save_links(path, identifier, seeded_links(path, services, seed), PLACEMENT, stores_dir)
    return PlannedPath(path=str(path), id=identifier, accuracy=0.5, link_hashes=hashes)


def load(path: InferencePath, planned: PlannedPath, services: dict[str, Service], stores_dir: Path) -> dict[str, Link]:
    """All links of ``path``, each leg's from its own provider's store."""
    loaded: dict[str, Link] = {}
    for leg in walk(path, PLACEMENT):
        loaded |= load_leg_links(leg, path, planned, services, stores_dir / leg.provider)
    return loaded


@pytest.fixture
def plan(tiny_services: dict[str, Service]) -> Plan:
    original = original_path("tiny", 6)
    paths = [
        PlannedPath(path=str(path), id=path_id(path, tiny_services), accuracy=accuracy, link_hashes={})
        for path, accuracy in ((original, 0.9), (CROSS, 0.88))
    ]
    used = ("tiny", "host")
    return Plan(
        local="tiny",
        num_blocks=6,
        services={name: tiny_services[name].content_hash for name in used},
        placement={name: PLACEMENT[name] for name in used},
        kappa={"host": 0.5},
        loss_points=2.3,
        paths=tuple(paths),
    )


@pytest.mark.parametrize(
    "path", [CROSS, TWO_HOSTS, path_from_vector((1, 4), "tiny", 6, rank=2), path_from_vector((3,), "tiny", 6)], ids=str
)
def test_links_come_back_from_the_stores_bit_for_bit(path: InferencePath, tiny_services: dict[str, Service], tmp_path: Path) -> None:
    planned = store(path, tiny_services, tmp_path)
    expected, loaded = seeded_links(path, tiny_services), load(path, planned, tiny_services, tmp_path)
    assert set(loaded) == set(expected) == set(planned.link_hashes)
    for key, link in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(link.parameters(), loaded[key].parameters(), strict=True))


def test_each_link_lies_in_its_own_providers_store_only(tiny_services: dict[str, Service], tmp_path: Path) -> None:
    store(TWO_HOSTS, tiny_services, tmp_path)
    found = {file.parent.name: {key.split(".")[0] for key in load_file(file)} for file in tmp_path.rglob("*.safetensors")}
    assert found == {"b": {"link0"}, "c": {"link1", "link2"}}
    assert not (tmp_path / "a").exists()


def test_a_leg_without_links_needs_no_store(tiny_services: dict[str, Service], tmp_path: Path) -> None:
    planned = store(CROSS, tiny_services, tmp_path)
    assert load_leg_links(walk(CROSS, PLACEMENT)[0], CROSS, planned, tiny_services, tmp_path / "nowhere") == {}


def test_two_paths_share_a_store_without_mixing(tiny_services: dict[str, Service], tmp_path: Path) -> None:
    reduced = path_from_vector((1, 2, 4, 5), "tiny", 6, "host", 6, rank=2)
    planned = [store(path, tiny_services, tmp_path, seed) for seed, path in enumerate((CROSS, reduced))]
    assert len(list((tmp_path / "b").iterdir())) == 2
    assert load(CROSS, planned[0], tiny_services, tmp_path)["link0"].spec.rank is None
    assert load(reduced, planned[1], tiny_services, tmp_path)["link0"].spec.rank == 2


def test_a_store_that_cannot_be_written_is_named(tiny_services: dict[str, Service], tmp_path: Path) -> None:
    (tmp_path / "b").write_text("a file where the store's folder should be")
    with pytest.raises(ArtifactError, match=f"{tmp_path / 'b'}: links of path .* could not be written"):
        store(CROSS, tiny_services, tmp_path)


def stored_file(stores_dir: Path) -> Path:
    (file,) = stores_dir.rglob("*.safetensors")
    return file


def drop_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    del tensors["link1.body.0.bias"]
    save_file(tensors, file)


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-5]),
    "other content": lambda file: file.write_text("links"),
    "a tensor less": drop_a_tensor,
    "other shapes": lambda file: save_file({key: torch.zeros(2) for key in load_file(file)}, file),
}


@pytest.mark.parametrize("damage", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_links_that_cannot_be_read_are_named_with_their_file(
    damage: Callable[[Path], object], tiny_services: dict[str, Service], tmp_path: Path
) -> None:
    planned = store(CROSS, tiny_services, tmp_path)
    damage(stored_file(tmp_path))
    with pytest.raises(PlanError, match=rf"(?s)links of path {planned.id} cannot be loaded from .*copy the provider's store again"):
        load(CROSS, planned, tiny_services, tmp_path)


def test_links_other_than_the_plans_are_refused(tiny_services: dict[str, Service], tmp_path: Path) -> None:
    planned = store(CROSS, tiny_services, tmp_path)
    store(CROSS, tiny_services, tmp_path, seed=1)
    with pytest.raises(IntegrityError, match="link0 is not the link the plan names"):
        load(CROSS, planned, tiny_services, tmp_path)


def test_a_flipped_bit_in_a_link_is_found(tiny_services: dict[str, Service], tmp_path: Path) -> None:
    planned = store(CROSS, tiny_services, tmp_path)
    tensors = load_file(stored_file(tmp_path))
    tensors["link1.body.0.weight"].view(torch.int32).view(-1)[3] ^= 1
    save_file(tensors, stored_file(tmp_path))
    with pytest.raises(IntegrityError, match="link1 is not the link the plan names"):
        load(CROSS, planned, tiny_services, tmp_path)


def test_a_link_the_plan_has_no_hash_for_is_refused(tiny_services: dict[str, Service], tmp_path: Path) -> None:
    planned = store(CROSS, tiny_services, tmp_path).model_copy(update={"link_hashes": {}})
    with pytest.raises(IntegrityError, match="link0 is not the link the plan names"):
        load(CROSS, planned, tiny_services, tmp_path)


def test_a_plan_comes_back_from_its_file(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    loaded = read_plan(tmp_path / "plan.json")
    assert loaded == plan
    assert [loaded.inference_path(planned) for planned in loaded.paths] == [original_path("tiny", 6), CROSS]


def test_budgets_are_all_of_the_local_server_and_kappa_of_the_hosts(plan: Plan) -> None:
    assert plan.budgets == {"a": 1.0, "b": 0.5}


def test_a_host_on_the_local_server_may_use_all_of_it(plan: Plan) -> None:
    assert plan.model_copy(update={"placement": {"tiny": "a", "host": "a"}}).budgets == {"a": 1.0}


def test_a_plan_that_is_not_there_is_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"plan.json cannot be read .*give the directory that a finished search wrote"):
        read_plan(tmp_path / "plan.json")


BAD_PLANS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing field": (lambda plan: plan.pop("kappa"), "at kappa: Field required"),
    "unknown field": (lambda plan: plan.update(rates=[1, 2]), "at rates: Extra inputs"),
    "newer schema": (lambda plan: plan.update(schema_version=2), "at schema_version: Input should be 1"),
    "negative loss": (lambda plan: plan.update(loss_points=-1), "at loss_points: Input should be greater"),
    "percent": (lambda plan: plan["paths"][1].update(accuracy=88), r"at paths.1.accuracy: Input should be less"),
}


@pytest.mark.parametrize(("change", "message"), BAD_PLANS.values(), ids=BAD_PLANS.keys())
def test_a_malformed_plan_names_the_field(change: Callable[[dict[str, Any]], object], message: str, plan: Plan, tmp_path: Path) -> None:
    content = json.loads(plan.model_dump_json())
    change(content)
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(PlanError, match=f"plan.json is malformed {message}.*; run the search again"):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("content", [b"", b'{"local": ', b"[]", b"\xff\xfe{}"], ids=["empty", "cut", "list", "not utf-8"])
def test_a_plan_that_is_no_json_object_is_malformed(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(PlanError, match=r"plan.json is malformed"):
        read_plan(tmp_path / "plan.json")


def test_the_services_a_plan_was_made_for_pass(plan: Plan, tiny_services: dict[str, Service]) -> None:
    plan.check_services(tiny_services)


def test_a_service_that_is_not_here_is_named_with_those_that_are(plan: Plan, tiny_services: dict[str, Service]) -> None:
    with pytest.raises(PlanError, match="the plan needs service 'host', which is not here; there are: tiny"):
        plan.check_services({"tiny": tiny_services["tiny"]})


def test_a_service_of_another_content_is_refused(plan: Plan, tiny_services: dict[str, Service], digits: DataSet) -> None:
    other = make_tiny_service("host", digits, seed=9, widths=(6, 8, 8, 16, 8))
    with pytest.raises(IntegrityError, match=rf"service 'host' has content {other.content_hash[:12]}, the plan was made for"):
        plan.check_services({**tiny_services, "host": other})


def test_a_paths_id_is_the_same_every_time(tiny_services: dict[str, Service], digits: DataSet) -> None:
    again = {**tiny_services, "tiny": make_tiny_service("tiny", digits, seed=0)}
    assert path_id(CROSS, again) == path_id(CROSS, tiny_services)
    assert len(path_id(CROSS, tiny_services)) == 16


def test_a_paths_id_changes_with_content_segments_and_rank(tiny_services: dict[str, Service], digits: DataSet) -> None:
    other = make_tiny_service("other", digits, seed=9)
    ids = {
        path_id(CROSS, tiny_services),
        path_id(CROSS, {**tiny_services, "tiny": other}),
        path_id(CROSS, {**tiny_services, "host": other}),
        path_id(path_from_vector((1, 2, 4, 4), "tiny", 6, "host", 6), tiny_services),
        path_id(path_from_vector((1, 2, 4, 5), "tiny", 6, "host", 6, rank=2), tiny_services),
        path_id(path_from_vector((1, 2, 4, 5), "tiny", 6, "host", 6, rank=3), tiny_services),
    }
    assert len(ids) == 6
    assert path_id(CROSS, {**tiny_services, "second": other}) == path_id(CROSS, tiny_services)


def test_legs_of_a_path_have_keys_of_their_own_and_others_with_other_links() -> None:
    hashes = [{}, {"link0": "a", "link1": "b"}, {"link0": "a", "link1": "c"}]
    planned = [PlannedPath(path="tiny[0:6]", id="0123", accuracy=0.9, link_hashes=links) for links in hashes]
    keys = [path.leg_key(index) for path in planned for index in range(2)]
    assert keys[:2] == ["0123:0", "0123:1"]
    assert len(set(keys)) == 6
    assert planned[1].leg_key(0) == planned[1].model_copy(update={"accuracy": 0.8}).leg_key(0)
