"""The disk under run.dir."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.doctor.worlds import Doctor, begun, last_manifest, note


def test_a_run_dir_below_a_file(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    checks = doctor(f"run.dir={tmp_path / 'taken' / 'run'}")
    assert checks["run folder"]["status"] == "failure"
    assert "taken is not a directory" in checks["run folder"]["found"]


@pytest.mark.process
def test_a_full_disk_in_memory(doctor: Doctor, disk: Callable[[str], Path]) -> None:
    checks = doctor(f"run.dir={disk('size=300k,nr_inodes=12') / 'run'}")
    assert checks["file system"]["status"] == "warning"
    assert checks["file system"]["facts"]["type"] == "tmpfs"
    for name, message in (("space", "short"), ("inodes", "are needed"), ("save time", "No space left")):
        assert checks[name]["status"] == "failure", name
        assert message in checks[name]["found"]


@pytest.mark.process
def test_a_read_only_disk(doctor: Doctor, disk: Callable[[str], Path]) -> None:
    checks = doctor(f"run.dir={disk('ro') / 'run'}")
    assert checks["run folder"]["status"] == "failure"
    assert "Read-only file system" in checks["run folder"]["found"]


def test_the_newest_checkpoint_gives_size_and_time_of_a_save(
    doctor: Doctor, blocks: Path, tmp_path: Path
) -> None:
    run = begun(blocks, tmp_path)
    note(run, seconds=100.0)
    checks = doctor()
    files = json.loads(last_manifest(run).read_text())["files"]
    written = sum(entry["bytes"] for entry in files.values())
    assert checks["space"]["facts"]["checkpoint_bytes"] == written
    assert checks["save time"]["status"] == "warning"
    assert "the newest took 100 s" in checks["save time"]["found"]
