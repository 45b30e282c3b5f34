"""Runs of a sweep on this machine, a few at a time: each one ``ppar-dist train``, as a person starts it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import FrameType

from ppar_dist import exit_codes
from ppar_dist.sweep.children import Children
from ppar_dist.sweep.grid import Planned
from ppar_dist.text import duration

_TRIES = 4  # starts of a run that ends with 75
_LAST_LINES = 3


def run_all(
    planned: Sequence[Planned], jobs: int, nproc: int | None, say: Callable[[str], None] = print
) -> int:
    """Train runs that are not finished, ``jobs`` at a time; one that fails does not stop the others.

    Returns:
        0 where all runs are finished; else 78 or 70 where one failed, and 75 where the same command goes on.
        After a signal 75, or 130 from the keyboard: the runs have saved.
    """
    children, pool = Children(), ThreadPoolExecutor(jobs)
    codes: list[int] = []
    asked = list[int]()

    def stop(number: int, _: FrameType | None) -> None:
        asked.append(number)
        children.end()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        futures = {pool.submit(_train, run, nproc, children): run for run in planned}
        for number, future in enumerate(as_completed(futures), start=1):
            code, words = future.result()
            codes.append(code)
            if not asked or code == exit_codes.DONE:
                say(f"[{number}/{len(planned)}] {futures[future].name}: {words}")
    finally:
        children.end()
        pool.shutdown(cancel_futures=True)
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        return exit_codes.INTERRUPTED if signal.SIGINT in asked else exit_codes.RESUME
    return _worst(codes)


def _train(run: Planned, nproc: int | None, children: Children) -> tuple[int, str]:
    """Start a run until it ends with another code than 75, or too often; returns the code and what to say."""
    began, code = time.monotonic(), exit_codes.RESUME
    options = [] if nproc is None else ["--nproc", str(nproc)]
    command = [sys.executable, "-m", "ppar_dist", "train", str(run.file), *options]
    for _ in range(_TRIES):
        try:
            with run.log.open("ab") as log:  # a session of its own: Ctrl-C reaches it by `Children` alone
                code, _cpu = children.wait(
                    lambda: subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                    )
                )
        except InterruptedError:
            return exit_codes.RESUME, "not started"
        if code != exit_codes.RESUME:
            break
    if code == exit_codes.DONE:
        return code, f"done in {duration(time.monotonic() - began)}, {run.config.run.dir}"
    return code, f"ended with {code}: {_last_words(run.log)} ({run.log})"


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " / ".join(line.strip() for line in lines[-_LAST_LINES:])


def _worst(codes: Sequence[int]) -> int:
    """The code that says most of what is to be done."""
    if exit_codes.CONFIG in codes:
        return exit_codes.CONFIG
    if set(codes) - {exit_codes.DONE, exit_codes.RESUME}:
        return exit_codes.INTERNAL
    return exit_codes.RESUME if exit_codes.RESUME in codes else exit_codes.DONE
