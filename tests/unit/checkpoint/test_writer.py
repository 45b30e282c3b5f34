"""The thread that writes checkpoints: one at a time, nothing lost, and training continues meanwhile."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import ItemsView
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ppar_dist import checkpoint
from ppar_dist.checkpoint import Snapshot, Writer

WAIT_S = 60


class Gate(dict[str, str]):
    """The text files of a snapshot on a storage that answers when told to."""

    def __init__(self) -> None:
        super().__init__({"state.json": "{}"})
        self.opened, self.reached = threading.Event(), threading.Event()

    def items(self) -> ItemsView[str, str]:
        self.reached.set()
        assert self.opened.wait(WAIT_S)
        return super().items()


def snapshot(step: int, texts: dict[str, str] | None = None) -> Snapshot:
    tensors = {"model.safetensors": {"w": torch.full((1000,), float(step))}}
    return Snapshot(step, tensors, texts or {"state.json": "{}"}, {})


@pytest.mark.parametrize("background", [True, False])
def test_what_was_submitted_is_published_and_its_outcome_told_once(tmp_path: Path, background: bool) -> None:
    writer = Writer(tmp_path, background)
    assert writer.poll() is None
    writer.submit(snapshot(10))
    outcome = writer.finish()
    assert outcome is not None
    assert (outcome.step, outcome.error) == (10, None)
    assert outcome.folder == checkpoint.find_checkpoint(tmp_path)
    assert outcome.bytes == checkpoint.read_manifest(outcome.folder)["bytes"] > 4000
    assert 0 < outcome.seconds < WAIT_S
    assert writer.finish() is None
    assert not writer.busy


def test_a_write_goes_on_beside_its_caller_and_a_second_waits_for_it(tmp_path: Path) -> None:
    writer, gate = Writer(tmp_path), Gate()
    assert writer.submit(snapshot(10, gate)) < WAIT_S
    assert gate.reached.wait(WAIT_S)
    assert writer.busy
    assert writer.poll() is None  # does not wait
    threading.Timer(0.3, gate.opened.set).start()
    assert writer.submit(snapshot(20)) > 0
    assert gate.opened.is_set()  # it has waited
    steps = [outcome.step for outcome in iter(writer.finish, None)]
    assert steps == [10, 20]  # neither outcome is lost
    assert [checkpoint.step_of(folder) for folder in checkpoint.list_checkpoints(tmp_path)] == [10, 20]


@pytest.mark.parametrize("background", [True, False])
def test_a_failure_is_an_outcome_and_the_next_write_is_tried(tmp_path: Path, background: bool) -> None:
    (tmp_path / "run").write_text("a file where the run's folder should be")
    writer = Writer(tmp_path / "run", background)
    writer.submit(snapshot(10))
    outcome = writer.finish()
    assert outcome is not None
    assert (outcome.folder, outcome.bytes) == (None, 0)
    assert outcome.error is not None
    assert outcome.error.startswith("checkpoint step-00000010 was not written: ")
    assert "\n" not in outcome.error
    (tmp_path / "run").unlink()
    writer.submit(snapshot(20))
    outcome = writer.finish()
    assert outcome is not None
    assert outcome.error is None


@pytest.mark.parametrize("background", [True, False])
def test_what_follows_a_write_is_done_in_its_thread_and_cannot_spoil_it(
    tmp_path: Path, background: bool, caplog: pytest.LogCaptureFixture
) -> None:
    writer, seen = Writer(tmp_path, background), []

    def then(folder: Path) -> None:
        seen.append((folder.name, threading.current_thread() is threading.main_thread()))
        raise OSError("no")

    writer.submit(snapshot(10), then)
    outcome = writer.finish()
    assert outcome is not None
    assert outcome.error is None
    assert seen == [("step-00000010", not background)]
    assert "after checkpoint 10: OSError: no" in caplog.text


def test_closing_waits_and_tells_what_nobody_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer, gate = Writer(tmp_path), Gate()
    writer.submit(snapshot(10, gate))
    threading.Timer(0.1, gate.opened.set).start()
    writer.close()
    assert checkpoint.find_checkpoint(tmp_path) is not None
    writer.submit(Snapshot(20, {}, {}, {}))
    with caplog.at_level(logging.WARNING):
        writer.close()
    assert "step-00000020 was not written" in caplog.text


def test_training_goes_on_while_a_thread_writes(tmp_path: Path) -> None:
    """Python's lock is free while a file is written, synced and hashed: no thread is blocked for long.

    Three times, because a busy machine may hold a thread as well.
    """
    tensors = {"model.safetensors": {str(i): torch.randn(1_000_000) for i in range(40)}}  # 160 MB
    shares = []
    while not shares or (min(shares) > 0.5 and len(shares) < 3):
        writer = Writer(tmp_path / str(len(shares)))
        writer.submit(Snapshot(10, tensors, {}, {}))
        turns, longest, last = 0, 0.0, time.perf_counter()
        while writer.busy:
            now = time.perf_counter()
            turns, longest, last = turns + 1, max(longest, now - last), now
        outcome = writer.finish()
        assert outcome is not None
        assert outcome.error is None
        assert outcome.bytes > 160_000_000
        shares.append(longest / outcome.seconds if turns > 100 else 1.0)
    assert min(shares) <= 0.5, "the writing thread holds Python's lock"


@pytest.mark.process
def test_a_process_that_ends_without_closing_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    """As when a rank gives up: the thread dies with the process, in the middle of a write."""
    good = checkpoint.publish(tmp_path, snapshot(10))
    child = os.fork()
    if child == 0:
        writer, gate = Writer(tmp_path), Gate()
        writer.submit(snapshot(20, gate))
        gate.reached.wait(WAIT_S)
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "checkpoints" / ".writing-step-00000020" / "model.safetensors").exists()
    assert checkpoint.find_checkpoint(tmp_path) == good
    folder = checkpoint.publish(tmp_path, snapshot(20))
    assert load_file(folder / "model.safetensors")["w"][0] == 20
