"""What ``python -m deployments doctor`` finds on a cluster that serves, and on one that could not."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import ray
from ray import serve
from serving import FIXED, Run, free_port, running_serve

from deployments import build_app
from deployments.config import AppOptions
from deployments.doctor import Finding, _provider, _token, examine, look_at_store


@pytest.fixture(scope="module")
def port(served_run: Run) -> Iterator[int]:
    """Where a deployment answers, on a Ray that this process is connected to."""
    with running_serve() as url:
        serve.run(build_app(AppOptions(run_dir=served_run.root, providers={"alpha": FIXED, "beta": FIXED})))
        found = urlparse(url).port
        assert found is not None
        yield found


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "auth_token"
    file.write_text("0" * 64)
    file.chmod(0o600)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    return file


def wrong(findings: Iterator[Finding]) -> list[Finding]:
    return [finding for finding in findings if not finding.is_good]


def test_where_a_plan_is_served_nothing_is_wrong_and_all_was_looked_at(port: int, served_run: Run, token: Path) -> None:
    found = list(examine(served_run.root, "127.0.0.1", port))
    assert wrong(iter(found)) == []
    said = "\n".join(map(str, found))
    assert f"port 127.0.0.1:{port}: code_ray answers there already" in said
    assert f"ray {ray.__version__}" in said
    for provider, links in (("alpha", 2), ("beta", 6)):
        assert f"services and {links} links are those of plan {served_run.plan.id}" in said, said
        assert f"provider {provider!r} on " in said


def doctor(run_dir: Path, port: int) -> "subprocess.CompletedProcess[str]":
    """The command, at this process's cluster."""
    options = ["--run-dir", str(run_dir), "--address", ray.get_runtime_context().gcs_address, "--port", str(port)]
    return subprocess.run([sys.executable, "-m", "deployments", "doctor", *options], capture_output=True, text=True, timeout=300)


def test_the_command_says_so_line_by_line_and_by_its_status(port: int, served_run: Run) -> None:
    done = doctor(served_run.root, port)
    # Ray's own file may be readable by others; that is then the only thing wrong.
    assert done.stdout.splitlines()[-1] in ("nothing is in the way", "1 to mend")
    assert done.returncode == int("to mend" in done.stdout)
    assert done.stdout.count("ok    ") >= 6
    assert "Traceback" not in done.stderr


def test_a_token_that_is_not_the_clusters_is_named_as_a_cause(port: int, served_run: Run, token: Path) -> None:
    done = doctor(served_run.root, port)
    assert (done.returncode, done.stdout) == (1, "")
    assert "or the token here is not the cluster's" in done.stderr
    assert "Traceback" not in done.stderr


def test_links_that_are_not_the_plans_are_found_on_their_providers_node(port: int, served_run: Run, token: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(served_run.root, root)
    file = next((root / "stores" / "beta").glob(f"{served_run.id_of('cross')}*"))
    file.write_bytes(file.read_bytes()[:-8])
    (finding,) = wrong(examine(root, "127.0.0.1", port))
    assert finding.about.startswith("provider 'beta' on ")
    assert "copy the provider's store again" in finding.said
    assert look_at_store("alpha", str(root))[0][1]


def test_a_folder_without_a_plan_is_all_there_is_to_say(tmp_path: Path) -> None:
    (finding,) = examine(tmp_path, "127.0.0.1", 8000)
    assert str(finding).startswith(f"WRONG plan: {tmp_path} is not a run directory with a plan.json")


def test_a_port_that_something_else_holds_is_found(port: int, served_run: Run, token: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        found = wrong(examine(served_run.root, "127.0.0.1", other.getsockname()[1]))
    assert ["something else listens there" in finding.said for finding in found] == [True]
    free = next(finding for finding in examine(served_run.root, "127.0.0.1", free_port()) if finding.about.startswith("port"))
    assert (free.is_good, free.said) == (True, "free")


def test_a_node_with_a_providers_label_and_not_its_resource_is_told_how_to_start(port: int, served_run: Run) -> None:
    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    labelled: dict[str, Any] = node | {"Labels": {"provider": "beta"}}
    (finding,) = wrong(_provider("beta", [labelled], served_run.root))
    assert "has the label and not the resource 'provider:beta'; start it with: ray start --resources=" in finding.said
    own = labelled | {"Resources": node["Resources"] | {"provider:beta": 1.0}}
    assert wrong(_provider("beta", [own], served_run.root)) == []


def test_a_token_that_others_can_read_or_that_is_off_or_missing_is_found(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _token().is_good
    token.chmod(0o644)
    assert "chmod 600" in _token().said
    token.unlink()
    assert "ray get-auth-token --generate" in _token().said
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    assert _token().is_good
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "set it on every node" in _token().said
