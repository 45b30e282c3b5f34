"""The audit of a ledger accepts exactly the histories in which every position came once and in order."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ppar_dist import checkpoint
from ppar_dist.errors import UserError
from ppar_dist.run.audit import audit
from ppar_dist.run.ledger import Ledger, next_attempt
from ppar_dist.run.state import TrainState

BATCH = 6


def attempt(
    run: Path,
    ranks: int,
    start: int,
    steps: int,
    over: int = 0,
    lag: int = 0,
    names: Callable[[int], str] = "day/s{}".format,
) -> None:
    """An attempt from step ``start`` over ``steps`` steps; the last rank is killed ``lag`` steps earlier."""
    number = next_attempt(run)
    state = TrainState(step=start, samples_seen=start * BATCH + over, stepped_over=over)
    part = BATCH // ranks
    for rank in range(ranks):
        ledger = Ledger(run, number, rank, ranks, state)
        for step in range(start, start + steps - (lag if rank == ranks - 1 else 0)):
            first = step * BATCH + over + rank * part
            positions = range(first, first + part)
            ledger.write(step + 1, positions, [names(position) for position in positions])
        ledger.close()


def publish(run: Path, state: TrainState) -> Path:
    """A checkpoint of the run's position alone."""
    texts = {"state.json": json.dumps(state.to_json())}
    return checkpoint.publish(run, checkpoint.Snapshot(state.step, {}, texts, {}))


def test_an_undisturbed_run(tmp_path: Path) -> None:
    attempt(tmp_path, 2, 0, 5)
    found = audit(tmp_path)
    assert (found.problems, found.steps, found.positions, found.repeated_steps) == ([], 5, 30, 0)
    assert "every position was consumed exactly once, in order" in found.describe()


def test_kills_and_other_world_sizes(tmp_path: Path) -> None:
    """Work that was lost is done again: once in the history, however often it was tried."""
    attempt(tmp_path, 1, 0, 7)
    attempt(tmp_path, 2, 4, 5, lag=1)
    attempt(tmp_path, 3, 4, 2)
    attempt(tmp_path, 3, 4, 0)
    attempt(tmp_path, 1, 2, 8)  # a damaged checkpoint: further back than before
    found = audit(tmp_path)
    assert (found.problems, found.steps, found.positions) == ([], 10, 60)
    assert found.world_sizes == [1, 2, 3, 3, 1]
    assert (found.repeated_steps, found.changed_repeats) == (3 + 2 + 6, 0)


def test_data_that_was_stepped_over(tmp_path: Path) -> None:
    attempt(tmp_path, 2, 0, 9)
    attempt(tmp_path, 2, 4, 3, over=5 * BATCH)
    found = audit(tmp_path)
    assert (found.problems, found.steps, found.stepped_over) == ([], 7, 30)
    assert found.changed_repeats == 3


def test_a_rollback_after_which_nothing_was_done_yet(tmp_path: Path) -> None:
    """The checkpoint that it went back to is behind the data stepped over, at once."""
    attempt(tmp_path, 2, 0, 9)
    attempt(tmp_path, 2, 4, 0, over=5 * BATCH)
    publish(tmp_path, TrainState(step=4, samples_seen=9 * BATCH, stepped_over=5 * BATCH))
    found = audit(tmp_path)
    assert (found.problems, found.steps, found.stepped_over) == ([], 4, 30)


def test_a_damaged_checkpoint_is_no_measure_of_the_ledger(tmp_path: Path) -> None:
    attempt(tmp_path, 2, 0, 4)
    publish(tmp_path, TrainState(step=4, samples_seen=24))
    folder = publish(tmp_path, TrainState(step=8, samples_seen=48))
    size = (folder / "state.json").stat().st_size
    (folder / "state.json").write_bytes(b"x" * size)
    assert audit(tmp_path).problems == []


@pytest.mark.parametrize(
    ("step", "seen", "problem"),
    [
        (4, 24, None),
        (2, 12, None),  # killed after its last checkpoint
        (8, 48, "steps 5 to 8 of step-00000008 are not in the ledger"),
        (4, 30, "step-00000004 stands at position 30, the ledger ends at 24"),
    ],
)
def test_a_ledger_proves_what_the_newest_checkpoint_holds(
    tmp_path: Path, step: int, seen: int, problem: str | None
) -> None:
    attempt(tmp_path, 2, 0, 4)
    publish(tmp_path, TrainState(step=step, samples_seen=seen))
    found = audit(tmp_path)
    assert [problem is not None and problem in said for said in found.problems] == [True] * bool(problem)


