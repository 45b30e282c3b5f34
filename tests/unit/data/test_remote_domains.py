"""Domains on a server: the same samples as from a folder, fetched once, whatever happens on the way."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppar_dist.config.schema import Config
from ppar_dist.data.reading import read_sample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.data.sources import open_sources
from ppar_dist.errors import DataError
from ppar_dist.storage.failures import StorageUnavailable
from ppar_dist.storage.node import NodeStorage
from tests.range_server import RangeServer, range_server
from tests.unit.street_shards import (
    all_bad,
    change_record,
    config,
    drain,
    flat,
    overwrite,
    shard_of,
    write_domains,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_domains(tmp_path / "shards", samples_per_shard=8)


@pytest.fixture
def server(root: Path) -> Iterator[RangeServer]:
    with range_server(root) as running:
        yield running


def remote(server: RangeServer, folder: Path, ahead: int = 8, size: int = 10**9, **data: object) -> Config:
    cache = {"folder": str(folder), "ahead": ahead, "size": size}
    place = {"root": server.url, "cache": cache}
    cfg = config(Path("unused"), {**place, **data})
    faults = cfg.faults.model_copy(update={"storage_s": 5.0})
    return cfg.model_copy(update={"faults": faults})


def node(folder: Path, patience_s: float = 5.0, together: int = 4) -> NodeStorage:
    return NodeStorage(folder, patience_s=patience_s, together=together)


def shard_requests(server: RangeServer) -> list[tuple[str, str]]:
    return [(path, span) for method, path, span in server.requests if method == "GET" and ".tar" in path]


@pytest.mark.parametrize("ahead", [0, 4])
def test_the_same_batches_as_from_a_folder(
    root: Path, server: RangeServer, tmp_path: Path, ahead: int
) -> None:
    cfg = remote(server, tmp_path / "cache", ahead=ahead)
    assert flat(drain(cfg)) == flat(drain(config(root)))


@pytest.mark.process
def test_workers_and_ranks_share_what_the_node_holds(root: Path, server: RangeServer, tmp_path: Path) -> None:
    cfg = remote(server, tmp_path / "cache", workers=2)
    found = flat(drain(cfg, 0, 2)) | flat(drain(cfg, 1, 2))
    assert found == flat(drain(config(root)))
    asked = shard_requests(server)
    assert len(asked) == len(set(asked)), "no range was fetched twice"


def test_a_second_run_asks_storage_for_no_shard(server: RangeServer, tmp_path: Path) -> None:
    cfg = remote(server, tmp_path / "cache")
    first = flat(drain(cfg))
    server.requests.clear()
    assert flat(drain(cfg)) == first
    assert not shard_requests(server)
    assert not any(path.endswith(".npy") for _, path, _ in server.requests)


def test_a_small_cache_changes_nothing_but_requests(root: Path, server: RangeServer, tmp_path: Path) -> None:
    cfg = remote(server, tmp_path / "cache", size=20_000)
    assert flat(drain(cfg)) == flat(drain(config(root)))
    assert (
        sum(file.stat().st_size for file in (tmp_path / "cache/shards").rglob("*") if file.is_file()) < 40_000
    )


@pytest.mark.parametrize("fault", [503, "cut"])
def test_faults_that_pass_change_nothing(
    root: Path, server: RangeServer, tmp_path: Path, fault: int | str
) -> None:
    cfg = remote(server, tmp_path / "cache")
    indexes = open_sources(cfg)
    server.faults.extend([None, fault, fault] * 3)
    for index in indexes:
        here = DomainIndex.open(root / index.name)
        assert all(index.read(sample) == here.read(sample) for sample in range(len(index)))
    assert not server.faults


def test_storage_that_stays_away_ends_reading(server: RangeServer, tmp_path: Path) -> None:
    index = DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache", patience_s=0.3))
    server.faults.extend([503] * 50)
    with pytest.raises(StorageUnavailable, match="run the same command again"):
        index.read(0)


def test_damage_on_the_node_is_fetched_again(root: Path, server: RangeServer, tmp_path: Path) -> None:
    index = DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache"))
    before = index.read(0)
    for file in (tmp_path / "cache/shards").rglob("*"):
        if file.is_file() and file.stat().st_size > 500:
            content = bytearray(file.read_bytes())
            content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
            file.write_bytes(content)
    assert index.read(0) == before


def test_a_shard_that_is_not_what_was_indexed_is_a_bad_sample(
    root: Path, server: RangeServer, tmp_path: Path
) -> None:
    overwrite(DomainIndex.open(root / "rain"), 3, "image", b"spoiled")
    shard_of(DomainIndex.open(root / "rain"), 9).unlink()
    cfg = remote(server, tmp_path / "cache", max_bad_ratio=1.0, holdout=0)
    found = {(bad.sample, bad.reason) for bad in all_bad(drain(cfg))}
    assert (3, "checksum") in found
    assert {reason for sample, reason in found if sample >= 8} == {"shard_missing"}
    here = config(root, {"max_bad_ratio": 1.0, "holdout": 0})
    assert found == {(bad.sample, bad.reason) for bad in all_bad(drain(here))}


@pytest.mark.parametrize("offset", [2**64 - 5, 10**12])
def test_damaged_records_around_a_sample_do_not_reach_it(
    root: Path, server: RangeServer, tmp_path: Path, offset: int
) -> None:
    here = DomainIndex.open(root / "day")
    wanted = here.read(1)
    change_record(here, 2, label_offset=offset)
    content = json.loads((root / "day/domain.json").read_text())
    del content["arrays"]  # as earlier versions wrote it: nothing tells that the records changed
    (root / "day/domain.json").write_text(json.dumps(content))
    index = DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache"))
    assert index.read(1) == wanted
    with pytest.raises(SampleError, match="points outside its shards"):
        index.read(2)


def test_an_object_that_ends_early_is_told(root: Path, server: RangeServer, tmp_path: Path) -> None:
    index = DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache"))
    path = shard_of(DomainIndex.open(root / "day"), 0)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(SampleError, match=r"the object ends .* bytes early; copy it again"):
        index.read(7)


def test_an_index_that_changed_is_fetched_anew(root: Path, server: RangeServer, tmp_path: Path) -> None:
    index = DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache"))
    shutil.rmtree(root / "day")
    shutil.copytree(root / "rain", root / "day")
    again = DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache"))
    assert (len(index), len(again)) == (20, 11)
    assert index.fingerprint != again.fingerprint


def test_a_copy_of_an_index_that_a_power_cut_has_torn_is_fetched_again(
    root: Path, server: RangeServer, tmp_path: Path
) -> None:
    index = DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache"))
    here = index.folder / "domain.json"
    for torn in (b"", here.read_bytes()[:100]):
        here.write_bytes(torn)
        again = DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache"))
        assert again.read(3) == DomainIndex.open(root / "day").read(3)


def test_a_copy_of_an_index_that_lacks_a_file_is_fetched_again(
    root: Path, server: RangeServer, tmp_path: Path
) -> None:
    """Programs that clear a temporary folder take the files one by one."""
    for name in ("index.npy", "counts.npy", "keys.npy"):
        index = DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache"))
        (index.folder / name).unlink()
        again = DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache"))
        assert again.read(3) == DomainIndex.open(root / "day").read(3)


def test_a_copy_counts_when_all_of_it_has_been_synced(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    seen: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(file: int) -> None:
        fsync(file)
        synced.add(os.fstat(file).st_ino)

    def noted_rename(old: Path, new: Path) -> None:
        folder = Path(new).parent
        assert {path.stat().st_ino for path in [folder, *folder.iterdir()]} <= synced
        seen.extend(path.name for path in folder.iterdir())
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache"))
    assert sorted(seen) == [".domain.json", "counts.npy", "index.npy", "keys.npy"]


@pytest.mark.process
def test_an_index_that_nobody_uses_goes_when_another_is_fetched(
    root: Path, server: RangeServer, tmp_path: Path
) -> None:
    """An older version of a domain, after 30 days, once the process that opened it has ended."""
    open_day = (
        "import sys; from pathlib import Path; from ppar_dist.data.shards.index import DomainIndex; "
        "from ppar_dist.storage.node import NodeStorage; "
        "print(DomainIndex.open(sys.argv[1], node=NodeStorage(Path(sys.argv[2]))).folder)"
    )
    command = [sys.executable, "-c", open_day, f"{server.url}/day", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    old = Path(done.stdout.strip())
    month = time.time() - 31 * 86_400
    for path in (*old.iterdir(), old.parent):
        os.utime(path, (month, month))
    shutil.rmtree(root / "day")
    shutil.copytree(root / "rain", root / "day")
    index = DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache"))
    assert index.folder != old
    assert [entry.name for entry in (tmp_path / "cache/domains").iterdir()] == [index.folder.parent.name]


def test_arrays_are_held_to_the_hash_of_domain_json(root: Path, server: RangeServer, tmp_path: Path) -> None:
    content = json.loads((root / "day/domain.json").read_text())
    content["arrays"] = {"keys.npy": "0" * 64}
    (root / "day/domain.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"keys.npy is not the one of its domain.json"):
        DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache"))


def test_a_folder_without_an_index_is_told(server: RangeServer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no domain.json, so it is not indexed"):
        DomainIndex.open(f"{server.url}/night", node=node(tmp_path / "cache"))


def test_a_pickled_domain_asks_storage_for_nothing(server: RangeServer, tmp_path: Path) -> None:
    index = DomainIndex.open(f"{server.url}/day", node=node(tmp_path / "cache"))
    server.requests.clear()
    again = pickle.loads(pickle.dumps(index))
    assert not server.requests
    assert (read_sample(again, 5).label == read_sample(index, 5).label).all()
