"""Checkpoints are whole or absent; only whole ones are found, and none goes that somebody needs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ppar_dist import checkpoint
from ppar_dist.checkpoint import CheckpointError, CheckpointGone, Snapshot
from ppar_dist.checkpoint.layout import sealed
from ppar_dist.errors import UserError

WEIGHTS = "model.safetensors"


def snapshot(step: int, value: float = 0.0, best: int = 10) -> Snapshot:
    tensors = {WEIGHTS: {"w": torch.full((1000,), value)}, "rng.safetensors": {"rank-00000": torch.zeros(3)}}
    return Snapshot(
        step, tensors, {"state.json": json.dumps({"step": step, "best_step": best})}, {"world_size": 1}
    )


def publish(run: Path, *steps: int, value: float = 0.0) -> Path:
    return [checkpoint.publish(run, snapshot(step, value)) for step in steps][-1]


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def relist(folder: Path, **files: object) -> None:
    """Write other entries into the manifest."""
    manifest = checkpoint.read_manifest(folder)
    manifest["files"] |= files
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, object]) -> None:
    """One that says of itself that nobody changed it."""
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))


def change_a_fact(folder: Path) -> None:
    manifest = checkpoint.read_manifest(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest | {"world_size": 4}))


def leave_a_file_out(folder: Path) -> None:
    manifest = checkpoint.read_manifest(folder)
    del manifest["files"][WEIGHTS]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / WEIGHTS).unlink()


def test_what_was_published_verifies_and_is_the_latest(tmp_path: Path) -> None:
    newest = publish(tmp_path, 10, 20, value=7)
    assert checkpoint.verify(newest) == []
    assert checkpoint.find_checkpoint(tmp_path) == newest
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00000020\n"
    assert load_file(newest / WEIGHTS)["w"].tolist() == [7] * 1000


def test_the_manifest_tells_what_lies_on_disk(tmp_path: Path) -> None:
    folder = publish(tmp_path, 10)
    manifest = checkpoint.read_manifest(folder)
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    assert (manifest["format"], manifest["world_size"]) == (4, 1)
    assert manifest["bytes"] == sum(map(len, found.values()))
    assert 0 <= manifest["seconds"] < 60
    assert manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in found.items()
    }


def test_all_files_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = publish(tmp_path, 10)
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o640"}


def link_out(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


def swap_for_fifo(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / WEIGHTS).write_bytes(b"short"), "has 5 bytes, 4072 were written"),
        (lambda f: (f / WEIGHTS).write_bytes(b"x" * 4072), "differs from what was written"),
        (lambda f: (f / WEIGHTS).unlink(), "model.safetensors is missing"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is unreadable"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is unreadable"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest.json is unreadable"),
        (lambda f: write_manifest(f, {"format": 3, "files": {}}), "lists no files"),
        (change_a_fact, "manifest.json differs from what was written"),
        (leave_a_file_out, "manifest.json differs from what was written"),
        (lambda f: (f / "manifest.json").write_text('{"format": 5}'), "format 5 is not 4"),
        (lambda f: (f / "manifest.json").write_text('{"format": 2}'), "by an earlier version of ppar_dist"),
        (lambda f: relist(f, **{"../x": {"bytes": 0, "sha256": ""}}), "'../x' leads out of the checkpoint"),
        (lambda f: relist(f, **{"/etc/hosts": {"bytes": 0, "sha256": ""}}), "'/etc/hosts' leads out"),
        (lambda f: relist(f, **{"a\0b": {"bytes": 0, "sha256": ""}}), "leads out of the checkpoint"),
        (lambda f: relist(f, **{".": {"bytes": 0, "sha256": ""}}), ". is not a file"),
        (link_out, "'model.safetensors' leads out of the checkpoint"),
        (swap_for_fifo, "model.safetensors is not a file"),
    ],
)
def test_damage_is_named_and_the_one_before_is_taken(
    tmp_path: Path, damage: Callable[[Path], None], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = publish(tmp_path, 10), publish(tmp_path, 20)
    damage(bad)
    assert message in "; ".join(checkpoint.verify(bad))
    with caplog.at_level(logging.INFO):
        assert checkpoint.find_checkpoint(tmp_path) == good
    passed, taken = (record.getMessage() for record in caplog.records)
    assert passed.startswith("checkpoint step-00000020 is passed over: ")
    assert message in passed
    assert taken == "checkpoint step-00000010 is taken, the newest whole one of 2"


def test_a_name_that_leads_out_is_never_read(tmp_path: Path) -> None:
    folder = publish(tmp_path, 10)
    os.mkfifo(folder.parent / "pipe")  # reading it would hang
    relist(folder, **{"../pipe": {"bytes": 0, "sha256": ""}})
    assert len(checkpoint.verify(folder)) == 1


def test_a_file_more_and_a_link_within_are_no_fault(tmp_path: Path) -> None:
    folder = publish(tmp_path, 10)
    (folder / "notes.txt").write_text("mine")
    (folder / WEIGHTS).rename(folder / "moved")
    (folder / WEIGHTS).symlink_to("moved")
    assert checkpoint.verify(folder) == []


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    publish(tmp_path, 123_456_789, 99_999_999, 5)
    for name in ("step-", "step-x", "step-²", "step-00000007.old", ".writing-step-00000008"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "step-00000006").write_text("a file")
    found = checkpoint.list_checkpoints(tmp_path)
    assert [checkpoint.step_of(path) for path in found] == [5, 99_999_999, 123_456_789]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"model.safetensors": {"w": torch.zeros(2, 3).t()}}, "ValueError"),
        ({"model.safetensors": {"w": "no tensor"}}, "ValueError: Key"),
        ({"../model.safetensors": {"w": torch.zeros(1)}}, "distinct plain names"),
        ({"manifest.json": {"w": torch.zeros(1)}}, "distinct plain names"),
        ({}, "distinct plain names, got none"),
    ],
)
def test_a_failed_write_publishes_nothing_and_keeps_the_last(tmp_path: Path, bad: dict, message: str) -> None:
    good = publish(tmp_path, 10)
    with pytest.raises(CheckpointError, match=f"step-00000020 was not written: .*{message}"):
        checkpoint.publish(tmp_path, Snapshot(20, bad, {}, {}))
    assert names(tmp_path) == ["latest", "step-00000010"]
    assert checkpoint.find_checkpoint(tmp_path) == good
    assert checkpoint.verify(publish(tmp_path, 20)) == []


def test_facts_that_are_no_json_are_a_failed_write(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="TypeError"):
        checkpoint.publish(tmp_path, Snapshot(20, {}, {"a": "b"}, {"when": object()}))
    assert checkpoint.list_checkpoints(tmp_path) == []


def test_publishing_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    publish(tmp_path, 10, value=1)
    folder = publish(tmp_path, 10, value=2)
    assert load_file(folder / WEIGHTS)["w"][0] == 2
    assert checkpoint.verify(folder) == []
    assert names(tmp_path) == ["latest", "step-00000010"]


def test_one_set_aside_is_found_until_its_place_is_taken_and_then_gets_it_back(tmp_path: Path) -> None:
    """The state between the two renames of publishing a step again."""
    publish(tmp_path, 5)
    folder = publish(tmp_path, 10, value=1)
    aside = folder.rename(folder.with_name(".replaced-step-00000010.123"))
    assert checkpoint.find_checkpoint(tmp_path) == aside
    assert checkpoint.resolve(tmp_path, "best") == aside
    assert checkpoint.step_of(aside) == 10
    publish(tmp_path, 20)
    assert names(tmp_path) == ["latest", "step-00000005", "step-00000010", "step-00000020"]
    shutil.copytree(folder, aside)
    assert checkpoint.find_checkpoint(tmp_path).name == "step-00000020"
    publish(tmp_path, 30)
    assert aside.name not in names(tmp_path)


def test_leftovers_of_kills_go_with_the_next_save(tmp_path: Path) -> None:
    publish(tmp_path, 10)
    for name in (".writing-step-00000007", ".deleting-step-00000003"):
        (tmp_path / "checkpoints" / name / "deep").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".latest.4711").write_text("ste")
    publish(tmp_path, 20)
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000020"]


def test_retention_keeps_the_last_the_multiples_the_best_and_those_in_use(tmp_path: Path) -> None:
    used = publish(tmp_path, 5)
    publish(tmp_path, 10, 20, 30, 40, 50, 60)
    deleted = checkpoint.retain(tmp_path, 2, keep_every=20, keep_steps={10}, in_use={used})
    assert [path.name for path in deleted] == ["step-00000030"]
    left = [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path)]
    assert left == [5, 10, 20, 40, 50, 60]


def test_damaged_ones_do_not_count_among_the_last(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        publish(tmp_path, step)
    (tmp_path / "checkpoints" / "step-00000030" / "manifest.json").unlink()
    (tmp_path / "checkpoints" / "step-00000040" / WEIGHTS).write_bytes(b"short")
    assert checkpoint.retain(tmp_path, 2) == []
    publish(tmp_path, 50)
    checkpoint.retain(tmp_path, 1)
    assert names(tmp_path) == ["latest", "step-00000050"]


def test_nothing_is_kept_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one checkpoint is kept, got keep_last=0"):
        checkpoint.retain(tmp_path, 0)


def test_a_half_finished_deletion_is_ended_by_the_next_retention_and_a_write_left_alone(
    tmp_path: Path,
) -> None:
    publish(tmp_path, 10)
    for name in (".deleting-step-00000003", ".writing-step-00000020"):
        (tmp_path / "checkpoints" / name).mkdir()
    checkpoint.retain(tmp_path, 1)
    assert names(tmp_path) == [".writing-step-00000020", "latest", "step-00000010"]


READER = """
import sys, pathlib
from ppar_dist.checkpoint import reading
with reading(pathlib.Path(sys.argv[1])):
    print("reading", flush=True)
    sys.stdin.read()
