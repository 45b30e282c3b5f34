"""Requests to storage, over real connections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ppar_dist.storage import progress
from ppar_dist.storage.failures import StorageDenied, StorageUnavailable
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Storage
from tests.range_server import RangeServer, range_server

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    (tmp_path / "object").write_bytes(CONTENT)
    with range_server(tmp_path) as running:
        yield running


def place(server: RangeServer, name: str = "object") -> Remote:
    return Remote(server.url) / name


def test_ranges_and_whole_objects_are_those_of_the_file(server: RangeServer, tmp_path: Path) -> None:
    storage = Storage(5)
    assert storage.read_range(place(server), 100, 1000) == CONTENT[100:1000]
    assert storage.read(place(server)) == CONTENT
    assert storage.facts(place(server)).bytes == len(CONTENT)
    storage.download(place(server), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT


def test_a_range_over_the_end_gives_what_is_there(server: RangeServer) -> None:
    storage = Storage(5)
    assert storage.read_range(place(server), len(CONTENT) - 10, len(CONTENT) + 10) == CONTENT[-10:]
    assert storage.read_range(place(server), len(CONTENT) + 1, len(CONTENT) + 10) == b""


@pytest.mark.parametrize("fault", [500, 502, 503, 429, "cut"])
def test_what_may_pass_is_tried_again(server: RangeServer, fault: int | str) -> None:
    server.faults.extend([fault, fault])
    assert Storage(20).read_range(place(server), 5, 2005) == CONTENT[5:2005]
    assert sum(method == "GET" for method, _, _ in server.requests) == 3


def test_patience_ends(server: RangeServer) -> None:
    server.faults.extend([503] * 100)
    with pytest.raises(StorageUnavailable, match=r"cannot read .*attempts .*503.*run the same command again"):
        Storage(0.5).read_range(place(server), 0, 10)


def test_no_server_is_waited_for(tmp_path: Path) -> None:
    with range_server(tmp_path) as server:
        pass
    with pytest.raises(StorageUnavailable, match="cannot read"):
        Storage(0.5).read(place(server))


def test_what_cannot_pass_is_asked_once(server: RangeServer) -> None:
    with pytest.raises(FileNotFoundError, match="no such object"):
        Storage(20).read(place(server, "nothing"))
    server.faults.append(403)
    with pytest.raises(StorageDenied, match="refuses to read"):
        Storage(20).read_range(place(server), 0, 10)
    assert len(server.requests) == 2


def test_only_requests_for_data_are_signs_of_life(server: RangeServer) -> None:
    before = progress.attempts()
    Storage(5).read(place(server))
    assert progress.attempts() == before
    server.faults.append(503)
    Storage(5, is_data=True).read(place(server))
    assert progress.attempts() == before + 2
