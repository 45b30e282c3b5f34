"""The records that a growing file of JSON lines gained since the last look, also when it was replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppar_dist.files.jsonl import parse_record


class Tail:
    """Reads whole lines; one that is being written is read when it has its end."""

    def __init__(self, path: Path) -> None:
        """Nothing is read before ``records``; the file need not exist."""
        self._path = path
        self.again()

    def again(self) -> None:
        """Read from the beginning next time."""
        self._file: tuple[int, int] | None = None  # device and inode of the file that was read
        self._offset = 0

    def records(self) -> Iterator[dict[str, Any]]:
        """The new records that have a step.

        Raises:
            OSError: the file is there and cannot be read.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            known = (status.st_dev, status.st_ino)
            if known != self._file or status.st_size < self._offset:
                self._file, self._offset = known, 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                record = parse_record(line)
                if record is not None:
                    yield record
