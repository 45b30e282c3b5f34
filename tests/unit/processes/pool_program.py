"""A program whose workers tell of themselves: ``forked`` or ``program``, and what they are to do."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ppar_dist.errors import UserError
from ppar_dist.processes.pool import Pool


def tell(item: int) -> dict[str, Any]:
    """What a worker is."""
    print("a library's chatter")
    time.sleep(0.02 * (3 - item % 3))  # the first of each three comes last
    files = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the list's own
            files.append(os.readlink(f"/proc/self/fd/{number}"))
    is_fork = b"_started" not in Path("/proc/self/cmdline").read_bytes()
    return {"item": item, "pid": os.getpid(), "parent": os.getppid(), "files": files, "is_fork": is_fork}


def fail(item: int) -> None:
    """An error of the function's."""
    raise UserError(f"item {item} is wrong")


def die(item: int) -> None:
    """Killed, as by a machine without memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait(item: int) -> None:
    """Say who waits, without an end."""
    Path(os.environ["PPAR_TEST_WORKERS"], str(os.getpid())).touch()
    time.sleep(600)


def main(how: str, what: str) -> None:
    """Do it, and print what came of it."""
    if how == "program":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    with Path(__file__).open(), Pool(globals()[what], 2) as pool:  # a file that no worker may have
        try:
            print(json.dumps(list(pool.in_order(range(9)))))
        except UserError as error:
            print(error)


if __name__ == "__main__":
    from tests.unit.processes import pool_program

    pool_program.main(*sys.argv[1:3])
