"""The processes of the Ray that this one has started, found in /proc."""

from __future__ import annotations

import os
from pathlib import Path


def process_ids(title: str) -> set[int]:
    """Processes that this one's Ray has started and whose title begins with ``title``, as Ray sets it (``ray::...``)."""
    return {process for process in family(os.getpid()) if _command(process).startswith(title.encode())}


def replica_ids(deployment: str, application: str = "default") -> set[int]:
    """Process ids of a deployment's replicas."""
    return process_ids(f"ray::ServeReplica:{application}:{deployment}")


def family(parent: int) -> set[int]:
    """A process and all that it and its children have started."""
    found = set()
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and _is_of(int(folder.name), parent):
                found.add(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return found


def _command(process: int) -> bytes:
    """Its command line; nothing where it has ended meanwhile."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _is_of(process: int, parent: int) -> bool:
    while process > 1:
        if process == parent:
            return True
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return False
