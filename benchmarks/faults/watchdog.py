"""How long a job lives on after a rank has died or hangs, and who is named: a table of faults.

    python -m benchmarks.faults.watchdog [--stall 3] [--peer 2] [--ranks 3] [--runs 3] [CASE ...]

Each case starts real gloo ranks (``benchmarks.faults.faulty_rank``), of which one goes wrong at step 3,
a second after its phase began, or when all others have heard of that phase. The time runs from the fault to
the end of the last rank that had none.
Then the cost of the watchdog.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.arguments import described
from ppar_dist.distributed.board import open_board
from ppar_dist.distributed.world import World
from ppar_dist.launch import nodes
from ppar_dist.watchdog import Watchdog

_START_S = 180.0  # for importing torch on a busy machine
_END_S = 60.0  # beyond the limits
_AFTER_S = 10.0  # for the kernel to take away what was killed


@dataclass(frozen=True)
class Case:
    """A fault, the rank that has it, and how a reader knows it."""

    title: str
    fault: str
    rank: int = 1
    ends: bool = True  # the faulty rank ends by itself, or its watchdog ends it
    says: str = ""  # what one that does not end writes all the same, before a launcher would kill it


CASES = {
    "hang": Case("a rank sleeps in data", "hang"),
    "hang-read": Case("a rank hangs in read()", "hang-read"),
    "hang-loader": Case("a loader worker hangs", "hang-loader"),
    "hang-step": Case("a rank hangs in step", "hang-step"),
    "hang-save": Case("a rank hangs in save, others in its barrier", "hang-save"),
    "hang-lock": Case(
        "C code keeps the interpreter's lock", "hang-lock", ends=False, says="in hang_with_the_lock\n"
    ),
    "stop": Case("SIGSTOP in backward", "stop", ends=False),
    "stop-0": Case("SIGSTOP of rank 0, which holds the store", "stop", rank=0, ends=False),
    "kill": Case("SIGKILL in backward", "kill"),
    "kill-0": Case("SIGKILL of rank 0, which holds the store", "kill", rank=0),
    "fail": Case("a rank raises an error", "fail"),
    "fail-0": Case("rank 0 raises an error", "fail", rank=0),
    "leave": Case("a rank leaves too early", "leave"),
}


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    codes: dict[int, int | None]  # by rank; None: had to be killed
    seconds: dict[int, float]  # from the fault to the end of each rank that ended by itself
    output: dict[int, str]
    leftovers: tuple[int, ...]  # ranks whose processes, or theirs, outlived them

    def named(self, rank: int) -> str:
        """Who is to blame, as ``rank`` says."""
        found = re.search(r"^(?:blamed|ppar-dist watchdog): (.*)$", self.output[rank], re.MULTILINE)
        return found[1] if found else ""


def run_case(
    case: Case, ranks: int, stall_s: float, peer_s: float, folder: Path, options: Sequence[str] = ()
) -> Outcome:
    """Start ``ranks`` ranks, wait until those without the fault have ended, and kill what is left.

    Their watchdogs write to ``folder/logs``, unless ``options`` say otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    limits = ["--stall", str(stall_s), "--peer", str(peer_s), "--folder", str(folder / "logs")]
    arguments = [case.fault, "--rank", str(case.rank), "--notes", str(folder), *limits, *options]
    files = [folder / f"rank-{rank}.txt" for rank in range(ranks)]
    processes = _start(arguments, files)
    try:
        ended = _wait(processes, case, _START_S + stall_s + peer_s + _END_S)
        _wait_for_words(files[case.rank], case.says)
        codes = {rank: process.poll() for rank, process in enumerate(processes)}
    finally:
        left = tuple(rank for rank, process in enumerate(processes) if _kill_group(process))
    output = {rank: file.read_text(errors="replace") for rank, file in enumerate(files)}
    found = (
        re.search(r"^fault at ([\d.]+)$", output[case.rank], re.MULTILINE) if case.rank in output else None
    )
    began = float(found[1]) if found else 0.0
    seconds = {rank: when - began for rank, when in ended.items()}
    return Outcome(codes, seconds, output, tuple(rank for rank in left if codes[rank] is not None))


