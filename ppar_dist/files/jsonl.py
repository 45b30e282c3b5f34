"""Files of one JSON object per line, as a run writes them about itself and reads them again after any end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

_LONGEST_LINE = 1 << 24  # bytes; a longer line is no record, and is not held in memory whole
_LARGEST_STEP = 2**53

log = logging.getLogger(__name__)


class JsonLines:
    """An append-only file of one JSON object per line; a resume cuts what lies after its step."""

    def __init__(self, path: Path, step: int | None) -> None:
        """Open ``path`` for a run that stands at ``step``; None keeps the records of all steps.

        Later records, of a lost attempt, are dropped, and so is what is no record with a step. The file is
        replaced at once, when all that stays is on disk: a kill leaves the old file or the new one.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._failed = path, False
        if path.exists():
            broken = _rewrite(path, _LARGEST_STEP if step is None else step)
            if broken:
                log.warning("%s: lines that are no whole records were dropped: %d", path, broken)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; it is on its way to disk when this returns.

        Storage that fails costs records, never the run: it is said once, and again when it works again.
        """
        line = json.dumps(record, allow_nan=False, default=_plain) + "\n"
        try:
            self._file.write("\n" + line if self._failed else line)  # a line cut off by the failure ends here
            self._file.flush()
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written (%s): records are lost", self._path, error.strerror)
            self._failed = True
            return
        if self._failed:
            log.warning("%s can be written again", self._path)
        self._failed = False

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # what the last failed write left in the buffer
            self._file.close()


def records(path: Path) -> Iterator[dict[str, Any] | None]:
    """What the lines of ``path`` hold, one after the other; None for a line that is no object with a step.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for line in _lines(file):
            yield parse_record(line)


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The object of a line that has a whole number as ``step``, or None."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and is_step(record.get("step")) else None


def is_step(value: Any) -> bool:
    """Whether ``value`` can be the number of a step."""
    return type(value) is int and 0 <= value <= _LARGEST_STEP


def parse_json(text: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: no JSON, NaN or infinity, text that UTF-8 cannot write, or nesting beyond reason.
    """
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("JSON nested beyond reason") from None
    if b"\\u" in text:  # the one way to half a character: such text could be shown nowhere
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _rewrite(path: Path, step: int) -> int:
    """Keep the records up to ``step``; returns how many lines were none."""
    temporary, broken = path.with_name(path.name + ".kept"), 0
    with path.open("rb") as old, temporary.open("wb") as new:
        for line in _lines(old):
            record = parse_record(line) if line.endswith(b"\n") else None
            if record is None:
                broken += 1
            elif record["step"] <= step:
                new.write(line)
        new.flush()
        os.fsync(new.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return broken


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines of a file; what lies between two line ends too far apart is one line, cut short."""
    while line := file.readline(_LONGEST_LINE):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_LONGEST_LINE)
        yield line


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
