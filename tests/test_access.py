"""API keys: what is stored of them, who is let in, how much each may send, and the command that makes them."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from code_ray.access import BURST_S, PREFIX, Gate, KeyFile, is_loopback, read_keys
from code_ray.errors import ConfigError, RequestError

HERE, ELSEWHERE = "127.0.0.1", "192.0.2.7"


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


FILE, ALICE = KeyFile().with_key("alice", None, None)
FILE, BOB = FILE.with_key("bob", ("tiny",), 10.0)


def test_a_key_is_long_and_only_its_hash_is_stored() -> None:
    assert ALICE.startswith(PREFIX)
    assert len(ALICE) > 40
    assert ALICE != BOB
    stored = FILE.model_dump_json()
    assert ALICE not in stored
    assert ALICE.removeprefix(PREFIX) not in stored


def test_a_known_key_is_let_in_from_anywhere() -> None:
    gate = Gate(FILE, 1.0, 0.0)
    for client in (HERE, ELSEWHERE):
        key = gate.check(bearer(ALICE), client, "tiny")
        assert key is not None
        assert key.name == "alice"


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": ""}, {"authorization": "Bearer "}, {"authorization": ALICE}, {"authorization": f"Basic {ALICE}"}],
    ids=["none", "empty", "no key", "no scheme", "another scheme"],
)
def test_without_a_key_it_is_a_401_from_this_machine_too(headers: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="an API key is needed") as caught:
        Gate(FILE, 1.0, 0.0).check(headers, HERE, None)
    assert caught.value.status == 401


@pytest.mark.parametrize("secret", ["x", ALICE[:-1], ALICE + "x", FILE.keys[0].sha256, "ü", "a" * 100_000])
def test_any_other_key_is_a_401_that_does_not_repeat_it(secret: str) -> None:
    with pytest.raises(RequestError, match="is not one of this server's") as caught:
        Gate(FILE, 1.0, 0.0).check(bearer(secret), ELSEWHERE, None)
    assert caught.value.status == 401
    assert secret not in str(caught.value) or len(secret) == 1


def test_a_key_asks_its_services_only() -> None:
    gate = Gate(FILE, 1.0, 0.0)
    assert gate.check(bearer(BOB), ELSEWHERE, "tiny") is not None
    assert gate.check(bearer(BOB), ELSEWHERE, None) is not None
    with pytest.raises(RequestError, match="key 'bob' may not ask 'host'; it may ask: tiny") as caught:
        gate.check(bearer(BOB), ELSEWHERE, "host")
    assert caught.value.status == 403


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_key_sends_no_more_than_its_rate(share: float) -> None:
    gate, sent, refused = Gate(FILE, share, 0.0), 0, list[RequestError]()
    key = gate.check(bearer(BOB), HERE, None)
    for tenth in range(1000):
        try:
            gate.charge(key, 4, tenth / 10)
            sent += 4
        except RequestError as error:
            refused.append(error)
    assert {error.status for error in refused} == {429}
    assert all(error.retry_after_s is not None and 0 < error.retry_after_s < 2 for error in refused)
    assert sent == pytest.approx(share * 10 * (100 + BURST_S), abs=8)


def test_a_key_without_a_rate_sends_what_it_likes() -> None:
    gate = Gate(FILE, 1.0, 0.0)
    key = gate.check(bearer(ALICE), HERE, None)
    for _ in range(1000):
        gate.charge(key, 1000, 0.0)


def test_without_keys_only_this_machine_is_answered() -> None:
    gate = Gate(None, 1.0, 0.0)
    assert gate.check({}, HERE, "tiny") is None
    with pytest.raises(RequestError, match="answers its own machine only; give its router keys_file") as caught:
        gate.check({}, ELSEWHERE, "tiny")
    assert caught.value.status == 403


def test_a_file_without_a_key_lets_nobody_in() -> None:
    with pytest.raises(RequestError, match="an API key is needed"):
        Gate(KeyFile(), 1.0, 0.0).check({}, HERE, None)


@pytest.mark.parametrize(
    ("address", "is_here"),
    [
        *((address, True) for address in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1")),
        *((address, False) for address in ("10.0.0.1", "::2", "::ffff:10.0.0.1", "", None, "localhost", "unix:")),
    ],
)
def test_which_addresses_are_this_machine(address: str | None, is_here: bool) -> None:
    assert is_loopback(address) is is_here


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is malformed"),
        ("[]", "is malformed"),
        ('{"keys": [{"name": "a", "sha256": "0"}]}', "malformed at keys.0.sha256"),
        ('{"keys": [{"name": "a", "sha256": "' + "0" * 64 + '", "images_per_second": 0}]}', "malformed at keys.0.images_per_second"),
        ('{"tokens": []}', "malformed at tokens"),
    ],
)
def test_a_key_file_that_is_none_is_named_with_the_place(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(ConfigError, match=reason):
        read_keys(tmp_path / "keys.json")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "deployments", "keys", *arguments], capture_output=True, text=True, check=False)


def test_the_command_makes_lists_and_removes_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = command("add", "shop", "--services", "tiny", "--images-per-second", "50", "--file", str(file))
    assert (made.returncode, made.stderr) == (0, "")
    secret = made.stdout.strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret not in file.read_text()
    assert Gate(read_keys(file), 1.0, 0.0).check(bearer(secret), ELSEWHERE, "tiny") is not None
    assert command("list", "--file", str(file)).stdout == "shop: tiny, 50 images a second\n"
    again = command("add", "shop", "--file", str(file))
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "ConfigError: there is a key called 'shop'; remove it first, or choose another name\n"
    assert command("remove", "shop", "--file", str(file)).returncode == 0
    assert json.loads(file.read_text()) == {"keys": []}
    assert list(tmp_path.iterdir()) == [file]


def test_a_key_file_that_cannot_be_written_is_a_line_and_not_a_traceback(tmp_path: Path) -> None:
    failed = command("add", "shop", "--file", str(tmp_path / "nowhere" / "keys.json"))
    assert failed.returncode == 1
    assert failed.stderr.startswith("ConfigError: ")
    assert len(failed.stderr.splitlines()) == 1
