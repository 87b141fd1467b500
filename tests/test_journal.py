"""The journal: what was appended comes back, whatever happened to the last line (DESIGN 3.6)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_ray.errors import ArtifactError
from code_ray.journal import Journal

RECORDS: list[dict[str, Any]] = [{"path": f"local[0:{n}]", "accuracy": 0.8 + n / 100} for n in range(4)]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def written(folder: Path) -> Journal:
    journal = Journal(folder / "journal.jsonl")
    for record in RECORDS:
        journal.append(record)
    return journal


def test_records_come_back_in_order_to_whoever_opens_the_file(tmp_path: Path) -> None:
    assert Journal(written(tmp_path).file).records() == RECORDS


def test_a_journal_that_was_never_written_is_empty(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.records() == []
    assert not journal.file.exists()


@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=4))
def test_every_json_record_comes_back(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    for record in records:
        journal.append(record)
    assert journal.records() == records


def test_a_line_is_a_checksum_and_plain_json(tmp_path: Path) -> None:
    lines = written(tmp_path).file.read_text().splitlines()
    assert [json.loads(line.partition(" ")[2]) for line in lines] == RECORDS
    assert all(len(line.partition(" ")[0]) == 8 for line in lines)


def test_a_last_line_torn_anywhere_is_read_over_and_merges_with_nothing(tmp_path: Path) -> None:
    journal = written(tmp_path)
    whole = journal.file.read_bytes()
    start = whole.rfind(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        journal.file.write_bytes(whole[:end])
        assert journal.records() == RECORDS[:-1]
        journal.append({"after": end})
        assert journal.records() == [*RECORDS[:-1], {"after": end}]


def test_damage_in_any_byte_before_the_last_line_names_its_line(tmp_path: Path) -> None:
    journal = written(tmp_path)
    whole = journal.file.read_bytes()
    end = whole.rfind(b"\n", 0, -1)
    for position in range(end):
        if whole[position] == ord("\n"):
            continue
        journal.file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        line = whole[:position].count(b"\n") + 1
        with pytest.raises(ArtifactError, match=rf"journal.jsonl line {line} is damaged .*the {line - 1} records before it are whole"):
            journal.records()


def test_a_lost_line_end_is_damage_too(tmp_path: Path) -> None:
    journal = written(tmp_path)
    journal.file.write_bytes(journal.file.read_bytes().replace(b"\n", b"", 1))
    with pytest.raises(ArtifactError, match="line 1 is damaged"):
        journal.records()


FILL = """
import resource, sys
from pathlib import Path
from code_ray.errors import ArtifactError
from code_ray.journal import Journal

journal = Journal(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for n in range(100):
    try:
        journal.append({"n": n, "text": "x" * 50})
    except ArtifactError as error:
        print(n, error)
        break
"""


def test_a_full_disk_loses_the_newest_record_alone(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    # The operating system refuses what goes past 1000 bytes, as it does on a full disk.
    done = subprocess.run([sys.executable, "-c", FILL, str(file)], capture_output=True, text=True, check=True, timeout=60)
    failed, message = done.stdout.split(maxsplit=1)
    assert int(failed) > 5
    assert "a result could not be written" in message
    assert "free space and run the same command again" in message
    journal = Journal(file)
    assert [record["n"] for record in journal.records()] == list(range(int(failed)))
    journal.append({"n": "after"})
    assert len(journal.records()) == int(failed) + 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="a result could not be written"):
        Journal(tmp_path / "file" / "journal.jsonl").append({})
    with pytest.raises(ArtifactError, match="a result could not be written"):
        Journal(tmp_path / "missing" / "journal.jsonl").append({})
