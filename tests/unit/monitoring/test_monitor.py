"""The monitor of a rank alone: serving, lingering, and the file of targets."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ppar_dist.distributed import board
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.monitoring import textfile
from ppar_dist.monitoring.monitor import Monitor
from ppar_dist.monitoring.registry import Registry
from ppar_dist.monitoring.targets import reachable_address
from ppar_dist.watchdog import Heartbeat, Watchdog
from tests.ranks import TIMEOUT_S
from tests.unit.tiny_run import make_config

REPORT = Heartbeat(0, "node-a", "10.0.0.1", 1, "", 0)
ROUNDED_S = 0.01


@contextmanager
def opened(
    folder: Path, rank: int = 0, report: Callable[[], Heartbeat] = lambda: REPORT, **monitoring: Any
) -> Iterator[Monitor]:
    config = make_config(folder, folder / "run", monitoring={"port": 0, **monitoring})
    with Monitor(config, World(local_rank=rank)) as monitor:
        monitor.open(("a", "b"), ("road", "sky"), report)
        yield monitor


def fetch(monitor: Monitor) -> str:
    assert monitor.url is not None
    with urllib.request.urlopen(monitor.url, timeout=60) as answer:
        text: str = answer.read().decode()
    assert monitor._endpoint is not None
    deadline = time.monotonic() + 60
    while monitor._endpoint.served == float("-inf"):  # noted when all is sent: a client may be faster
        assert time.monotonic() < deadline, "the endpoint never noted that it had been asked"
        time.sleep(0.01)
    return text


def test_the_usual_port_gives_way_where_it_is_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr("ppar_dist.monitoring.monitor.DEFAULT_PORT", port)
        targets = tmp_path / "targets.json"
        with opened(tmp_path, port=None, targets_file=str(targets)) as monitor:
            assert "ppar_run_info" in fetch(monitor)
            served = int(str(monitor.url).rpartition(":")[2].partition("/")[0])
            assert served != port
            assert f"metrics port {port} is in use: rank 0 serves at {monitor.url}" in caplog.text
            assert json.loads(targets.read_text())[0]["targets"][0].endswith(f":{served}")
        with pytest.raises(UserError, match="cannot serve metrics"), opened(tmp_path, port=port):
            pass
    monkeypatch.setattr("ppar_dist.monitoring.monitor.DEFAULT_PORT", port)
    with opened(tmp_path, port=None) as monitor:
        assert f":{port}/" in str(monitor.url), "where it is free, it is taken"


def progress(monitor: Monitor) -> float:
    (line,) = re.findall(r"^ppar_last_progress_timestamp_seconds (\S+)$", fetch(monitor), re.MULTILINE)
    return float(line)


def never() -> bool:
    raise AssertionError("it waits")


def test_an_evaluation_is_progress_image_by_image(tmp_path: Path) -> None:
    """By the watchdog's own report, though no step ends."""
    watch = Watchdog(World(), board.open_board(World()), 600, 60, tmp_path)
    watch.phase("evaluate", 7)
    began = time.time()
    with opened(tmp_path, report=watch.report) as monitor:
        time.sleep(0.1)
        assert progress(monitor) <= began + ROUNDED_S
        again = time.time()
        watch.alive()
        deadline = time.monotonic() + TIMEOUT_S
        while progress(monitor) < again - ROUNDED_S:
            assert time.monotonic() < deadline
            time.sleep(0.1)  # a page is served again for a moment


def test_a_run_without_scrapes_does_not_linger(tmp_path: Path) -> None:
    with opened(tmp_path, linger_s=120) as monitor:
        monitor.linger(never)
    with opened(tmp_path, linger_s=0) as monitor:
        fetch(monitor)
        monitor.linger(never)
    with opened(tmp_path, enabled=False) as monitor:
        assert monitor.url is None
        monitor.linger(never)


