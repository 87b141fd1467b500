"""Bad input to ``python -m search``: a named error, exit code 2, and nothing made or changed (DESIGN 3.6)."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from test_search import command, complaints, contents, search, write_config

from code_ray.artifact import RunDirectory
from code_ray.data import DataSet
from code_ray.zoo import ZOO
from search.__main__ import main
from search.config import read_config

LONELY: dict[str, Any] = {"local": "alexnet-digits", "data": "digits", "hosts": {}}


def run_cli(config: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code of ``python -m search``, and the one line that it wrote to stderr."""
    code = main([str(config), "--out", str(out)])
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return code, line


BAD_FILES = {
    "malformed YAML": ("local: [alexnet-digits", r"search.yaml is not YAML: .*line 1, column 8.*; mend that line"),
    "no settings": ("- alexnet-digits", r"search.yaml holds list, not settings by name"),
    "empty": ("", r"search.yaml holds NoneType, not settings by name"),
    "not text": (b"\xff\xfe\x00", r"search.yaml cannot be read"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_is_no_configuration_is_named(
    text: str | bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "search.yaml"
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, line = run_cli(config, tmp_path / "run", capsys)
    assert code == 2
    assert re.fullmatch(f"ConfigError: .*{message}.*", line), line
    assert not (tmp_path / "run").exists()


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = run_cli(tmp_path / "nowhere.yaml", tmp_path / "run", capsys)
    assert code == 2
    assert line.startswith(f"ConfigError: {tmp_path / 'nowhere.yaml'} cannot be read")


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "paths through more hosts than there are": (
        {"hosts": {"fashion-cnn": {}}, "hosts_per_path": 2},
        r"ConfigError: .*'hosts_per_path' is 2 and 'hosts' names 1; lower it or name more",
    ),
    "unknown key": ({"treshold": 3}, r"ConfigError: .*treshold: Extra inputs are not permitted \(given: 3\)"),
    "unknown key of a part": ({"recipe": {"epochs": 3}}, r"ConfigError: .*recipe.epochs: Extra inputs are not permitted"),
    "value of another type": ({"seed": "first"}, r"ConfigError: .*seed: Input should be a valid integer.*\(given: 'first'\)"),
    "share above all of a server": (
        {"hosts": {"fashion-cnn": {"kappa": 1.5}}},
        r"ConfigError: .*hosts.fashion-cnn.kappa: .*\(given: 1.5\)",
    ),
    "host equal to the local service": ({"hosts": {"alexnet-digits": {}}}, r"ConfigError: .*'alexnet-digits' cannot be its own host"),
    "provider of nobody": ({"providers": {"other": "sp1"}}, r"ConfigError: .*'providers' names \['other'\]"),
    "provider that leaves its folder": (
        {"providers": {"alexnet-digits": "../sp1"}},
        r"ConfigError: .*provider '../sp1' cannot name a folder",
    ),
    "bandwidth of a provider that is not there": (
        {"bandwidth_mbit_per_s": {"alexnet-digits": {"sp2": 50}}},
        r"ConfigError: .*'bandwidth_mbit_per_s' names \['sp2'\]; the providers are alexnet-digits",
    ),
    "bandwidth within a provider": (
        {"bandwidth_mbit_per_s": {"alexnet-digits": {"alexnet-digits": 50}}},
        r"ConfigError: .*'bandwidth_mbit_per_s' leads from provider 'alexnet-digits' to itself",
    ),
    "no bandwidth at all": (
        {"bandwidth_mbit_per_s": {"alexnet-digits": {"alexnet-digits": 0}}},
        r"ConfigError: .*bandwidth_mbit_per_s.alexnet-digits.alexnet-digits: .*greater than 0 \(given: 0\)",
    ),
    "original as a kind": ({"kinds": ["original"]}, r"ConfigError: .*'kinds' cannot hold 'original'"),
    "unknown service": ({"local": "alexnet"}, r"ServiceError: no service is called 'alexnet'; there are: .*alexnet-digits"),
    "unknown host": ({"hosts": {"resnet": {}}}, r"ServiceError: no service is called 'resnet'; there are: "),
    "unknown data set": ({"data": "mnist"}, r"DataError: no data set is called 'mnist'; there are: digits, fashion-mnist"),
    "vector outside the space": ({"vectors": [[2, 6]]}, r"PathError: vector \[2, 6\] is outside the space: it needs 0 <= lout < lin <= 5"),
    "vector too long": ({"vectors": [[1, 2, 3, 4, 5]]}, r"PathError: vector \[1, 2, 3, 4, 5\] is not 0 to 4 integers"),
    "vector without its host": ({"vectors": [[1, 1, 2, 5]]}, r"PathError: vector \[1, 1, 2, 5\] borrows blocks but no host is given"),
    "vector of the original": ({"vectors": [[]]}, r"PathError: vector \[\] in 'vectors' is not in the space"),
    "rungs that do not rise": ({"rungs": [50, 20]}, r"ConfigError: .*'rungs' \[50, 20\] must rise, between .* of 500 steps"),
    "one rung twice": ({"rungs": [20, 20]}, r"ConfigError: .*'rungs' \[20, 20\] must rise"),
    "rung before the first step": ({"rungs": [0, 20]}, r"ConfigError: .*'rungs' \[0, 20\] must rise"),
    "rung where training has ended": ({"rungs": [20, 500]}, r"ConfigError: .*'rungs' \[20, 500\] must rise"),
    "rung without a training": ({"rungs": [1], "recipe": {"steps": 0}}, r"ConfigError: .*'rungs' \[1\] must rise, .* of 0 steps"),
    "rungs that everything passes": (
        {"rungs": [20], "reduction": 1},
        r"ConfigError: .*reduction: .*greater than or equal to 2 \(given: 1\)",
    ),
    "unknown trust": ({"trust": "none"}, r"ConfigError: .*trust: Input should be 'split' or 'shared' \(given: 'none'\)"),
    "links into hosts that nothing would train": (
        {"hosts": {"fashion-cnn": {}}, "trust": "split"},
        r"ConfigError: .*links into hosts start at random .*'trust: split'.*, and with recipe.joint_steps 0 they stay so; set joint_steps",
    ),
    "paths from host to host where hosts tell no shapes": (
        {"hosts": {"fashion-cnn": {}, "alexnet-fashion": {}}, "trust": "split", "hosts_per_path": 2, "recipe": {"joint_steps": 1}},
        r"ConfigError: .*'hosts_per_path' is 2: what goes from host to host cannot be costed .*; set hosts_per_path 1, or trust: shared",
    ),
    "plan measured on nothing": ({"test_samples": 0}, r"ConfigError: .*test_samples: .*greater than or equal to 1 \(given: 0\)"),
    "more blocks at home than there are": ({"min_lout": 6}, r"ConfigError: min_lout 6 leaves no path of 'alexnet-digits'"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_settings_that_cannot_be_used_are_named_before_anything_is_written(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "search.yaml"
    config.write_text(yaml.safe_dump({**LONELY, **changes}))
    code, line = run_cli(config, tmp_path / "run", capsys)
    assert code == 2
    assert re.match(message, line), line
    assert not (tmp_path / "run").exists()


def test_data_with_other_labels_than_the_services_are_refused(fashion: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "search.yaml"
    config.write_text(yaml.safe_dump({**LONELY, "data": fashion.name}))
    code, line = run_cli(config, tmp_path / "run", capsys)
    assert code == 2
    assert line.startswith("ConfigError: data set 'fashion-mnist' and service 'alexnet-digits' have different labels")


def test_a_service_folder_with_other_weights_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(ZOO["alexnet-digits"](), folder)
    weights = load_file(folder / "weights.safetensors")
    weights["2.5.bias"][0] += 1
    save_file(weights, folder / "weights.safetensors")
    config = tmp_path / "search.yaml"
    config.write_text(yaml.safe_dump({**LONELY, "local": str(folder)}))
    code, line = run_cli(config, tmp_path / "run", capsys)
    assert code == 2
    assert re.match(r"IntegrityError: block 3 of 'alexnet-digits' is not what its hash \w{12} says", line), line
    assert not (tmp_path / "run").exists()


def test_service_folders_are_named_by_whole_paths_because_workers_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
    Path("search.yaml").write_text(yaml.safe_dump({"local": "mine", "data": "digits", "hosts": {"theirs": {}, "alexnet-fashion": {}}}))
    config = read_config(Path("search.yaml"))
    assert config.local == str(tmp_path / "mine")
    assert set(config.hosts) == {str(tmp_path / "theirs"), "alexnet-fashion"}
    assert config.placement[str(tmp_path / "theirs")] == "theirs"


def test_the_run_directory_of_another_configuration_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "search.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(LONELY))
    RunDirectory.create(out, read_config(config).model_copy(update={"seed": 1}).model_dump(mode="json"))
    before = contents(out)
    code, line = run_cli(config, out, capsys)
    assert code == 2
    assert line.startswith(f"ArtifactError: {out} was made by another configuration")
    assert contents(out) == before


def test_a_folder_of_other_things_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "search.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(LONELY))
    out.mkdir()
    (out / "thesis.tex").write_text("three years of work")
    code, line = run_cli(config, out, capsys)
    assert code == 2
    assert line == f"ArtifactError: {out} is not empty and not a run directory; choose another --out"
    assert contents(out) == {"thesis.tex": b"three years of work"}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"verdict": '])
def test_a_damaged_result_is_named_and_kept(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "search.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(LONELY))
    RunDirectory.create(out, read_config(config).model_dump(mode="json")).result_file.write_text(text)
    code, line = run_cli(config, out, capsys)
    assert code == 2
    assert re.match(r"ArtifactError: .*result.json is damaged .*; delete it and run the same command again", line), line
    assert (out / "result.json").read_text() == text


def test_the_command_line_shows_a_users_error_without_a_traceback(tmp_path: Path) -> None:
    config = tmp_path / "search.yaml"
    config.write_text(yaml.safe_dump({**LONELY, "local": "alexnet"}))
    done = subprocess.run(command(config, tmp_path / "run"), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"ServiceError: no service is called 'alexnet'; .*\n", done.stderr), done.stderr


def test_a_command_without_out_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["search.yaml"])
    assert "the following arguments are required: --out" in capsys.readouterr().err


def test_a_service_is_its_own_provider_unless_the_configuration_names_one(tmp_path: Path) -> None:
    config = tmp_path / "search.yaml"
    settings = {"local": "services/mine", "data": "digits", "hosts": {"/srv/theirs": {}, "efficientnet-lite0": {}}, "trust": "shared"}
    config.write_text(yaml.safe_dump({**settings, "providers": {"efficientnet-lite0": "sp2"}}))
    assert read_config(config).placement == {"services/mine": "mine", "/srv/theirs": "theirs", "efficientnet-lite0": "sp2"}


@pytest.mark.parametrize(
    ("settings", "trust"),
    [
        ({"providers": {"alexnet-digits": "us", "fashion-cnn": "them"}}, "split"),
        ({"providers": {"alexnet-digits": "us"}}, "split"),
        ({"providers": {"alexnet-digits": "us", "fashion-cnn": "us"}}, "shared"),
        ({}, "shared"),
        ({"providers": {"fashion-cnn": "them"}, "trust": "shared"}, "shared"),
    ],
)
def test_weights_stay_with_their_owners_where_the_configuration_names_several(tmp_path: Path, settings: dict[str, Any], trust: str) -> None:
    config = write_config(tmp_path, LONELY, hosts={"fashion-cnn": {}}, recipe={"steps": 2, "joint_steps": 1}, **settings)
    assert read_config(config).trust == trust


def test_two_folders_of_one_name_are_not_taken_for_one_provider(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "search.yaml"
    config.write_text(yaml.safe_dump({"local": "a/cnn", "data": "digits", "hosts": {"b/cnn": {}}}))
    code, line = run_cli(config, tmp_path / "run", capsys)
    assert code == 2
    assert "two service folders are called 'cnn'; say in 'providers'" in line


def test_rungs_may_stand_anywhere_between_the_first_and_the_last_step_of_the_whole_training(tmp_path: Path) -> None:
    config = write_config(tmp_path, LONELY, rungs=[1, 30, 39], recipe={"steps": 30, "joint_steps": 10})
    assert read_config(config).rungs == (1, 30, 39)


def test_a_search_has_no_rungs_unless_it_asks_for_them(tmp_path: Path) -> None:
    assert read_config(write_config(tmp_path, LONELY)).rungs == ()


def test_more_gpus_than_the_cluster_has_are_refused(tmp_path: Path) -> None:
    done = search(write_config(tmp_path, LONELY, gpus_per_trial=64), tmp_path / "run")
    assert done.returncode == 2
    assert complaints(done.stderr)[0].startswith("ConfigError: gpus_per_trial is 64 and the Ray cluster has ")


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "search" / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_the_configurations_that_ship_are_valid(file: Path) -> None:
    assert read_config(file).hosts
