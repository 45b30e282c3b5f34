"""An index is the same bit for bit by one process, several, several parts, and after kills."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ppar_dist.data.shards.arrays import ArrayWriter, RepeatedKeys
from ppar_dist.data.shards.build_index import KEPT, index_folder, index_part
from ppar_dist.data.shards.index import RECORD
from ppar_dist.data.shards.parts import Part, read_part
from ppar_dist.data.shards.rows import load
from ppar_dist.data.shards.scan import scan
from ppar_dist.errors import UserError
from tests.unit.street_shards import scene, write_tar

INDEX = ("domain.json", "index.npy", "counts.npy", "keys.npy", "quarantine.jsonl")
BAD = ["--classes", "roads6", "--max-bad-ratio", "0.5"]


def make_shards(folder: Path, shards: int = 7, each: int = 6) -> Path:
    """Shards with bad samples, keys of several scripts, keys that earlier shards have, and a broken shard."""
    for shard in range(shards):
        members: list[tuple[str, bytes]] = []
        for number in range(each):
            image, label = scene(100 * shard + number)
            key = f"街道_{shard}_{number}" if number % 2 else f"street_{shard}_{number}"
            if number == 3:
                key = f"twice_{shard // 2}"  # of two shards each, in other parts too
            if number == 4 and shard % 2:
                image = image[: len(image) // 2]
            members += [(f"{key}.jpg", image), (f"{key}.png", label)]
        members += [("left.txt", b"x"), (f"alone_{shard}.jpg", scene(1)[0])]
        write_tar(folder / f"part-{shard}.tar", members)
    raw = (folder / "part-2.tar").read_bytes()
    (folder / "part-2.tar").write_bytes(raw[: len(raw) // 2])
    (folder / "empty.tar").write_bytes(b"")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """The index of a folder; nothing of unfinished work may lie beside it."""
    assert not (folder / KEPT).exists()
    return {name: (folder / name).read_bytes() for name in INDEX}


def copied(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("made") / "d")


@pytest.fixture(scope="module")
def expected(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = copied(shards, tmp_path_factory.mktemp("alone") / "d")
    index, findings = index_folder(folder, "roads6", max_bad_ratio=0.5)
    keys = [index.key(number) for number in range(len(index))]
    assert len(set(keys)) == len(keys)
    assert findings.bad["duplicate_key"] == 3
    assert findings.bad["image_unreadable"] == 3
    return files(folder)


def test_parts_merged_give_the_index_of_one_process(
    shards: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder = copied(shards, tmp_path / "d")
    for number in (3, 1):
        index_part(folder, "roads6", Part(number, 3))
    with pytest.raises(UserError, match=r"of 8 shards were not checked .*part-1.tar"):
        index_folder(folder, "roads6", max_bad_ratio=0.5, merge=True)
    assert not (folder / "domain.json").exists()
    for number in (1, 2, 3):
        index_part(folder, "roads6", Part(number, 3))
    index_folder(folder, "roads6", max_bad_ratio=0.5, merge=True)
    assert files(folder) == expected


def test_what_changed_since_a_part_is_not_merged(
    shards: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder = copied(shards, tmp_path / "d")
    index_part(folder, "roads6", Part(1, 1))
    raw = bytearray((folder / "part-3.tar").read_bytes())
    raw[600] ^= 1
    (folder / "part-3.tar").write_bytes(raw)  # of the same size
    with pytest.raises(UserError, match=r"1 of 8 shards .*part-3\.tar"):
        index_folder(folder, "roads6", max_bad_ratio=0.5, merge=True)
    shutil.copyfile(shards / "part-3.tar", folder / "part-3.tar")  # as it was, but for its time
    index_part(folder, "roads6", Part(1, 1))
    index_folder(folder, "roads6", max_bad_ratio=0.5, merge=True)
    assert files(folder) == expected


def test_damaged_rows_are_made_again(shards: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    folder = copied(shards, tmp_path / "d")
    index_part(folder, "roads6", Part(1, 1))
    for number, path in enumerate(sorted((folder / KEPT).glob("part-*.rows"))):
        raw = bytearray(path.read_bytes())
        raw[len(raw) - 9 * number - 1] ^= 255
        path.write_bytes(raw if number % 2 else raw[: len(raw) // 2])
        assert load(path) is None
    index_folder(folder, "roads6", max_bad_ratio=0.5)
    assert files(folder) == expected


def test_what_is_done_is_not_done_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(shards, tmp_path / "d")
    index_part(folder, "roads6", Part(1, 1))

    def refuse(*_: object) -> None:
        raise AssertionError("a shard is decoded again")

    monkeypatch.setattr("ppar_dist.data.shards.scan.check_shard", refuse)
    index_part(folder, "roads6", Part(1, 1))
    assert scan.__module__ == "ppar_dist.data.shards.scan"


@pytest.mark.process
def test_processes_give_the_index_of_one(shards: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    folder = copied(shards, tmp_path / "d")
    index_folder(folder, "roads6", max_bad_ratio=0.5, processes=3)
    assert files(folder) == expected


@pytest.mark.process
def test_kills_leave_nothing_that_looks_complete(
    shards: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder = copied(shards, tmp_path / "d")
    command = [sys.executable, "-m", "ppar_dist", "index", str(folder), *BAD, "--processes", "2"]
    chance = random.Random(3)
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + chance.uniform(0.8, 2.0)
        while not (folder / KEPT).exists() and process.poll() is None:
            end = time.monotonic() + chance.uniform(0, 0.8)
            time.sleep(0.005)
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (folder / "domain.json").exists():  # it had come to the end before
            assert {name: (folder / name).read_bytes() for name in INDEX} == expected
            (folder / "domain.json").unlink()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert files(folder) == expected


@pytest.mark.process
def test_an_error_of_a_worker_is_the_commands(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    folder = make_shards(tmp_path / "d", shards=2)
    folder.chmod(0o500)
    with pytest.raises(UserError, match="cannot complete"):
        index_folder(folder, "roads6", processes=2)


def test_arrays_are_those_that_numpy_saves(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = np.zeros(100, RECORD)
    records["image_offset"] = rng.integers(0, 1 << 40, 100)
    counts = rng.integers(0, 99, (100, 6)).astype(np.uint32)
    keys = np.array([f"k{number}".encode() for number in range(100)], dtype=np.bytes_)
    made = ArrayWriter(tmp_path, 100, 6, keys.dtype.itemsize)
    for start in range(0, 100, 9):
        stop = start + 9
        made.add(records[start:stop], counts[start:stop], keys[start:stop])
    made.close()
    for name, array in (("index", records), ("counts", counts), ("keys", keys)):
        np.save(tmp_path / "whole.npy", array)
        assert (tmp_path / f"{name}.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


@pytest.mark.parametrize("held", [1 << 20, 10])
def test_repeated_keys_are_found_in_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr("ppar_dist.data.shards.arrays._HELD", held)
    rng = np.random.default_rng(1)
    keys = np.array([f"key {number}".encode() for number in rng.integers(0, 300, 500)])
    repeated = RepeatedKeys(tmp_path)
    for start in range(0, 500, 7):
        repeated.add(keys[start : start + 7])
    seen: set[bytes] = set()
    naive = []
    for row, key in enumerate(keys.tolist()):
        if key in seen:
            naive.append(row)
        seen.add(key)
    assert repeated.find().tolist() == naive
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_parts_that_there_are_not(text: str) -> None:
    with pytest.raises(UserError, match="--part is i/n"):
        read_part(text)


def test_all_parts_together_have_each_item_once() -> None:
    for count in (1, 3, 8, 20):
        parts = [Part(number + 1, count).of(range(11)) for number in range(count)]
        assert [item for part in parts for item in part] == list(range(11))
