"""Ports and memory."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from ppar_dist.monitoring import endpoint
from ppar_dist.monitoring.registry import Registry
from ppar_dist.run.lock import RunLock
from tests.ranks import free_port
from tests.unit.doctor.worlds import Doctor


def test_a_port_in_use_is_named_per_rank(doctor: Doctor) -> None:
    with socket.socket() as taken:
        port = free_port(2) + 1
        taken.bind(("127.0.0.1", port))
        taken.listen()
        monitoring = {"enabled": True, "port": port - 1}
        checks = doctor("--nproc", "2", monitoring=monitoring)
        assert checks["metrics ports"]["status"] == "failure"
        assert list(checks["metrics ports"]["facts"]["taken"]) == [str(port)]
        assert f"127.0.0.1:{port} (Address already in use)" in checks["metrics ports"]["found"]


def test_only_the_job_that_holds_the_folder_is_this_run(doctor: Doctor, tmp_path: Path) -> None:
    """Another run of the same name is another run, and a port that was not set by hand gives way to it."""
    registry = Registry()
    registry.constant("run_info", "A run.", run="run")
    with endpoint.start("127.0.0.1", 0, registry) as served:
        by_hand = {"enabled": True, "port": served.port}
        text = doctor(monitoring=by_hand)["metrics ports"]["found"]
        assert text.endswith(f":{served.port} (Address already in use): run run is served there")
        (tmp_path / "run").mkdir()
        with contextlib.closing(RunLock(tmp_path / "run", 60.0)) as lock:
            assert lock.try_acquire()
            found = doctor(monitoring=by_hand)["metrics ports"]
            assert found["status"] == "warning"
            assert "this run is being trained here already" in found["found"]


def test_more_ranks_than_ports_are_soon_refused(doctor: Doctor) -> None:
    found = doctor("--nproc", str(10**23), monitoring={"enabled": True, "port": 65534})["metrics ports"]
    assert found["status"] == "failure"
    assert found["facts"]["ports"] == [65534, 65535, 65536]
    assert found["facts"]["taken"]["65536"] == "no such port"


def test_a_taken_master_port(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", free_port()))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        assert doctor()["master port"]["status"] == "failure"
    assert doctor()["master port"]["status"] == "ok"
    monkeypatch.setenv("MASTER_PORT", "http")
    assert "'http' is not a port" in doctor()["master port"]["found"]


def test_shared_memory_too_small_for_the_workers(doctor: Doctor) -> None:
    checks = doctor("data.workers=2", "data.crop=[200000, 200000]", "--nproc", "2")
    assert checks["shared memory"]["status"] == "failure"
    assert checks["shared memory"]["facts"]["needed_bytes"] == 2 * 2 * 2 * 3 * 4 * 200000**2


def test_compiling_needs_a_compiler(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "compiler" not in doctor()
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    found = doctor("engine.compile=true")["compiler"]
    assert found["status"] == "failure"
    assert f"there is no {tmp_path / 'none'}" in found["found"]
    (tmp_path / "none").write_text("#!/bin/sh\n")
    (tmp_path / "none").chmod(0o755)
    assert doctor("engine.compile=true")["compiler"]["status"] == "ok"
