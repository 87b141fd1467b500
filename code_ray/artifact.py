"""The run directory: one owner of every file name (DESIGN 4)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from code_ray.errors import ArtifactError
from code_ray.journal import Journal


@dataclass(frozen=True)
class RunDirectory:
    """Where a search keeps what it found.

    result.json, plan.json, canaries.safetensors, profile.json, config.json, evaluations.csv, journal.jsonl, splits.npz,
    teacher.npy, stores/<provider>/, pictures and report.html.
    """

    root: Path

    @property
    def config_file(self) -> Path:
        return self.root / "config.json"

    @property
    def profile_file(self) -> Path:
        return self.root / "profile.json"

    @property
    def plan_file(self) -> Path:
        return self.root / "plan.json"

    @property
    def result_file(self) -> Path:
        return self.root / "result.json"

    @property
    def report_file(self) -> Path:
        return self.root / "report.html"

    @property
    def evaluations_file(self) -> Path:
        return self.root / "evaluations.csv"

    @property
    def splits_file(self) -> Path:
        return self.root / "splits.npz"

    @property
    def teacher_file(self) -> Path:
        return self.root / "teacher.npy"

    @property
    def stores_dir(self) -> Path:
        return self.root / "stores"

    @property
    def journal(self) -> Journal:
        return Journal(self.root / "journal.jsonl")

    @property
    def canaries_file(self) -> Path:
        return self.root / "canaries.safetensors"

    def picture_file(self, name: str) -> Path:
        return self.root / f"{name}.png"

    @classmethod
    def create(cls, root: Path, config: dict[str, object]) -> RunDirectory:
        """Make ``root`` a run directory for ``config``, or open it where it already is one for the same config.

        Raises:
            ArtifactError: where ``root`` belongs to another config, holds other things, or cannot be written.
        """
        run = cls(root)
        text = json.dumps(config, indent=1, sort_keys=True) + "\n"
        try:
            if run.config_file.exists():
                if run.config_file.read_bytes() != text.encode():
                    raise ArtifactError(f"{root} was made by another configuration (see {run.config_file.name}); choose another --out")
                return run
            if root.exists() and any(root.iterdir()):
                raise ArtifactError(f"{root} is not empty and not a run directory; choose another --out")
            root.mkdir(parents=True, exist_ok=True)
            write_text(run.config_file, text)
        except OSError as error:
            raise ArtifactError(f"{root} cannot be made a run directory ({error}); choose another --out") from error
        return run

    @classmethod
    def open(cls, root: Path) -> RunDirectory:
        """The run directory at ``root``, with a finished plan.

        Raises:
            ArtifactError: where ``root`` is not one, or its search has not finished.
        """
        run = cls(root)
        if not run.plan_file.exists():
            started = "its search has not finished: run the same search again" if run.config_file.exists() else "give the --out of a search"
            raise ArtifactError(f"{root} is not a run directory with a plan.json; {started}")
        return run


def write_text(file: Path, text: str, mode: int = 0o666) -> None:
    """Replace ``file`` whole or not at all; ``mode``, less the process's umask, says who may read it."""
    write_bytes(file, text.encode(), mode)


def write_bytes(file: Path, content: bytes, mode: int = 0o666) -> None:
    """As ``write_text``."""
    staging = file.with_name(f".{file.name}.tmp")
    try:
        with open(staging, "wb", opener=lambda path, flags: os.open(path, flags, mode)) as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(staging, file)
    except OSError:
        staging.unlink(missing_ok=True)
        raise
