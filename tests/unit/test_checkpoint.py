"""Checkpoints are whole or absent; only whole ones are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ppar_dist import checkpoint
from ppar_dist.config import ConfigError
from ppar_dist.distributed import World

ALONE = World()


def publish(run: Path, step: int, text: str = "weights") -> Path:
    def write(folder: Path) -> None:
        (folder / "engine").mkdir()
        (folder / "engine" / "part.bin").write_bytes(text.encode() * 1000)
        (folder / "state.json").write_text(json.dumps({"step": step, "best_step": 10}))

    return checkpoint.publish(run, step, write, {"world_size": 1}, ALONE)


def test_what_was_published_verifies_and_is_the_latest(tmp_path: Path) -> None:
    publish(tmp_path, 10)
    newest = publish(tmp_path, 20)
    assert checkpoint.verify(newest) == []
    assert checkpoint.find_checkpoint(tmp_path) == newest
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-00000020"
    assert set(checkpoint.read_manifest(newest)["files"]) == {"engine/part.bin", "state.json"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "engine" / "part.bin").write_bytes(b"short"), "has 5 bytes, 7000 were written"),
        (lambda f: (f / "engine" / "part.bin").write_bytes(b"x" * 7000), "differs from what was written"),
        (lambda f: shutil.rmtree(f / "engine"), "engine/part.bin is missing"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is unreadable"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is unreadable"),
    ],
)
def test_damage_is_named_and_the_one_before_is_taken(tmp_path: Path, damage, message: str) -> None:
    good = publish(tmp_path, 10)
    bad = publish(tmp_path, 20)
    damage(bad)
    assert message in "; ".join(checkpoint.verify(bad))
    assert checkpoint.find_checkpoint(tmp_path) == good


def test_a_failed_write_publishes_nothing_and_keeps_the_last(tmp_path: Path) -> None:
    good = publish(tmp_path, 10)

    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(
        checkpoint.CheckpointError, match=r"step-00000020 was not written: rank 0: .*No space"
    ):
        checkpoint.publish(tmp_path, 20, write, {}, ALONE)
    assert checkpoint.list_checkpoints(tmp_path) == [good]
    assert checkpoint.find_checkpoint(tmp_path) == good
    assert checkpoint.verify(publish(tmp_path, 20)) == []  # what lay half-written is no obstacle


def test_retention_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        publish(tmp_path, step)
    deleted = checkpoint.retain(tmp_path, keep_last=2, keep_steps={10})
    assert [path.name for path in deleted] == ["step-00000020", "step-00000030"]
    left = [path.name for path in checkpoint.list_checkpoints(tmp_path)]
    assert left == ["step-00000010", "step-00000040", "step-00000050"]


def test_resolve_takes_a_run_a_checkpoint_or_the_best(tmp_path: Path) -> None:
    best, newest = publish(tmp_path, 10), publish(tmp_path, 20)
    assert checkpoint.resolve(tmp_path) == newest
    assert checkpoint.resolve(newest) == newest
    assert checkpoint.resolve(tmp_path, "best") == best


def test_resolve_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run or checkpoint at"):
        checkpoint.resolve(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no whole checkpoint; train first"):
        checkpoint.resolve(tmp_path)
    folder = publish(tmp_path, 20)
    (folder / "engine" / "part.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"is damaged: engine/part\.bin has 0 bytes"):
        checkpoint.resolve(folder)


def test_publishing_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    publish(tmp_path, 10, "old")
    folder = publish(tmp_path, 10, "new")
    assert (folder / "engine" / "part.bin").read_bytes().startswith(b"new")
    assert checkpoint.verify(folder) == []


def test_an_unusual_failure_is_told_to_the_other_ranks_too(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        save_file({"x": torch.zeros(1)}, folder / "no" / "such" / "folder")

    with pytest.raises(checkpoint.CheckpointError, match="rank 0: SafetensorError"):
        checkpoint.publish(tmp_path, 10, write, {"world_size": 1}, ALONE)
