"""Storage that is really full, read-only or missing: a file system of a few MB, mounted for the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ppar_dist import checkpoint
from ppar_dist.checkpoint import CheckpointError, Snapshot

MB = 250_000  # fp32 values


def snapshot(step: int, megabytes: float) -> Snapshot:
    tensors = {name: torch.full((int(megabytes * MB / 2),), float(step)) for name in ("a", "b")}
    return Snapshot(step, {"model.safetensors": tensors}, {"state.json": "{}"}, {})


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"no file system may be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=60)


def free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_no_waste(small: Path) -> None:
    good = checkpoint.publish(small / "run", snapshot(10, 3))
    before = free(small)
    with pytest.raises(CheckpointError, match=r"step-00000020 was not written: .*No space left"):
        checkpoint.publish(small / "run", snapshot(20, 6))
    assert free(small) == before
    assert checkpoint.find_checkpoint(small / "run") == good
    assert checkpoint.verify(checkpoint.publish(small / "run", snapshot(20, 3))) == []


def test_a_disk_without_room_for_the_manifest_publishes_nothing(small: Path) -> None:
    """Every amount of space left over, page by page, near the point where the save just fits."""
    run = small / "run"
    good = checkpoint.publish(run, snapshot(10, 1))
    filler, errors = small / "filler", []
    for pages in range(24):
        filler.unlink(missing_ok=True)
        shutil.rmtree(run / "checkpoints" / "step-00000020", ignore_errors=True)
        room = 1_000_000 + 4096 * pages - 24_000
        filler.write_bytes(b"\0" * (free(small) - room))
        errors.append(error_of(run, snapshot(20, 1)))
        assert checkpoint.list_checkpoints(run)[0] == good
        assert len(checkpoint.list_checkpoints(run)) == (1 if errors[-1] else 2)
        found = checkpoint.find_checkpoint(run)
        assert found is not None
        assert checkpoint.verify(found) == []
    assert all("No space left" in error for error in errors if error)
    assert 4 < sum(bool(error) for error in errors) < 20


def test_a_read_only_file_system_is_told_and_written_again_when_it_can_be(small: Path) -> None:
    good = checkpoint.publish(small / "run", snapshot(10, 1))
    remount(small, "ro")
    with pytest.raises(CheckpointError, match="Read-only file system"):
        checkpoint.publish(small / "run", snapshot(20, 1))
    with checkpoint.opened(small / "run") as folder:  # reading does without writing
        assert folder == good
    assert checkpoint.retain(small / "run", 1) == []
    remount(small, "rw")
    assert checkpoint.verify(checkpoint.publish(small / "run", snapshot(20, 1))) == []


def test_an_old_checkpoint_that_cannot_be_deleted_is_a_warning(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = checkpoint.publish(small / "run", snapshot(10, 1))
    checkpoint.publish(small / "run", snapshot(20, 1))
    remount(small, "ro")
    assert checkpoint.retain(small / "run", 1) == []
    assert "could not be deleted" in caplog.text
    assert checkpoint.verify(old) == []
    remount(small, "rw")
    assert checkpoint.retain(small / "run", 1) == [old]


def test_a_run_folder_that_was_deleted_is_created_again(tmp_path: Path) -> None:
    checkpoint.publish(tmp_path / "run", snapshot(10, 1))
    shutil.rmtree(tmp_path / "run")
    folder = checkpoint.publish(tmp_path / "run", snapshot(20, 1))
    assert checkpoint.find_checkpoint(tmp_path / "run") == folder


def test_a_run_folder_deleted_again_and_again_during_saves_fails_them_cleanly(tmp_path: Path) -> None:
    """Whatever the moment: a save either is whole or says that it was not written."""
    run, stop, errors = tmp_path / "run", threading.Event(), []

    def delete() -> None:
        while not stop.is_set():
            with suppress(OSError):  # a file made meanwhile
                shutil.rmtree(run)
            time.sleep(0.002)

    vandal = threading.Thread(target=delete)
    vandal.start()
    try:
        until = time.monotonic() + 20
        while len(errors) < 20 and time.monotonic() < until:
            errors += filter(None, [error_of(run, snapshot(10, 1))])
    finally:
        stop.set()
        vandal.join(60)
    assert errors
    assert all("step-00000010 was not written" in error for error in errors)
    folder = checkpoint.publish(run, snapshot(20, 1))
    assert checkpoint.find_checkpoint(run) == folder


def error_of(run: Path, written: Snapshot) -> str | None:
    """What a save raises; None if it is published."""
    try:
        checkpoint.publish(run, written)
    except CheckpointError as error:
        return str(error)
    return None


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True, timeout=60)
