"""An append-only record of every evaluation: one JSON object a line, checksummed and fsynced.

A line is ``<crc32 in hex> <json>``. A torn last line (the process died while writing) is read over; damage anywhere
else is an error that names the line, because silently losing a measured result is worse.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from code_ray.errors import ArtifactError


class Journal:
    """Appends records to ``file`` and reads them back."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and wait until it is on disk.

        Raises:
            ArtifactError: where the disk refuses (full, read-only); earlier records stay readable.
        """
        body = json.dumps(record, sort_keys=True)
        line = f"{zlib.crc32(body.encode()):08x} {body}\n".encode()
        try:
            end = self._end_of_last_whole_line()
            with self.file.open("r+b" if self.file.exists() else "xb") as stream:
                # A torn tail of an earlier crash must not merge with this line.
                stream.truncate(end)
                stream.seek(end)
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise ArtifactError(
                f"{self.file}: a result could not be written ({error}); free space and run the same command again"
            ) from error

    def records(self) -> list[dict[str, Any]]:
        """Every record written so far, oldest first; empty where there is no file yet.

        Raises:
            ArtifactError: for a damaged line that is not the torn last one.
        """
        return list(self._read()) if self.file.exists() else []

    def _read(self) -> Iterator[dict[str, Any]]:
        lines = self.file.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            if number == len(lines):
                return  # text behind the last newline: empty, or a line torn by a crash
            checksum, _, body = line.partition(b" ")
            if checksum != f"{zlib.crc32(body):08x}".encode():
                raise ArtifactError(
                    f"{self.file} line {number} is damaged (its checksum does not fit); the {number - 1} records before it are "
                    "whole: move the file aside, keep those lines and run again"
                )
            yield json.loads(body)

    def _end_of_last_whole_line(self) -> int:
        if not self.file.exists():
            return 0
        content = self.file.read_bytes()
        return content.rfind(b"\n") + 1
