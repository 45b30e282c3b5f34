"""The watchdog's judgement, its messages, and its queries of kernel and store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from ppar_dist import exit_codes
from ppar_dist.distributed import failures
from ppar_dist.distributed.board import Board, BoardUnreachable, open_board
from ppar_dist.distributed.world import World
from ppar_dist.processes import proc
from ppar_dist.processes.proc import Process
from ppar_dist.watchdog import OFF, WAITING, Watchdog
from ppar_dist.watchdog.heartbeat import FAILED, LEFT, TRIPPED, Heartbeat
from ppar_dist.watchdog.judgement import Limits, Seen, Verdict, View, judge, judge_failure, no_culprit
from ppar_dist.watchdog.status import Status

LIMITS = Limits(stall_s=600, peer_s=60, beat_s=1)


def rank(number: int, phase: str = "data", seconds: float = 1.0, **fields: object) -> Heartbeat:
    report = Heartbeat(
        number, f"worker-{number // 4}", f"10.0.0.{number // 4}", 100 + number, "m", 1, phase, 7
    )
    return replace(report, seconds=seconds, waits=phase in WAITING, **fields)  # type: ignore[arg-type]


def seen(report: Heartbeat, silent_s: float = 0.0, process: Process = Process.UNKNOWN) -> Seen:
    return Seen(report, age_s=max(0.5, silent_s), silent_s=silent_s, process=process)


def view(me: Heartbeat, *peers: Seen, **fields: object) -> View:
    known = View(me, {p.report.rank: p for p in peers}, (), "rank 0 on 10.0.0.0:29500", "", False, 0.5, 900.0)
    return replace(known, **fields)  # type: ignore[arg-type]


def verdict(known: View) -> str:
    found = judge(known, LIMITS)
    assert found is not None
    return found.text


def test_no_rank_is_blamed_while_all_make_progress() -> None:
    assert judge(view(rank(0), seen(rank(1, "backward")), seen(rank(2, "save", 599.0))), LIMITS) is None


def test_a_rank_that_waits_for_a_slow_but_living_one_does_not_end_the_job() -> None:
    assert judge(view(rank(0, "all-reduce", 5000.0), seen(rank(1, "evaluate", 20.0))), LIMITS) is None
    assert judge(view(rank(0, "all-reduce", 5000.0), seen(rank(1, OFF, 5000.0))), LIMITS) is None


def test_a_rank_that_waits_lets_the_hung_one_speak_first_and_then_names_it() -> None:
    hung = seen(rank(1, "data", 601.0))
    assert judge(view(rank(0, "all-reduce", 601.0), hung), LIMITS) is None
    assert verdict(view(rank(0, "all-reduce", 603.0), hung)) == (
        "rank 1 on worker-0 hangs in data (602 s, limit faults.stall_s=600); the others wait for it"
    )


def test_a_rank_that_waited_too_long_for_one_that_failed_or_left_says_so() -> None:
    me = rank(0, "all-reduce", 603.0)
    failed = seen(rank(1, state=FAILED, reason="rank 1 on worker-0 fails: ValueError"))
    assert verdict(view(me, failed)) == "rank 1 on worker-0 fails: ValueError"
    assert verdict(view(me, seen(rank(1, state=LEFT)))).startswith("rank 1 on worker-0 left the job in data")


def test_all_hung_ranks_are_named() -> None:
    known = view(rank(0, "data", 601.0), seen(rank(1, "all-reduce", 601.0)), seen(rank(5, "data", 602.0)))
    assert verdict(known) == (
        "rank 0 on worker-0 hangs in data (601 s), rank 5 on worker-1 hangs in data (602 s); "
        "limit faults.stall_s=600; the others wait for them"
    )


def test_where_all_wait_the_rank_that_is_furthest_behind_is_named() -> None:
    behind = seen(rank(1, "backward", 600.0, before=3))
    assert "rank 1 on worker-0 hangs in backward at step 7" in verdict(
        view(rank(0, "all-reduce", 610.0, before=4), behind, seen(rank(2, "all-reduce", 610.0, before=4)))
    )
    assert "all ranks wait for each other in backward at step 7" in verdict(
        view(rank(0, "backward", 610.0), seen(rank(1, "backward", 609.0)))
    )


# On a GPU the host only gives out work, and comes to a halt where it next needs a result: in "step".
ON_GPUS = [
    # rank 2's loader hangs, the others wait in the sums that it lacks
    (["step", "step", "data"], [603.0, 603.0, 601.0], "rank 2 on worker-0 hangs in data"),
    # rank 1's host hangs while it gives out the work of a forward pass, for example in a compiler
    (["step", "forward", "step"], [603.0, 601.0, 603.0], "rank 1 on worker-0 hangs in forward"),
    # rank 0 writes to storage that does not answer; the next sums of the others lack it
    (["save", "step", "step"], [601.0, 603.0, 603.0], "rank 0 on worker-0 hangs in save"),
    # a kernel of rank 1 never ends: no host can tell it from a sum that never ends, and none is blamed
    (["step", "step", "step"], [603.0, 603.0, 603.0], "all ranks wait for each other in step at step 7"),
]


@pytest.mark.parametrize(("phases", "seconds", "says"), ON_GPUS, ids=lambda value: str(value)[:24])
def test_who_hangs_is_told_from_who_waits_on_gpus(phases: list[str], seconds: list[float], says: str) -> None:
    """Every rank comes to the same verdict, whoever it is."""
    reports = [
        rank(number, phase, time) for number, (phase, time) in enumerate(zip(phases, seconds, strict=True))
    ]
    for me in reports:
        known = view(me, *(seen(each) for each in reports if each is not me))
        found = judge(known, LIMITS)
        assert found is None or found.text.startswith(says), found
        assert found is not None or me.waits is False or "hangs" in says
    assert any(judge(view(me, *(seen(o) for o in reports if o is not me)), LIMITS) for me in reports)


def test_a_long_step_of_gpus_is_no_hang_while_one_rank_still_works() -> None:
    compiling = seen(rank(1, "forward", 300.0))
    assert judge(view(rank(0, "step", 5000.0), compiling), LIMITS) is None


def test_nothing_outside_the_steps_counts_as_hung() -> None:
    assert judge(view(rank(0, OFF, 10_000.0)), LIMITS) is None


def test_ranks_of_a_lost_host_are_named_together() -> None:
    lost = [seen(rank(number, "backward"), silent_s=61 - number / 10) for number in (4, 5, 6)]
    assert verdict(view(rank(0), seen(rank(1)), *lost)) == (
        "ranks 4, 5, 6 on worker-1 are silent for 61 s (limit faults.peer_s=60): dead, stopped or cut off; "
        "last heard of in backward at step 7"
    )


def test_a_rank_that_hears_no_other_says_that_it_may_be_cut_off_itself() -> None:
    silent = [seen(rank(number), silent_s=61.0) for number in (4, 8)]
    text = verdict(view(rank(0), *silent, hosts_board=True))
    assert text.startswith("rank 0 on worker-0 has heard of no other rank for 61 s")
    assert "worker-0 is cut off, or all have died" in text


def test_a_board_out_of_reach_is_named_with_its_address_and_what_rank_0_last_did() -> None:
    known = view(rank(4), seen(rank(0, "save")), contact_s=61.0, trouble="Connection refused")
    assert verdict(known) == (
        "rank 0 on 10.0.0.0:29500 cannot be reached by rank 4 on worker-1 for 61 s (limit faults.peer_s=60): "
        "it is dead or stopped, or worker-1 is cut off; rank 0 was last heard of in save at step 7; "
        "Connection refused"
    )


def test_a_process_that_is_gone_is_blamed_at_once_unless_its_rank_had_ended() -> None:
    gone = seen(rank(1, "save"), process=Process.GONE)
    assert verdict(view(rank(0), gone)) == (
        "rank 1 on worker-0 (10.0.0.0, pid 101) has died: its process is gone; "
        "last heard of in save at step 7"
    )
    assert judge(view(rank(0), seen(rank(1, state=LEFT), process=Process.GONE)), LIMITS) is None


def test_a_verdict_of_another_rank_is_repeated_with_its_code() -> None:
    tripped = seen(rank(2, state=TRIPPED, reason="rank 1 on worker-0 hangs in data", code=exit_codes.RESUME))
    assert judge(view(rank(0), seen(rank(1)), tripped), LIMITS) == Verdict("rank 1 on worker-0 hangs in data")
    refused = rank(2, state=FAILED, reason="rank 2 on worker-0 fails: bad key", code=exit_codes.CONFIG)
    assert judge(view(rank(0), replace(seen(refused), age_s=6.0)), LIMITS) == Verdict(
        "rank 2 on worker-0 fails: bad key", exit_codes.CONFIG
    )


def test_a_rank_that_may_be_failing_alike_gets_time_to_say_so_itself() -> None:
    failed = seen(rank(2, state=FAILED, reason="rank 2 on worker-0 fails: NonFiniteLoss"))
    assert judge(view(rank(0), failed), LIMITS) is None
    assert judge_failure(view(rank(0), failed), LIMITS) is not None


def test_after_a_failed_collective_a_few_missed_beats_are_enough() -> None:
    known = view(rank(0, "backward"), seen(rank(5, "backward"), silent_s=6.0))
    assert judge(known, LIMITS) is None
    found = judge_failure(known, LIMITS)
    assert found is not None
    assert found.text.startswith("rank 5 on worker-1 (10.0.0.1, pid 105) is silent for 6.0 s")


def test_a_failed_collective_without_a_silent_rank_is_told_as_it_is() -> None:
    known = view(rank(0, "backward", before=3), seen(rank(1, "data", before=0)))
    text = no_culprit(known, RuntimeError("Timed out waiting 6000ms\nframe #0")).text
    assert "although every rank still reports; furthest behind: rank 1 on worker-0 in data at step 7" in text
    assert text.endswith("RuntimeError: Timed out waiting 6000ms")


def test_ranks_that_never_reported_are_named() -> None:
    assert judge(view(rank(0), missing=(2, 3), watched_s=500.0), LIMITS) is None
    assert verdict(view(rank(0), missing=(2, 3))).startswith(
        "ranks 2, 3 said nothing since the start, 900 s ago"
    )


def test_the_table_has_a_line_for_every_rank() -> None:
    known = view(rank(1, "all-reduce", 612.0, collective="sum"), seen(rank(0), silent_s=60.0), missing=(2,))
    assert known.table() == [
        "rank 0 (host worker-0, pid 100): in data since 61 s at step 7, silent for 60 s",
        "rank 1 (host worker-0, pid 101): in all-reduce since 612 s at step 7, waiting in a sum",
        "rank 2: has not reported since the start",
    ]


def test_a_report_survives_the_board() -> None:
    report = rank(3, state=FAILED, reason='a "reason"\n', collective="barrier")
    assert Heartbeat.from_text(report.to_text()) == report


@pytest.mark.process
def test_the_kernel_knows_a_stopped_a_killed_and_another_process_of_that_pid() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        born = proc.born(child.pid)
        assert proc.look(child.pid, born) is Process.ALIVE
        assert proc.look(child.pid, born + 1) is Process.GONE
        wait_for(lambda: proc.descendants(os.getpid())[child.pid] == "sleep")
        child.send_signal(signal.SIGSTOP)
        wait_for(lambda: proc.look(child.pid, born) is Process.STOPPED)
        child.kill()
        wait_for(lambda: proc.look(child.pid, born) is Process.GONE)  # a zombie: its parent did not wait
    finally:
        child.kill()
        child.wait()


def wait_for(condition: object, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_board_is_read_without_waiting_for_ranks_that_never_posted() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def board(number: int) -> Board:
        def connect() -> dist.Store:
            return dist.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)

        return Board(World(number, number, 3), "start", connect, "rank 0", hosted_here=number == 0)

    boards = [board(number) for number in range(3)]
    assert boards[0].read() == {}
    boards[2].post("first")
    boards[2].post("second")
    assert boards[0].read() == {2: "second"}
    boards[0].post("mine")
    assert boards[0].read() == boards[2].read() == {0: "mine", 2: "second"}


@pytest.mark.process
def test_a_board_whose_store_has_gone_says_so() -> None:
    program = (
        "import sys, torch.distributed as dist\n"
        "store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False)\n"
        "print(store.port, flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    host = subprocess.Popen([sys.executable, "-c", program], text=True, **pipes)  # type: ignore[call-overload]
    try:
        port = int(host.stdout.readline())
        board = Board(
            World(1, 1, 2),
            "start",
            lambda: dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False),
            f"rank 0 on 127.0.0.1:{port}",
            hosted_here=False,
        )
        board.post("here")
    finally:
        host.kill()
        host.communicate()
    with pytest.raises(BoardUnreachable, match=rf"the store of rank 0 on 127\.0\.0\.1:{port} says: "):
        board.read()


@pytest.mark.parametrize(
    "message",
    [  # as gloo and the store said them when ranks were killed, stopped, or left; the last is gloo's wording
        "[/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:204",
        "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 6000ms for recv",
        "[/gloo/transport/tcp/pair.cc:547] Read error [10.0.0.2]:9: Connection reset by peer",
        "[/gloo/transport/tcp/pair.cc:547] Read error [10.0.0.2]:9: No route to host",
    ],
)
def test_errors_that_a_dead_peer_causes_are_known(message: str) -> None:
    assert failures.is_peer_failure(RuntimeError(message))
    outer = ValueError("cannot save")
    outer.__cause__ = RuntimeError(message)
    assert failures.is_peer_failure(outer)


def test_a_store_that_times_out_is_a_failure_of_a_peer_and_a_users_mistake_is_not() -> None:
    assert failures.is_peer_failure(dist.DistStoreError("wait timeout after 6000ms, keys: /default_pg/0"))
    assert failures.is_peer_failure(dist.DistNetworkError("Failed to recv, got 0 bytes"))
    assert not failures.is_peer_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not failures.is_peer_failure(FileNotFoundError("Connection closed by peer"))


def test_a_watchdog_stops_quickly_and_blames_no_rank_for_an_error_of_its_own(tmp_path: Path) -> None:
    world = World()
    began = time.monotonic()
    with Watchdog(world, open_board(world), 600, 60, tmp_path) as watchdog:
        watchdog.phase("data", 1)
        assert watchdog.blame(ValueError("bad")) is None
    assert time.monotonic() - began < 60  # faults.peer_s; it takes a moment
    assert list(tmp_path.iterdir()) == []


class Clock:
    """The time since the machine started, which a test can move on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