def _start(arguments: Sequence[str], files: Sequence[Path]) -> list[subprocess.Popen[bytes]]:
    port = str(nodes.one_node().port)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(len(files))}
    shared |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = []
    for rank, file in enumerate(files):
        command = [sys.executable, "-m", "benchmarks.faults.faulty_rank", *arguments]
        variables = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with file.open("wb") as output:
            processes.append(
                subprocess.Popen(
                    command,
                    env=os.environ | variables,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that its children are found when it has ended
                )
            )
    return processes


def _wait(processes: Sequence[subprocess.Popen[bytes]], case: Case, timeout_s: float) -> dict[int, float]:
    """When each rank ended, by rank; returns when all have that can."""
    ended: dict[int, float] = {}
    deadline = time.monotonic() + timeout_s
    mortal = set(range(len(processes))) - (set() if case.ends else {case.rank})
    while time.monotonic() < deadline and not mortal <= ended.keys():
        for rank, process in enumerate(processes):
            if rank not in ended and process.poll() is not None:
                ended[rank] = time.monotonic()
        time.sleep(0.01)
    return ended


def _wait_for_words(file: Path, words: str) -> None:
    deadline = time.monotonic() + _END_S
    while words not in file.read_text(errors="replace") and time.monotonic() < deadline:
        time.sleep(0.01)


def _kill_group(process: subprocess.Popen[bytes]) -> bool:
    """Kill what is left of a rank and its children, seconds after its end; whether there was anything."""
    deadline = time.monotonic() + (0.0 if process.poll() is None else _AFTER_S)
    while (members := _group(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    process.wait()
    return bool(members)


def _group(leader: int) -> list[int]:
    """The processes of a group, without zombies."""
    members = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, group, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(group) == leader and state not in "ZX":
                members.append(int(entry.name))
    return members


def table(rows: Sequence[tuple[str, list[float], str]]) -> str:
    """Markdown: fault, median and worst seconds to the end, who is named."""
    lines = ["| fault | seconds to the end (median, worst) | named |", "|---|---|---|"]
    for title, seconds, named in rows:
        spread = f"{statistics.median(seconds):.1f}, {max(seconds):.1f}" if seconds else "never"
        lines.append(f"| {title} | {spread} | {named} |")
    return "\n".join(lines)


def costs(calls: int = 1_000_000, seconds: float = 10.0) -> str:
    """What ``phase`` costs a step, and the threads a processor, for a rank alone with default limits."""
    world = World()
    board = open_board(world)
    with tempfile.TemporaryDirectory() as folder, Watchdog(world, board, 600, 60, Path(folder)) as watchdog:
        began = time.perf_counter()
        for step in range(calls):
            watchdog.phase("data", step)
        each_ns = (time.perf_counter() - began) / calls * 1e9
        used = time.process_time()
        time.sleep(seconds)
        share = (time.process_time() - used) / seconds
    return f"phase(): {each_ns:.0f} ns; its threads: {1e3 * share:.2f} ms of CPU time a second"


def main() -> None:
    """Run the cases and print the table."""
    parser = described(__doc__)
    parser.add_argument("case", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--stall", type=float, default=3.0, help="faults.stall_s")
    parser.add_argument("--peer", type=float, default=2.0, help="faults.peer_s")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="of each case")
    options = parser.parse_args()
    if unknown := set(options.case) - CASES.keys():
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    rows = []
    for name in options.case or CASES:
        case, seconds, named = CASES[name], [], ""
        for _ in range(options.runs):
            with tempfile.TemporaryDirectory(prefix="ppar-watchdog-") as folder:
                outcome = run_case(case, options.ranks, options.stall, options.peer, Path(folder))
            healthy = [rank for rank in range(options.ranks) if rank != case.rank]
            seconds += [max(outcome.seconds.get(rank, float("inf")) for rank in healthy)]
            named = outcome.named(healthy[0])
        rows.append((case.title, seconds, named))
        print(f"{name}: {table(rows[-1:]).splitlines()[-1]}", file=sys.stderr, flush=True)
    print(
        f"limits: faults.stall_s={options.stall:g}, faults.peer_s={options.peer:g}; {options.ranks} ranks\n"
    )
    print(table(rows), costs(), sep="\n\n")


if __name__ == "__main__":
    main()
