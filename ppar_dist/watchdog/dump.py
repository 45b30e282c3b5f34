"""What a rank writes when its watchdog ends it: the verdict, all ranks' places, its own stacks.

Nothing here may wait: the reader of standard error may have stopped, and the run folder may be on the storage
that hangs. So each place to write to gets a thread of its own, and a bounded time.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ppar_dist.processes.proc import descendants
from ppar_dist.processes.rank_log import to_job_log

_WRITE_S = 3.0
_STDERR = 2  # the descriptor: the file object's lock may be held by a thread that hangs


def dump(headline: str, table: Sequence[str], file: Path) -> None:
    """Write headline, table and stacks to standard error, and append them to ``file``; within seconds."""
    text = _text(headline, table)
    stamp = datetime.now().astimezone().isoformat(timespec="seconds")
    to_stderr = _start(_to_stderr, f"{text}(also in {file})\n")
    to_file = _start(_to_file, file, f"{stamp}\n{text}\n")
    to_job = _start(to_job_log, f"ppar-dist watchdog: {headline}")
    deadline = time.monotonic() + _WRITE_S
    for thread in (to_stderr, to_file, to_job):
        thread.join(max(0.0, deadline - time.monotonic()))
    if to_file.is_alive():
        _start(_to_stderr, f"{file} could not be written in {_WRITE_S:g} s: its storage hangs\n").join(0.2)


def end_workers() -> None:
    """Kill the processes that ``multiprocessing`` runs for this one, such as loader workers.

    They notice by themselves that this process has ended, but not if they hang with it.
    """
    for child in multiprocessing.active_children():
        child.kill()


def _text(headline: str, table: Sequence[str]) -> str:
    children = ", ".join(f"{pid} ({name})" for pid, name in sorted(descendants(os.getpid()).items()))
    lines = [
        f"ppar-dist watchdog: {headline}",
        *(f"  {line}" for line in table),
        f"processes that this rank started: {children or 'none'}",
        "stacks of this rank, the main thread's first:",
    ]
    return "\n".join(lines) + "\n" + _stacks()


def _stacks() -> str:
    # faulthandler writes with the interpreter's lock held: to memory, then, which never hangs.
    with os.fdopen(os.memfd_create("stacks"), "w+b") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        threads = file.read().decode(errors="replace").strip().split("\n\n")
    main = f"0x{threading.main_thread().ident or 0:016x}"
    return "\n\n".join(sorted(threads, key=lambda text: main not in text.partition("\n")[0])) + "\n"


def _start(write: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=write, args=arguments, daemon=True)
    thread.start()
    return thread


def _to_stderr(text: str) -> None:
    data = text.encode(errors="replace")
    while data:
        data = data[os.write(_STDERR, data) :]


def _to_file(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as log:
            log.write(text)
    except OSError as error:
        _to_stderr(f"cannot write {file}: {error.strerror}\n")
