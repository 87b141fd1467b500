"""How this process starts a Ray, and the processes of it, found in /proc."""

from __future__ import annotations

import os
from pathlib import Path

PROFILES: dict[str, dict[str, str]] = {
    "default": {},
    "throughput": {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
}
"""Environments to start Ray in (docs/serving.md)."""


def process_ids(title: str) -> set[int]:
    """Processes that this one's Ray has started and whose title begins with ``title``, as Ray sets it (``ray::...``)."""
    return {process for process in family(os.getpid()) if _command(process).startswith(title.encode())}


def replica_ids(deployment: str, application: str = "default") -> set[int]:
    """Process ids of a deployment's replicas."""
    return process_ids(f"ray::ServeReplica:{application}:{deployment}")


def proxy_ids() -> set[int]:
    """Process ids of Serve's proxies, HAProxy among them."""
    haproxies = {process for process in family(os.getpid()) if Path(_command(process).split(b"\0")[0].decode()).name == "haproxy"}
    return process_ids("ray::ProxyActor") | haproxies


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