def test_a_watched_run_lingers_until_its_last_figures_are_fetched(tmp_path: Path) -> None:
    with opened(tmp_path, linger_s=120) as monitor:
        assert monitor.run is not None
        fetch(monitor)
        monitor.run.publish_iou("night", 0.5, {"road": 0.5})
        waits, over, pages = threading.Event(), threading.Event(), [""]

        def scraper() -> None:
            assert waits.wait(TIMEOUT_S), "the endpoint did not linger"
            while not over.wait(0.05):  # the first may still get the page before
                pages.append(fetch(monitor))

        def enough() -> bool:
            waits.set()
            return False

        thread = threading.Thread(target=scraper)
        thread.start()
        monitor.linger(enough)
        over.set()
        thread.join()
    assert 'ppar_miou{target="night"} 0.5' in pages[-1]


def test_a_signal_ends_the_lingering(tmp_path: Path) -> None:
    with opened(tmp_path, linger_s=120) as monitor:
        fetch(monitor)
        began = time.monotonic()
        monitor.linger(lambda: True)
        assert time.monotonic() - began < 60  # half of what it would wait for


def test_targets_come_and_go_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    path = tmp_path / "deep" / "targets.json"
    with opened(tmp_path, targets_file=str(path)) as monitor:
        (group,) = json.loads(path.read_text())
        assert f"http://{group['targets'][0]}/metrics" == monitor.url
        assert group["labels"] == {"run": "tiny", "rank": "0"}
    assert list(path.parent.iterdir()) == []


def test_the_targets_of_another_job_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    with opened(tmp_path, targets_file=str(path)):
        text = path.read_text()
        path.unlink()
        path.write_text(text)  # even if they say the same
    assert path.read_text() == text


def test_targets_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"monitoring\.targets_file=.*give another path"),
        opened(tmp_path, targets_file=str(tmp_path / "file" / "targets.json")),
    ):
        pass


def test_the_text_file_holds_the_last_figures(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.prom"
    with opened(tmp_path, enabled=False, text_file=str(path)) as monitor:
        assert "ppar_train_steps 40.0" in path.read_text()
        assert monitor.run is not None
        monitor.run.publish_iou("night", 0.5, {})
    assert 'ppar_miou{target="night"} 0.5' in path.read_text()
    assert list(path.parent.iterdir()) == [path]
    with (
        pytest.raises(UserError, match=r"monitoring\.text_file=.*give another path"),
        opened(tmp_path, text_file=str(path / "below.prom")),
    ):
        pass


def test_the_last_figures_are_written_when_the_end_comes_during_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, reached, ended = Registry(), threading.Event(), threading.Event()
    figure, write = registry.gauge("figure", "A figure."), textfile.write_to_textfile

    def held_up(path: str, registry: Registry) -> None:
        write(path, registry)
        if threading.current_thread() is not threading.main_thread() and not reached.is_set():
            reached.set()
            assert ended.wait(TIMEOUT_S)

    monkeypatch.setattr(textfile, "write_to_textfile", held_up)
    text = textfile.TextFile(tmp_path / "run.prom", registry, every_s=0.01)
    assert reached.wait(TIMEOUT_S)
    figure.set(7)
    threading.Timer(0.3, ended.set).start()  # when `stop` waits
    text.stop(TIMEOUT_S)
    assert "ppar_figure 7.0" in (tmp_path / "run.prom").read_text()


def test_others_are_told_an_address_they_can_reach() -> None:
    assert reachable_address("10.1.2.3", World()) == "10.1.2.3"
    for wildcard in ("", "0.0.0.0", "::"):
        found = reachable_address(wildcard, World())
        assert found == socket.gethostname() or not ipaddress.ip_address(found).is_loopback


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="this machine has no IPv6")
def test_an_ipv6_address_stands_in_brackets(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    with opened(tmp_path, address="::1", targets_file=str(path)) as monitor:
        assert json.loads(path.read_text())[0]["targets"][0].startswith("[::1]:")
        assert "ppar_rank_info" in fetch(monitor)


def test_a_rank_whose_port_is_none_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"rank 0 on .*127\.0\.0\.1:65536.*monitoring\.port"),
        opened(tmp_path, rank=1, port=65535),
    ):
        pass
