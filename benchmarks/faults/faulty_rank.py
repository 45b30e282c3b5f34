"""One rank of a small training loop under the watchdog, in which one rank goes wrong at step 3.

    python -m benchmarks.faults.faulty_rank FAULT --rank 1 --stall 3 --peer 2 --folder F   # once per rank

The program that ``benchmarks.faults.watchdog`` and the watchdog's tests run. Just before it goes wrong
the faulty rank prints ``fault at T``, T in seconds of the machine's monotonic clock.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.arguments import described
from ppar_dist import exit_codes
from ppar_dist.distributed import rendezvous
from ppar_dist.distributed.board import open_board
from ppar_dist.distributed.world import World
from ppar_dist.watchdog import Watchdog

_STEPS, _FAULTY_STEP = 6, 3
_LONG_S = 3600.0
_DWELL_S = 1.0
_HEAR_S = 30.0
_PHASES = ("data", "forward", "all-reduce", "backward", "step", "save", "evaluate")


def hang_in_python() -> None:
    """Hangs in Python code."""
    time.sleep(_LONG_S)


def hang_in_read() -> None:
    """Hangs in a read without a writer: C code that has released the interpreter lock."""
    reader, _ = os.pipe()
    os.read(reader, 1)


def hang_with_the_lock() -> None:
    """C code that keeps the interpreter lock: no other thread of this process runs any more."""
    ctypes.PyDLL(None).sleep(int(_LONG_S))


class _Stuck(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        time.sleep(_LONG_S)
        return index


def hang_in_loader() -> None:
    """Waits for a loader worker that hangs."""
    next(iter(DataLoader(_Stuck(), num_workers=1)))


def stop_itself() -> None:
    """As ``kill -STOP`` would."""
    os.kill(os.getpid(), signal.SIGSTOP)


def kill_itself() -> None:
    """As ``kill -KILL``, or the kernel out of memory, would."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    """An error of this rank's own.

    Raises:
        ValueError: always.
    """
    raise ValueError("shard left-000003.tar holds no samples")


def leave_early() -> None:
    """Ends as if the work were done.

    Raises:
        StopIteration: always.
    """
    raise StopIteration


@dataclass(frozen=True)
class Fault:
    """The fault and the phase in which it happens."""

    phase: str
    happen: Callable[[], None]


FAULTS = {
    "none": Fault("data", lambda: None),
    "hang": Fault("data", hang_in_python),
    "hang-read": Fault("data", hang_in_read),
    "hang-loader": Fault("data", hang_in_loader),
    "hang-step": Fault("step", hang_in_python),
    "hang-save": Fault("save", hang_in_python),
    "hang-lock": Fault("forward", hang_with_the_lock),
    "stop": Fault("backward", stop_itself),
    "kill": Fault("backward", kill_itself),
    "fail": Fault("data", fail),
    "leave": Fault("data", leave_early),
}


def train(
    world: World, watchdog: Watchdog, fault: Fault | None, evaluation_s: float, notes: Path | None
) -> None:
    """A few steps with the phases of the real loop; ``fault`` happens on this rank."""
    for step in range(1, _STEPS + 1):
        for phase in _PHASES:
            watchdog.phase(phase, step)
            if fault is not None and step == _FAULTY_STEP and phase == fault.phase:
                time.sleep(_DWELL_S)  # a phase as long as real ones, so that its beat has told of it
                _let_others_hear(world, watchdog, notes)
                print(f"fault at {time.monotonic()}", flush=True)
                fault.happen()
            if phase in ("all-reduce", "backward"):
                world.sum(torch.ones(1000))
            elif phase == "save":
                world.barrier()
            elif phase == "evaluate" and step == _FAULTY_STEP:
                _evaluate(watchdog, evaluation_s * (1 + world.rank))


def _let_others_hear(world: World, watchdog: Watchdog, notes: Path | None) -> None:
    """Wait until every other rank has noted that it knows of this phase."""
    end = time.monotonic() + _HEAR_S
    others = set(range(world.world_size)) - {world.rank}
    while notes is not None and time.monotonic() < end:
        if all((notes / f"heard-{rank}").exists() for rank in others):
            return
        time.sleep(0.02)
        watchdog.alive()


def _note_what_is_heard(watchdog: Watchdog, faulty: int, phase: str, note: Path) -> None:
    while True:
        heard = watchdog.exchange.peers.get(faulty)
        if heard is not None and (heard.report.phase, heard.report.step) == (phase, _FAULTY_STEP):
            note.touch()
            return
        time.sleep(0.02)


def _evaluate(watchdog: Watchdog, seconds: float) -> None:
    """So long in all, one image after the other; the last rank takes the longest."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
        watchdog.alive()


def run(options: argparse.Namespace) -> int:
    """Join, train, and end as the trainer does; returns the exit code."""
    world = rendezvous.join(timeout_s=60)
    fault = FAULTS[options.fault] if world.rank == options.rank else None
    board = open_board(world)
    with Watchdog(world, board, options.stall, options.peer, options.folder) as watchdog:
        if options.notes is not None and world.rank != options.rank:
            phase, note = FAULTS[options.fault].phase, options.notes / f"heard-{world.rank}"
            arguments = (watchdog, options.rank, phase, note)
            threading.Thread(target=_note_what_is_heard, args=arguments, daemon=True).start()
        try:
            train(world, watchdog, fault, options.evaluation, options.notes)
        except StopIteration:
            return exit_codes.DONE
        except RuntimeError as error:
            culprit = watchdog.blame(error)
            if culprit is None:
                raise
            print(f"blamed: {culprit}", file=sys.stderr)
            return exit_codes.RESUME
        return exit_codes.DONE


def main() -> None:
    """Read the arguments and run this rank."""
    parser = described(__doc__)
    parser.add_argument("fault", choices=tuple(FAULTS))
    parser.add_argument("--rank", type=int, default=1, help="the one that goes wrong")
    parser.add_argument("--stall", type=float, required=True, help="faults.stall_s")
    parser.add_argument("--peer", type=float, required=True, help="faults.peer_s")
    parser.add_argument(
        "--evaluation", type=float, default=0.0, help="seconds on rank 0, twice that on rank 1"
    )
    parser.add_argument("--folder", type=Path, required=True, help="for the watchdog's files")
    parser.add_argument("--notes", type=Path, help="a folder for what ranks have heard of the faulty one")
    code = run(parser.parse_args())
    rendezvous.leave()
    sys.exit(code)


if __name__ == "__main__":
    main()