def test_a_process_that_was_stopped_says_its_last_words_all_the_same(tmp_path: Path) -> None:
    """Otherwise the others count it as dead: it has ended without saying that it leaves."""
    board, clock = open_board(World()), Clock()
    with Watchdog(World(), board, 600, 60, tmp_path, clock=clock) as watchdog:
        deadline = time.monotonic() + 60
        while not board.read() or watchdog.exchange.asking:
            assert time.monotonic() < deadline, "no first word"
            time.sleep(0.01)
        clock.ahead = 100.0  # as if it went on after a SIGSTOP, and this thread were the first
    assert Heartbeat.from_text(board.read()[0]).state == LEFT


LAST_WORK = """
import sys, time
from pathlib import Path
from ppar_dist.distributed import board
from ppar_dist.distributed import rendezvous
from ppar_dist.watchdog import Watchdog

def work(seconds):
    time.sleep(0.5)
    Path(sys.argv[1]).write_text(f"{seconds:g}")

world = rendezvous.join({})
with Watchdog(world, board.open_board(world), 1.0, 1.5, Path(sys.argv[2])) as watch:
    watch.before_end(work)
    watch.phase("data", 3)
    time.sleep(60)
"""


@pytest.mark.process
def test_a_write_under_way_is_waited_for_before_the_end(tmp_path: Path) -> None:
    note = tmp_path / "note"
    command = [sys.executable, "-c", LAST_WORK, str(note), str(tmp_path / "logs")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 75, done.stderr
    assert note.read_text() == "1.5"  # as long as peers wait for a sign of life


def test_a_phase_that_reads_makes_progress_while_requests_to_storage_end() -> None:
    now, requests = [0.0], [0]
    status = Status(World(), lambda: now[0], lambda: requests[0])

    def seconds(phase: str, at: float, ended: int) -> float:
        status.enter(phase, 1)
        now[0] += at
        requests[0] += ended
        return status.heartbeat(1, heard=False).seconds

    assert seconds("data", 500.0, 1) == 0.0
    assert seconds("data", 500.0, 0) == 500.0
    assert seconds("forward", 500.0, 1) == 500.0, "requests of a loader say nothing of a forward pass"
