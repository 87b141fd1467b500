"""Training with hosts as parties of their own: the same links as in one process, and little crosses (DESIGN 3.3, 3.4)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trained import CROSS, PATHS, PLACEMENT, SHORT, make_service, make_small_services, tiny_trainer

from code_ray.blocks import ExecutionMode
from code_ray.data import DataSet
from code_ray.errors import IntegrityError, LinkError
from code_ray.own_party import OwnParty
from code_ray.party import Invitation, Part, Party
from code_ray.path import InferencePath, parse_path, path_from_vector
from code_ray.service import Service
from code_ray.training import LinkTraining, Trainer

TWICE = parse_path("tiny[0:1] > host[1:2] > tiny[3:4] > host[3:4] > tiny[5:6]", 6)
RAW_PROBE = path_from_vector((0, 2, 4), "tiny", 6, "host", 6)
INTO_INPUT = path_from_vector((1, 1, 4, 5), "tiny", 6, "host", 6)
ALL_PATHS = pytest.mark.parametrize("path", [*PATHS, TWICE, RAW_PROBE, INTO_INPUT], ids=str)


@pytest.fixture(scope="module")
def small_services(digits: DataSet) -> dict[str, Service]:
    return make_small_services(digits)


@dataclass
class Watched:
    """A party that writes down what it is told and given, and what it gives back."""

    party: OwnParty
    invitations: list[Invitation] = field(default_factory=list)
    calls: list[tuple[str, tuple[Any, ...], Any]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.party, name)

    def join(self, invitation: Invitation) -> Part:
        self.invitations.append(invitation)
        part, calls = self.party.join(invitation), self.calls

        class WatchedPart:
            def __getattr__(self, name: str) -> Callable[..., Any]:
                def call(*arguments: Any) -> Any:
                    result = getattr(part, name)(*arguments)
                    calls.append((name, arguments, result))
                    return result

                return call

        return cast(Part, WatchedPart())

    def arrays(self, number: int) -> list[np.ndarray[Any, Any]]:
        """Arrays among arguments (1) or results (2) of its calls, row numbers left out."""
        found = [value for call in self.calls for value in (call[1] if number == 1 else (call[2],))]
        return [value for value in found if isinstance(value, np.ndarray) and value.ndim > 1]


def host_party(services: dict[str, Service], name: str, mode: ExecutionMode | None = None) -> Watched:
    return Watched(OwnParty({name: services[name]}, {name: PLACEMENT[name]}, lambda _: mode or ExecutionMode()))


def split_trainer(
    services: dict[str, Service], digits: DataSet, mode: ExecutionMode | None = None, **changes: Any
) -> tuple[Trainer, dict[str, Watched]]:
    """``tiny_trainer``, which has the service "tiny" alone, and the hosts' parties by provider."""
    watched = {PLACEMENT[name]: host_party(services, name, mode) for name in ("host", "second")}
    parties: dict[str, Party] = {**watched}
    return tiny_trainer({"tiny": services["tiny"]}, digits, mode, parties=parties, **changes), watched


