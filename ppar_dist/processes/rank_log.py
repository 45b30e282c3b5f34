"""A log file for every rank except rank 0: one log of the whole job would interleave them.

A batch script names the folder in ``PPAR_RANK_LOGS``. Rank 0 stays in the job's log, and so does
the last line of every rank.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from pathlib import Path

FOLDER = "PPAR_RANK_LOGS"

_job_log: int | None = None  # the standard error that this rank was started with, where it writes elsewhere


def redirect() -> Path | None:
    """Redirect the output of this process and its children to its rank's file; each start appends to it.

    Returns:
        The file; None without redirection: for rank 0, without a folder, or if it cannot be written.
    """
    global _job_log
    folder, rank = os.environ.get(FOLDER), int(os.environ.get("RANK", "0"))
    if not folder or rank == 0:
        return None
    path = Path(folder) / f"rank-{rank:05d}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        text = f"cannot write {path}: {error.strerror}; rank {rank} stays in the job's log"
        print(f"ppar-dist: {text}", file=sys.stderr, flush=True)
        return None
    _job_log = os.dup(2)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    ranks, host = os.environ["WORLD_SIZE"], socket.gethostname()
    print(f"{when} rank {rank} of {ranks} on {host}, process {os.getpid()}", flush=True)
    return path


def last_words(text: str) -> None:
    """Print why this process ends: to its own log, and to the job's."""
    # One write: launchers start ranks unbuffered, and another rank may be writing at the same moment.
    with contextlib.suppress(OSError):  # the terminal may be closed, or the launcher's pipe
        print(f"{text}\n", end="", file=sys.stderr, flush=True)
    to_job_log(text)


def to_job_log(text: str) -> None:
    """Print to the job's log, if this rank has its own; the pipe may be closed at the other end."""
    if _job_log is not None:
        with contextlib.suppress(OSError):
            os.write(_job_log, f"{text}\n".encode(errors="replace"))