def test_other_samples_at_the_same_positions_are_noticed(tmp_path: Path) -> None:
    attempt(tmp_path, 1, 0, 4)
    attempt(tmp_path, 2, 2, 4, names="night/s{}".format)
    assert audit(tmp_path).changed_repeats == 2


def skip_a_step(run: Path) -> None:
    attempt(run, 2, 0, 4)
    attempt(run, 2, 5, 2)


def lose_positions(run: Path) -> None:
    attempt(run, 2, 0, 4)
    path = run / "ledger" / "attempt-00001" / "rank-00001.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[3])
    record["positions"][0] += 1
    lines[3] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")


def move_the_position(run: Path) -> None:
    attempt(run, 1, 0, 4)
    number = next_attempt(run)
    Ledger(run, number, 0, 1, TrainState(step=4, samples_seen=25)).write(5, range(25, 31), ["a"] * 6)


def lose_a_rank(run: Path) -> None:
    attempt(run, 3, 0, 4)
    attempt(run, 3, 4, 2)
    (run / "ledger" / "attempt-00001" / "rank-00001.jsonl").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (skip_a_step, "attempt 1: step 5 was not noted by all 2 ranks"),
        (lose_positions, r"attempt 1, step 3: positions \[12, 13, 14, 16, 16, 17\], expected 12 on"),
        (move_the_position, "attempt 2 begins at position 25, expected 24"),
        (lose_a_rank, "attempt 1: step 1 was not noted by all 3 ranks"),
    ],
)
def test_gaps_repeats_and_lost_records_are_problems(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(tmp_path)
    problems = audit(tmp_path).problems
    assert any(re.search(message, problem) for problem in problems), problems
    assert "exactly once" not in audit(tmp_path).describe()


def test_a_line_cut_off_by_a_kill_is_no_record(tmp_path: Path) -> None:
    attempt(tmp_path, 1, 0, 4)
    path = tmp_path / "ledger" / "attempt-00001" / "rank-00000.jsonl"
    path.write_text(path.read_text()[:-20])
    assert (audit(tmp_path).steps, audit(tmp_path).problems) == (3, [])


def test_damage_within_and_a_run_without_ledger_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no ledger; train it with train\.ledger=true"):
        audit(tmp_path)
    attempt(tmp_path, 1, 0, 4)
    path = tmp_path / "ledger" / "attempt-00001" / "rank-00000.jsonl"
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(UserError, match="is damaged"):
        audit(tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)


@pytest.mark.process
@pytest.mark.parametrize("full_at_start", [False, True])
def test_a_full_disk_delays_records_and_loses_none(
    small: Path, full_at_start: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The failure cuts a line off; nothing is torn when there is room again."""
    ballast = small / "ballast"
    if full_at_start:
        ballast.write_bytes(b"\0" * 65536)
    ledger = Ledger(small, 1, 0, 1, TrainState())
    for step in range(1, 401):
        if step == 300:
            assert "cannot be written (No space left on device): records wait" in caplog.text
            ballast.unlink(missing_ok=True)
            os.truncate(small / "other", 0)
        if step == 100:
            with suppress(OSError), (small / "other").open("wb", buffering=0) as other:
                while other.write(b"\0" * 1000) == 1000:
                    pass
        ledger.write(step, range(6 * step - 6, 6 * step), ["day/s"] * 6)
    ledger.close()
    assert caplog.text.count("records wait") == 1
    assert "can be written again: nothing was lost" in caplog.text
    found = audit(small)
    assert (found.problems, found.steps, found.positions) == ([], 400, 2400)


def test_a_deleted_file_is_created_again_and_its_steps_lack_proof(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 1, 0, 1, TrainState())
    for step in range(1, 9):
        if step == 6:
            shutil.rmtree(tmp_path / "ledger")
        ledger.write(step, range(6 * step - 6, 6 * step), ["day/s"] * 6)
    ledger.close()
    found = audit(tmp_path)
    assert [problem for problem in found.problems if "not noted" in problem] == [
        f"attempt 1: step {step} was not noted by all 1 ranks" for step in range(1, 6)
    ]
    assert found.steps == 3


@pytest.mark.process
def test_what_still_waits_at_the_end_is_told(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(small, 1, 0, 1, TrainState())
    with suppress(OSError):
        (small / "ballast").write_bytes(b"\0" * 65536)
    for step in range(1, 101):
        ledger.write(step, range(6 * step - 6, 6 * step), ["day/s"] * 6)
    ledger.close()
    assert "bytes: no proof of these steps" in caplog.text
    found = audit(small)
    assert 0 < found.steps < 100
