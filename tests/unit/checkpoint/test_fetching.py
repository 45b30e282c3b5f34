"""Downloads of checkpoints stay while somebody uses them, and a week longer."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ppar_dist import checkpoint
from ppar_dist.checkpoint import Snapshot, fetched_checkpoint, verify
from ppar_dist.storage.location import Remote
from tests.range_server import RangeServer, range_server

FORK = multiprocessing.get_context("fork")
DAY_S = 86_400


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    """A run's checkpoints of steps 10, 20 and 30, as ``checkpoint.remote`` keeps them."""
    bucket = tmp_path / "bucket"
    (bucket / "blobs").mkdir(parents=True)
    for step in (10, 20, 30):
        tensors = {"model.safetensors": {"w": torch.full((1000,), float(step))}}
        folder = checkpoint.publish(
            tmp_path / "run", Snapshot(step, tensors, {"state.json": "{}"}, {"world_size": 1})
        )
        (bucket / "checkpoints" / folder.name).mkdir(parents=True)
        shutil.copy(folder / "manifest.json", bucket / "checkpoints" / folder.name)
        for name, entry in checkpoint.read_manifest(folder)["files"].items():
            shutil.copy(folder / name, bucket / "blobs" / entry["sha256"])
    with range_server(bucket) as running:
        yield running


def fetched(server: RangeServer, step: int, into: Path) -> Path:
    return fetched_checkpoint(Remote(f"{server.url}/checkpoints/step-{step:08d}"), folder=into)


def use(server: RangeServer, step: int, into: Path, seconds: float) -> None:
    fetched(server, step, into)
    (into.parent / f"ready-{step}").touch()
    time.sleep(seconds)


@pytest.mark.process
def test_unused_downloads_go_and_used_ones_stay(server: RangeServer, tmp_path: Path) -> None:
    into = tmp_path / "fetched"
    users = [FORK.Process(target=use, args=(server, *each)) for each in ((10, into, 0.0), (20, into, 60.0))]
    for user, step in zip(users, (10, 20), strict=True):
        user.start()
        while not (tmp_path / f"ready-{step}").exists():
            assert user.is_alive()
            time.sleep(0.01)
    users[0].join(10)
    (used,) = into.rglob("step-00000020")
    half = used.with_name(".fetching-step-00000040")
    half.mkdir()
    (half / "model.safetensors").touch()
    week = time.time() - 8 * DAY_S
    for folder in into.glob("*/*/checkpoints/*"):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (week, week))
    new = fetched(server, 30, into)
    assert set(into.glob("*/*/checkpoints/*")) == {new, used}
    assert len(list(into.glob("*/*/"))) == 2, "no empty folder stays"
    assert not verify(new)
    assert not verify(used)
    users[1].kill()
    users[1].join(10)


def test_a_step_that_is_replaced_leaves_what_was_downloaded(server: RangeServer, tmp_path: Path) -> None:
    """Who has begun to use it must not read half of each."""
    before = fetched(server, 10, tmp_path / "fetched")
    there = tmp_path / "bucket/checkpoints"
    shutil.rmtree(tmp_path / "run")
    folder = checkpoint.publish(
        tmp_path / "run",
        Snapshot(
            10, {"model.safetensors": {"w": torch.zeros(1000)}}, {"state.json": "{}"}, {"world_size": 1}
        ),
    )
    shutil.copy(folder / "manifest.json", there / folder.name)
    for name, entry in checkpoint.read_manifest(folder)["files"].items():
        shutil.copy(folder / name, tmp_path / "bucket/blobs" / entry["sha256"])
    after = fetched(server, 10, tmp_path / "fetched")
    assert (after / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()
    assert not verify(after)
    assert before != after
    assert not verify(before)


@pytest.mark.parametrize("torn", ["", "{", "{}"])
def test_a_download_whose_manifest_is_damaged_is_fetched_again(
    server: RangeServer, tmp_path: Path, torn: str
) -> None:
    here = fetched(server, 10, tmp_path / "fetched")
    (here / "manifest.json").write_text(torn)
    assert fetched(server, 10, tmp_path / "fetched") == here
    assert not verify(here)
