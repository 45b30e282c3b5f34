"""Requests to storage, over real connections."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppar_dist.errors import UserError
from ppar_dist.storage import progress, remote
from ppar_dist.storage.failures import StorageDenied, StorageUnavailable
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Storage
from tests.range_server import RangeServer, certificate, range_server

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


@pytest.mark.parametrize("fault", [500, 502, 503, 429, 408, "cut"])
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
    for status in (401, 403):
        server.faults.append(status)
        with pytest.raises(StorageDenied, match="refuses to read"):
            Storage(20).read_range(place(server), 0, 10)
    for status in (501, 505):
        server.faults.append(status)
        with pytest.raises(UserError, match=f"{status}.*check the URL"):
            Storage(20).read_range(place(server), 0, 10)
    assert len(server.requests) == 5


def test_a_full_disk_is_not_a_fault_of_storage(server: RangeServer) -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'") as refused:
        Storage(20).download(place(server), Path("/dev/full"))
    assert not isinstance(refused.value, StorageUnavailable)
    assert sum(method == "GET" for method, _, _ in server.requests) == 1


def test_a_server_that_says_nothing_is_asked_again(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_READ_S", 0.2)
    remote._forget_drivers()  # made with the usual limit
    server.faults.append("silent")
    began = time.monotonic()
    try:
        assert Storage(20).read_range(place(server), 5, 2005) == CONTENT[5:2005]
    finally:
        remote._forget_drivers()
    assert 0.2 < time.monotonic() - began < 5, "it has not waited for the end"


def test_what_keeps_from_looking_at_an_object_is_not_that_it_is_missing(server: RangeServer) -> None:
    """fsspec asks with HEAD, then GET, and calls whatever goes wrong a file that is not found."""
    server.no_head = True
    server.faults.append(503)
    assert Storage(20).facts(place(server)).bytes == len(CONTENT)
    server.faults.append(403)
    with pytest.raises(StorageDenied, match="refuses to look at"):
        Storage(20).facts(place(server))
    with pytest.raises(FileNotFoundError, match="no such object"):
        Storage(20).facts(place(server, "nothing"))


def test_a_certificate_that_is_not_trusted_is_refused_at_once(server: RangeServer, tmp_path: Path) -> None:
    tls, _ = certificate(tmp_path)
    with range_server(tmp_path, tls) as secure:
        for ask in (Storage(60).facts, Storage(60).read):
            with pytest.raises(UserError, match=r"not trusted.*SSL_CERT_FILE name the file of its CA"):
                ask(place(secure))
    plain = Remote(server.url.replace("http://", "https://")) / "object"
    with pytest.raises(UserError, match=r"speaks no TLS.*or correct the URL"):
        Storage(60).read(plain)


@pytest.mark.process
def test_a_certificate_whose_authority_is_named_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(CONTENT)
    tls, authority = certificate(tmp_path)
    with range_server(tmp_path, tls) as secure:
        names = (
            "from ppar_dist.storage.location import location; from ppar_dist.storage.remote import Storage"
        )
        read = f"{names}; print(len(Storage(5).read(location('{place(secure)}'))))"
        # In a process of its own: the driver reads the variable when it is loaded.
        environment = {**os.environ, "SSL_CERT_FILE": str(authority)}
        done = subprocess.run([sys.executable, "-c", read], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(len(CONTENT))], done.stderr


def test_only_requests_for_data_are_signs_of_life(server: RangeServer) -> None:
    before = progress.attempts()
    Storage(5).read(place(server))
    assert progress.attempts() == before
    server.faults.append(503)
    Storage(5, is_data=True).read(place(server))
    assert progress.attempts() == before + 2
