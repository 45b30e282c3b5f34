"""Files of one JSON object per line, as a run writes them about itself and reads them again after any end."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from ppar_dist.files.durable import sync_folder

_LONGEST_LINE = 1 << 24  # bytes; a longer line is not a record, and is not held in memory whole
_LARGEST_STEP = 2**53

log = logging.getLogger(__name__)


class JsonLines:
    """An append-only file of one JSON object per line.

    Each record is on its way to the disk when ``write`` returns. Storage that fails never ends the run: it is
    logged once, and again when it works again. A file that was deleted is created again at the next record.
    """

    def __init__(self, path: Path, first: Mapping[str, Any] | None = None, waits: bool = False) -> None:
        """The file is opened, and its folder made, by ``open``, ``flush`` or the first ``write``.

        Args:
            path: the file; where a kill cut off its last line, records go on below that.
            first: the record that the file begins with.
            waits: whether records wait in memory while storage fails; otherwise those are lost.
        """
        self.path, self._waits = path, waits
        self._first = b"" if first is None else _line(first)
        self._file: int | None = None
        self._waiting, self._done = b"", 0  # bytes to be written, and how many of them are in the file
        self._failed = False

    def open(self) -> None:
        """Open the file, also again where it was deleted.

        Raises:
            OSError: it cannot be written.
        """
        if self._file is not None and _is_deleted(self._file):
            log.warning("%s was deleted; recreated empty", self.path)
            self._release()
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file, self._done = os.open(self.path, flags, 0o666), 0
            begin = _beginning(self._file, self._first)
            if not self._waiting.startswith(begin):  # that may have been waiting already
                self._waiting = begin + self._waiting

    def write(self, record: Mapping[str, Any]) -> bool:
        """Append one record; returns whether it is in the file."""
        self._waiting += _line(record)
        return self.flush()

    def flush(self) -> bool:
        """Write what waits; returns whether nothing does any more."""
        try:
            self.open()
            self._append()
        except OSError as error:
            if not self._failed:
                lost = "records wait" if self._waits else "records are lost"
                log.warning("%s cannot be written (%s): %s", self.path, error.strerror, lost)
            self._failed = True
            if not self._waits:  # a line that was cut off ends before the next record
                self._waiting, self._done = b"\n" if self._done or self._waiting[:1] == b"\n" else b"", 0
            return False
        if self._failed:
            log.warning("%s can be written again%s", self.path, ": nothing was lost" if self._waits else "")
        self._failed = False
        return True

    def close(self) -> int:
        """Close the file, which a later ``write`` opens again; returns how many bytes still waited."""
        is_whole = not self._waits or not self._waiting or self.flush()
        self._release()
        return 0 if is_whole else len(self._waiting) - self._done

    def _append(self) -> None:
        assert self._file is not None, "the file is open"
        while self._done < len(self._waiting):
            self._done += os.write(self._file, self._waiting[self._done :])
        self._waiting, self._done = b"", 0

    def _release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # of storage that fails, which was logged
                os.close(file)


class Line(NamedTuple):
    """One line of a file."""

    number: int  # from 1
    record: dict[str, Any] | None  # None where it is not a JSON object
    is_cut: bool  # it has no end: it is being written, or its writer was killed


def read(path: Path) -> Iterator[Line]:
    """The lines of ``path``, one after the other.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            yield Line(number, _object(line), not line.endswith(b"\n"))


def records(path: Path) -> Iterator[dict[str, Any] | None]:
    """The records of steps in ``path``; None for a line that is not an object with a step.

    Raises:
        OSError: the file cannot be read.
    """
    return (_with_step(line.record) for line in read(path))


def drop_after(path: Path, step: int | None) -> None:
    """Drop the records of later steps than ``step`` (None: none), and what is not a record with a step.

    The file is replaced at once, when all that stays is on disk: a kill leaves the old file or the new one.

    Raises:
        OSError: it cannot be read or replaced.
    """
    if path.exists():
        broken = _rewrite(path, _LARGEST_STEP if step is None else step)
        if broken:
            log.warning("%s: lines that are not whole records were dropped: %d", path, broken)


def parse_record(line: bytes) -> dict[str, Any] | None:
    """The object of a line that has a whole number as ``step``, or None."""
    return _with_step(_object(line))


def is_step(value: Any) -> bool:
    """Whether ``value`` can be the number of a step."""
    return type(value) is int and 0 <= value <= _LARGEST_STEP


def parse_json(text: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: not JSON, NaN or infinity, text that UTF-8 cannot write, or nesting beyond reason.
    """
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("JSON nested beyond reason") from None
    if b"\\u" in text:  # the one way to half a character: such text could be shown nowhere
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _with_step(record: dict[str, Any] | None) -> dict[str, Any] | None:
    return record if record is not None and is_step(record.get("step")) else None


def _rewrite(path: Path, step: int) -> int:
    """Keep the records up to ``step``; returns how many lines were not records."""
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
    sync_folder(path.parent)
    return broken


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines of a file; what lies between two line ends too far apart is one line, cut short."""
    while line := file.readline(_LONGEST_LINE):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_LONGEST_LINE)
        yield line


def _is_deleted(file: int) -> bool:
    try:
        return os.fstat(file).st_nlink == 0
    except OSError as error:
        if error.errno == errno.ESTALE:  # on network storage, by another machine
            return True
        raise


def _beginning(file: int, first: bytes) -> bytes:
    """What comes before the next record: the first line, or the end of a line that was cut off."""
    size = os.fstat(file).st_size
    if size == 0:
        return first
    return b"" if os.pread(file, 1, size - 1) == b"\n" else b"\n"


def _line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False, default=_plain) + "\n").encode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