"""


@pytest.mark.process
def test_what_another_process_reads_is_not_deleted_until_it_ends(tmp_path: Path) -> None:
    old = publish(tmp_path, 10)
    publish(tmp_path, 20)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(old)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        assert checkpoint.retain(tmp_path, 1) == []
        with checkpoint.reading(old):  # readers do not keep each other out
            assert checkpoint.verify(old) == []
    finally:
        reader.kill()  # a reader that is killed holds nothing back
        reader.communicate(timeout=60)
    assert checkpoint.retain(tmp_path, 1) == [old]


def test_reading_what_was_deleted_or_is_being_deleted_is_refused(tmp_path: Path) -> None:
    old = publish(tmp_path, 10)
    with (old / "manifest.json").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CheckpointGone, match="was deleted before it was read"), checkpoint.reading(old):
            pass
    with checkpoint.reading(old):
        pass
    shutil.rmtree(old)
    with pytest.raises(CheckpointGone, match="use a newer one"), checkpoint.reading(old):
        pass


def test_storage_without_locks_is_read_and_cleared_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    old = publish(tmp_path, 10)
    publish(tmp_path, 20)
    with checkpoint.reading(old) as folder:
        assert folder == old
    assert checkpoint.retain(tmp_path, 1) == [old]


def test_an_opened_checkpoint_outlives_retention(tmp_path: Path) -> None:
    publish(tmp_path, 10)
    with checkpoint.opened(tmp_path) as folder:
        publish(tmp_path, 20)
        assert checkpoint.retain(tmp_path, 1) == []
        assert checkpoint.verify(folder) == []
    assert checkpoint.retain(tmp_path, 1) == [folder]
    with checkpoint.opened(tmp_path) as newest:
        assert newest.name == "step-00000020"


def test_resolve_takes_a_run_a_checkpoint_or_the_best(tmp_path: Path) -> None:
    best, newest = publish(tmp_path, 10), publish(tmp_path, 20)
    assert checkpoint.resolve(tmp_path) == newest
    assert checkpoint.resolve(newest) == newest
    assert checkpoint.resolve(tmp_path, "best") == best
    (best / WEIGHTS).unlink()
    with pytest.raises(UserError, match="kept no best checkpoint"):
        checkpoint.resolve(tmp_path, "best")


def test_resolve_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run or checkpoint at"):
        checkpoint.resolve(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no whole checkpoint; train first"):
        checkpoint.resolve(tmp_path)
    folder = publish(tmp_path, 20)
    (folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match=r"is damaged: model\.safetensors has 0 bytes"):
        checkpoint.resolve(folder)
