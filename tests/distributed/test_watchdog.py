"""Dead and hung ranks: real gloo ranks go wrong, and the others must say who, and end with 75 in time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.faults.watchdog import CASES, Case, Outcome, run_case
from tests.ranks import TIMEOUT_S, rank_environment

STALL_S, PEER_S = 3.0, 2.5
SLACK_S = 20.0  # for a busy machine
SCENARIOS = {
    "hang": (2, r"rank 1 on \S+ hangs in data \(.* s, limit faults.stall_s=3\); the others wait for it"),
    "hang-read": (2, r"rank 1 on \S+ hangs in data"),
    "hang-loader": (2, r"rank 1 on \S+ hangs in data"),
    "hang-step": (3, r"rank 1 on \S+ hangs in step at step 3"),
    "hang-save": (3, r"rank 1 on \S+ hangs in save"),
    "hang-lock": (2, r"rank 1 on \S+ \(127.0.0.1, pid \d+\) is silent .* in forward at step 3"),
    "stop": (2, r"rank 1 on \S+ \(127.0.0.1, pid \d+\) is stopped, as by SIGSTOP.* in backward at step 3"),
    "stop-0": (
        3,
        r"rank 0 on 127.0.0.1:\d+ cannot be reached .* in backward at step 3, its process is stopped",
    ),
    "kill": (3, r"rank 1 on \S+ \(127.0.0.1, pid \d+\) has died: .* in backward at step 3"),
    "kill-0": (3, r"rank 0 on \S+ \(127.0.0.1, pid \d+\) has died: .* in backward at step 3"),
    "fail": (2, r"rank 1 on \S+ fails: ValueError: shard left-000003.tar holds no samples"),
    "fail-0": (3, r"rank 0 on \S+ fails: ValueError: shard left-000003.tar holds no samples"),
    "leave": (2, r"rank 1 on \S+ left the job in data at step 3"),
}
STACKS = {
    "hang": "hang_in_python",
    "hang-read": "hang_in_read",
    "hang-loader": "hang_in_loader",
    "hang-step": "hang_in_python",
    "hang-save": "hang_in_python",
    "hang-lock": "hang_with_the_lock",
}


@dataclass
class Runs:
    """Scenarios under way, a few at a time: they mostly wait."""

    root: Path
    pool: ThreadPoolExecutor
    futures: dict[str, Future[Outcome]] = field(default_factory=dict)

    def start(self, name: str, case: Case, ranks: int, *options: str) -> None:
        arguments = (case, ranks, STALL_S, PEER_S, self.root / name, options)
        self.futures[name] = self.pool.submit(run_case, *arguments)

    def outcome(self, name: str) -> Outcome:
        return self.futures[name].result(timeout=1200)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    root = tmp_path_factory.mktemp("watchdog")
    with ThreadPoolExecutor(3) as pool:
        started = Runs(root, pool)
        for name, (ranks, _) in SCENARIOS.items():
            started.start(name, CASES[name], ranks)
        os.mkfifo(root / "fifo")
        (root / "storage").mkdir()
        os.mkfifo(root / "storage" / "watchdog-rank-00001.txt")
        started.start("storage-hangs", CASES["hang"], 2, "--folder", str(root / "storage"))
        started.start("no-folder", CASES["hang"], 2, "--folder", str(root / "fifo" / "logs"))
        started.start("evaluation", Case("no fault", "none"), 2, "--evaluation", "4.5")
        started.start("alone", Case("alone", "hang", rank=0), 1)
        yield started


def text_of(outcome: Outcome) -> str:
    return "\n".join(f"--- rank {rank}\n{text}" for rank, text in outcome.output.items())


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_survivor_names_the_culprit_and_ends_with_75_in_time(runs: Runs, name: str) -> None:
    outcome, (ranks, expected), faulty = runs.outcome(name), SCENARIOS[name], CASES[name].rank
    for rank in set(range(ranks)) - {faulty}:
        assert outcome.codes[rank] == 75, text_of(outcome)
        assert re.search(expected, outcome.named(rank)), text_of(outcome)
        assert outcome.seconds[rank] < STALL_S + PEER_S + SLACK_S
    assert not outcome.leftovers


@pytest.mark.parametrize("name", STACKS)
def test_the_stacks_of_a_hung_rank_show_the_function_where_it_hangs(runs: Runs, name: str) -> None:
    output = runs.outcome(name).output[CASES[name].rank]
    assert re.search(rf"faulty_rank.py\", line \d+ in {STACKS[name]}\n", output), output


def test_a_hung_rank_ends_itself_and_leaves_its_verdict_and_stacks_in_the_run_folder(runs: Runs) -> None:
    outcome = runs.outcome("hang")
    assert outcome.codes == {0: 75, 1: 75}
    for rank, function in ((0, "in sum"), (1, "in hang_in_python")):
        text = (runs.root / "hang" / "logs" / f"watchdog-rank-{rank:05d}.txt").read_text()
        assert re.match(r"\d{4}-\d\d-\d\dT", text)
        assert "rank 1 on " in text
        assert function in text
        assert re.search(
            r"rank 0 \(host \S+, pid \d+\): in all-reduce since .* at step 3, waiting in a sum", text
        )
        assert re.search(r"rank 1 \(host \S+, pid \d+\): in data since .* at step 3", text)


def test_a_hung_loader_worker_is_listed_and_does_not_outlive_its_rank(runs: Runs) -> None:
    outcome = runs.outcome("hang-loader")
    assert outcome.codes[1] == 75
    found = re.search(r"processes that this rank started: (\d+) \(", outcome.output[1])
    assert found, outcome.output[1]
    assert not Path("/proc", found[1], "exe").exists()


def test_a_run_folder_whose_storage_hangs_delays_the_end_but_does_not_prevent_it(runs: Runs) -> None:
    outcome = runs.outcome("storage-hangs")
    assert outcome.codes == {0: 75, 1: 75}, text_of(outcome)
    assert "watchdog-rank-00001.txt could not be written in 3 s: its storage hangs" in outcome.output[1]
    assert "hangs in data" in outcome.named(1)
    assert outcome.seconds[1] < STALL_S + PEER_S + SLACK_S


def test_a_run_folder_that_cannot_be_made_is_reported(runs: Runs) -> None:
    outcome = runs.outcome("no-folder")
    assert outcome.codes == {0: 75, 1: 75}, text_of(outcome)
    assert re.search(r"cannot write .*/fifo/logs/watchdog-rank-00001.txt: Not a directory", outcome.output[1])


def test_a_long_evaluation_that_makes_progress_is_no_hang_nor_is_waiting_for_it(runs: Runs) -> None:
    outcome = runs.outcome("evaluation")
    assert outcome.codes == {0: 0, 1: 0}, text_of(outcome)
    assert "watchdog" not in text_of(outcome)
    assert not outcome.leftovers


def test_a_rank_alone_is_watched_too(runs: Runs) -> None:
    outcome = runs.outcome("alone")
    assert outcome.codes == {0: 75}, text_of(outcome)
    assert re.fullmatch(r"rank 0 on \S+ hangs in data \(.* s, limit faults.stall_s=3\)", outcome.named(0))
    assert "in hang_in_python" in outcome.output[0]


def test_under_torchrun_each_start_has_a_board_of_its_own(tmp_path: Path) -> None:
    # One restart: the agent keeps its store, with the verdict of the first start in it.
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    limits = ["--stall", str(STALL_S), "--peer", str(PEER_S), "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "benchmarks.faults.faulty_rank", "hang", *limits],
        env=rank_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr  # torchrun's own code; it shows those of the ranks
    assert "exitcode  : 75" in done.stderr
    text = (tmp_path / "watchdog-rank-00001.txt").read_text()
    assert len(re.findall(r"^ppar-dist watchdog: rank 1 on \S+ hangs in data", text, re.MULTILINE)) == 2
    assert len(set(re.findall(r"rank 1 \(host \S+, pid (\d+)\)", text))) == 2
