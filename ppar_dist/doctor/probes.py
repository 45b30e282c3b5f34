"""Measuring storage: a temporary folder, the rates of writing and hashing, what is mounted where."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def existing_parent(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


@contextmanager
def probe_folder(parent: Path) -> Iterator[Path]:
    """A folder for probes that is always deleted at the end; raises OSError."""
    probe = parent / f".doctor-{os.getpid()}"
    probe.mkdir()
    try:
        yield probe
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def write_rate(parent: Path, total: int) -> float:
    """Bytes per second of writing ``total`` bytes and synchronising them; raises OSError."""
    with probe_folder(parent) as probe:
        began = time.monotonic()
        write(probe / "bytes", total)
        return total / max(1e-6, time.monotonic() - began)


def write(path: Path, total: int) -> None:
    """Write ``total`` random bytes and synchronise them; raises OSError."""
    block = os.urandom(min(total, 1 << 20))  # random: some file systems compress
    with path.open("wb") as file:
        for _ in range(total // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def hash_rate() -> float:
    """Bytes per second of sha256."""
    block = bytes(8 << 20)
    began = time.monotonic()
    hashlib.sha256(block).digest()
    return len(block) / max(1e-6, time.monotonic() - began)


def copy_rate() -> float:
    """Bytes per second of copying memory into new memory, as a checkpoint's copy is made."""
    block = bytes(64 << 20)
    began = time.monotonic()
    bytearray(block)
    return len(block) / max(1e-6, time.monotonic() - began)


def mount_of(path: Path) -> tuple[str, str]:
    """File system type and mount point of a path, from the kernel's table; ("", "") without one."""
    try:
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    path, best, found = path.resolve(), "", ""
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        mount = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), left.split()[4])
        if path.is_relative_to(mount) and len(mount) >= len(best):
            best, found = mount, right.split()[0]
    return found, best


def resident_bytes() -> int:
    """Bytes of memory that this process holds; 0 where the kernel does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()