def trained_and_saved(trainer: Trainer, path: InferencePath, folder: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Every link's tensors as their parties wrote them, and accuracies on the way."""
    training = LinkTraining(trainer, path, seed=3)
    training.fit()
    accuracies = [training.screen_accuracy()]
    for rung in (5, SHORT.total_steps):
        training.advance(rung)
        accuracies.append(training.accuracy("validation"))
    hashes = training.save("links", str(folder))
    assert list(hashes) == [slot.key for slot in path.link_slots]
    return {key: tensor for file in folder.rglob("*.safetensors") for key, tensor in load_file(file).items()}, accuracies


def largest_relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert set(a) == set(b)
    assert a
    return max(float((a[key] - b[key]).abs().max() / a[key].abs().max().clamp_min(1e-12)) for key in a)


@pytest.mark.parametrize("fit_entry", [True, False], ids=["entry links fitted", "entry links at random"])
@ALL_PATHS
def test_links_and_accuracies_are_those_of_a_training_in_one_process(
    path: InferencePath, fit_entry: bool, small_services: dict[str, Service], digits: DataSet, tmp_path: Path
) -> None:
    trainer, _ = split_trainer(small_services, digits, fit_entry=fit_entry)
    split, accuracies = trained_and_saved(trainer, path, tmp_path / "split")
    shared, expected = trained_and_saved(tiny_trainer(small_services, digits, fit_entry=fit_entry), path, tmp_path / "shared")
    assert largest_relative_difference(shared, split) <= 1e-4
    assert accuracies == expected
    stores = [{str(file.relative_to(tmp_path / side)) for file in (tmp_path / side).rglob("*.safetensors")} for side in ("split", "shared")]
    assert stores[0] == stores[1]


def test_links_are_the_same_where_blocks_run_in_bfloat16(small_services: dict[str, Service], digits: DataSet, tmp_path: Path) -> None:
    mode = ExecutionMode("bfloat16", channels_last=True)
    trainer, _ = split_trainer(small_services, digits, mode, fit_entry=True)
    split, accuracies = trained_and_saved(trainer, CROSS, tmp_path / "split")
    shared, expected = trained_and_saved(tiny_trainer(small_services, digits, mode), CROSS, tmp_path / "shared")
    assert largest_relative_difference(shared, split) <= 1e-4
    assert accuracies == expected


@pytest.mark.parametrize("path", [CROSS, TWICE], ids=str)
def test_activations_too_many_to_keep_are_sent_batch_by_batch_and_give_the_same_links(
    path: InferencePath, small_services: dict[str, Service], digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, _ = trained_and_saved(split_trainer(small_services, digits, fit_entry=True)[0], path, tmp_path / "kept")
    for module in ("link_inputs", "relay"):
        monkeypatch.setattr(f"code_ray.{module}.too_many", lambda size, shape: True)
    trainer, watched = split_trainer(small_services, digits, fit_entry=True)
    sent, _ = trained_and_saved(trainer, path, tmp_path / "sent")
    assert "receive" not in {name for name, *_ in watched["b"].calls}
    # Other batches sum in another order.
    assert largest_relative_difference(kept, sent) <= 1e-2


def test_two_trainings_in_turn_with_one_host_do_not_disturb_each_other(
    small_services: dict[str, Service], digits: DataSet, tmp_path: Path
) -> None:
    paths = [CROSS, PATHS[4], INTO_INPUT]
    alone = [trained_and_saved(split_trainer(small_services, digits)[0], path, tmp_path / f"alone{i}")[0] for i, path in enumerate(paths)]
    trainer, _ = split_trainer(small_services, digits)
    trainings = [LinkTraining(trainer, path, seed=3) for path in paths]
    for training in trainings:
        training.fit()
    for rung in (2, 5, SHORT.total_steps):
        for training in trainings:
            training.advance(rung)
            training.screen_accuracy()
    for i, training in enumerate(trainings):
        training.save("links", str(tmp_path / f"turn{i}"))
        found = {key: tensor for file in (tmp_path / f"turn{i}").rglob("*.safetensors") for key, tensor in load_file(file).items()}
        assert largest_relative_difference(alone[i], found) == 0


def test_the_trainer_has_neither_blocks_nor_links_of_a_host(small_services: dict[str, Service], digits: DataSet) -> None:
    trainer, watched = split_trainer(small_services, digits)
    training = LinkTraining(trainer, CROSS, seed=0)
    training.fit()
    assert set(trainer.services) == {"tiny"}
    assert training.links == {}
    assert not any(isinstance(result, torch.Tensor | torch.nn.Module) for _, _, result in watched["b"].calls)


def test_a_host_is_told_the_boundaries_at_which_a_path_leaves_and_comes_back_and_no_others(
    small_services: dict[str, Service], digits: DataSet
) -> None:
    trainer, watched = split_trainer(small_services, digits)
    LinkTraining(trainer, CROSS, seed=0)
    (invitation,) = watched["b"].invitations
    boundaries = small_services["tiny"].boundaries
    assert invitation.boundaries == {"tiny": {1: boundaries[1], 5: boundaries[5]}}
    assert Invitation.model_validate_json(invitation.model_dump_json()) == invitation


@pytest.mark.parametrize("fit_entry", [None, True], ids=["by default", "declared"])
def test_a_host_sees_calibration_images_only_where_that_is_declared(
    fit_entry: bool | None, small_services: dict[str, Service], digits: DataSet
) -> None:
    trainer, watched = split_trainer(small_services, digits, fit_entry=fit_entry)
    training = LinkTraining(trainer, CROSS, seed=0)
    training.fit()
    training.advance(SHORT.total_steps)
    training.accuracy("validation")
    images = [value for value in watched["b"].arrays(1) if value.dtype == np.uint8]
    assert [len(value) for value in images] == ([SHORT.fit_samples] if fit_entry else [])


def test_only_activations_and_gradients_at_leg_boundaries_cross_and_are_counted(
    small_services: dict[str, Service], digits: DataSet
) -> None:
    trainer, watched = split_trainer(small_services, digits)
    training = LinkTraining(trainer, CROSS, seed=0)
    training.fit()
    before = training.traffic.sent, training.traffic.received
    training.advance(SHORT.total_steps)
    boundaries = small_services["tiny"].boundaries
    lout, lin = (boundaries[position].shape for position in (1, 5))
    given, returned = watched["b"].arrays(1), watched["b"].arrays(2)
    assert {(value.dtype, value.shape[1:]) for value in given} == {(np.dtype(np.float32), lout), (np.dtype(np.float32), lin)}
    assert {(value.dtype, value.shape[1:]) for value in returned} == {(np.dtype(np.float32), lin)}
    # Activations of the training images went before, for the fit or to be kept; a step sends a gradient and gets what it is of.
    batch = 4 * SHORT.batch_size * int(torch.Size(lin).numel())
    kept = 4 * (SHORT.samples - SHORT.fit_samples) * int(torch.Size(lout).numel())
    assert training.traffic.sent - before[0] == SHORT.total_steps * batch + kept
    assert training.traffic.received - before[1] == SHORT.total_steps * batch


def test_what_a_host_has_received_is_not_sent_again_for_a_path_that_leaves_at_the_same_block(
    small_services: dict[str, Service], digits: DataSet
) -> None:
    trainer, watched = split_trainer(small_services, digits)
    for path in (CROSS, INTO_INPUT):
        watched["b"].calls.clear()
        training = LinkTraining(trainer, path, seed=0)
        training.advance(SHORT.total_steps)
        assert any(name == "receive" for name, *_ in watched["b"].calls) == (path == CROSS)


def test_a_changed_block_of_a_host_is_found_by_its_own_party(digits: DataSet) -> None:
    host = make_service("host", digits, 1, (6, 8, 8, 16, 8))
    party = OwnParty({"host": host}, {"host": "b"}, lambda _: ExecutionMode())
    party.verify(["host"])
    with torch.no_grad():
        next(host.blocks[2].parameters()).view(-1)[0] += 1e-3
    with pytest.raises(IntegrityError, match="block 3 of 'host' is not what its hash"):
        party.verify(["host"])


@pytest.mark.parametrize(
    "value",
    [np.zeros((4, 3, 3, 3), np.float32), np.zeros((4, 4, 14, 14), np.float64), np.zeros((4, 4, 14, 14), np.uint8)],
    ids=["another shape", "float64", "uint8"],
)
def test_a_party_takes_only_what_was_declared(value: Any, small_services: dict[str, Service], digits: DataSet) -> None:
    trainer, watched = split_trainer(small_services, digits)
    LinkTraining(trainer, CROSS, seed=0)
    part = watched["b"].party.join(watched["b"].invitations[0])
    part.turn_to(0, "origin")
    with pytest.raises(LinkError, match=r"came where float32 \(n, .*\) was declared"):
        part.receive(0, "train", value)


def test_a_random_host_is_made_where_the_host_is_and_sees_no_images_unless_declared(small_services: dict[str, Service]) -> None:
    party = OwnParty({"host": small_services["host"]}, {"host": "b"}, lambda _: ExecutionMode())
    party.make_random("host", 0, None)
    assert party.public("host-random").num_blocks == party.public("host").num_blocks == 6
    assert party.public("host-random").content_hash != party.public("host").content_hash == small_services["host"].content_hash
