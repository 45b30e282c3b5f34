"""The command that container health checks run."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from ppar_dist.cli.parser import main
from ppar_dist.monitoring import endpoint
from ppar_dist.monitoring.health import check
from ppar_dist.monitoring.monitor import health
from ppar_dist.monitoring.registry import Registry
from ppar_dist.watchdog import OFF, RUNNING, Heartbeat


def report(**changes: Any) -> Heartbeat:
    values = {"rank": 3, "host": "node-a", "address": "10.0.0.1", "pid": 1, "machine": "", "born": 0}
    return Heartbeat(
        **(values | {"phase": "forward", "step": 12, "seconds": 2.0, "state": RUNNING} | changes)
    )


@contextmanager
def serving(found: Heartbeat, stall_s: float = 600.0) -> Iterator[endpoint.Endpoint]:
    with endpoint.start("127.0.0.1", 0, Registry(), lambda: health(found, stall_s)) as served:
        yield served


def ask(found: Heartbeat, stall_s: float = 600.0) -> tuple[bool, str]:
    with serving(found, stall_s) as served:
        return check(served.url)


def test_a_rank_that_advances_is_healthy() -> None:
    assert ask(report()) == (True, "rank 3 ok: step 12, 2.0 s in forward")


def test_a_phase_beyond_the_limit_is_not() -> None:
    assert ask(report(seconds=601.0)) == (False, "rank 3 stalled: step 12, 601.0 s in forward")


def test_outside_the_steps_time_is_no_fault() -> None:
    ok, text = ask(report(phase=OFF, seconds=5000.0))
    assert ok
    assert "5000.0 s in no phase" in text


@pytest.mark.parametrize("state", ["failed", "tripped"])
def test_a_rank_that_ends_is_not_healthy(state: str) -> None:
    assert ask(report(state=state, reason="secret"))[0] is False


def test_nothing_there_a_stranger_or_silence_are_not_healthy() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ok, text = check(url, timeout_s=5)
        assert not ok
        assert "does not answer" in text
        silent.listen()
        assert check(url, timeout_s=0.2)[0] is False
        threading.Thread(target=greet, args=(silent,), daemon=True).start()
        ok, text = check(url)
        assert not ok
        assert "does not answer" in text or "not an endpoint" in text


def greet(server: socket.socket) -> None:
    with suppress(OSError):  # closed when the test has ended
        while True:
            client, _ = server.accept()
            client.sendall(b"220 mail.example ESMTP\r\n")
            client.close()


def test_the_command_asks_every_rank(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    with serving(report()) as good, serving(report(seconds=700)) as bad:
        assert main(["health", good.url]) == 0
        assert main(["health", good.url, bad.url]) == 1
        said = capsys.readouterr()
        assert (said.out.count(" ok: "), said.err.count(" stalled: ")) == (2, 1)
        monkeypatch.setenv("PPAR_METRICS_PORT", str(good.port))
        assert main(["health"]) == 0
        monkeypatch.setenv("PPAR_METRICS_PORT", "many")
        assert main(["health"]) == 78
    assert main(["health", "ftp://127.0.0.1"]) == 78
    assert main(["health", "http://127.0.0.1:port"]) == 78


@pytest.mark.process
def test_it_starts_without_the_libraries_of_training() -> None:
    code = (
        "import sys; sys.argv[1:] = ['health', 'http://127.0.0.1:9']\n"
        "from ppar_dist.__main__ import run\n"
        "try: run()\n"
        "except SystemExit as end: print(end.code, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    code, *modules = done.stdout.split()
    assert code == "1"
    assert not {"torch", "numpy", "pydantic", "yaml", "prometheus_client"} & set(modules)
