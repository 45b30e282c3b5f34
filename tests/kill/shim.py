"""The shim of ``shim.c``: built with the system's compiler, loaded before Python, armed by ctypes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_SOURCE = Path(__file__).with_name("shim.c")
_VARIABLE = "PPAR_TEST_SHIM"


class Mode(IntEnum):
    """What the shim does at the chosen call; the numbers are those of shim.c."""

    COUNT = 0
    KILL = 1
    KILL_PARTIAL = 2
    FAIL = 3
    FAIL_ON = 4
    SHORT = 5


@dataclass(frozen=True)
class Call:
    """One call that would change what lies below the folder, or that syncs it.

    Attributes:
        kind: create, write, fsync, rename, …
        path: what it changes.
        other: the second path of a rename.
        inode: of ``path`` before the call; 0 if there was nothing.
    """

    kind: str
    path: str
    other: str
    inode: int


def missing() -> str | None:
    """Why the shim cannot be used here; None if it can."""
    if sys.platform != "linux":
        return "LD_PRELOAD and /proc are Linux's"
    return None if shutil.which("cc") else "no C compiler (cc)"


def build(folder: Path) -> Path:
    """Compile the shim into ``folder``."""
    library = folder / "shim.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=120)
    return library


def run_python(library: Path, arguments: Sequence[str], timeout_s: float) -> str:
    """Run ``python ARGUMENTS`` behind the shim, on one thread; its standard output."""
    environment = os.environ | {"LD_PRELOAD": str(library), _VARIABLE: str(library), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout_s,
        check=True,
    )
    return done.stdout


def load() -> ctypes.CDLL:
    """The shim that this process runs behind."""
    shim = ctypes.CDLL(os.environ[_VARIABLE])
    shim.shim_hit.restype = ctypes.c_char_p
    shim.shim_disarm.restype = ctypes.c_long
    shim.shim_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    return shim


def read_calls(text: str) -> list[Call]:
    """The calls that the shim has recorded."""
    fields = (line.split("\t") for line in text.splitlines())
    return [Call(kind, path, other, int(inode)) for kind, path, other, inode in fields]
