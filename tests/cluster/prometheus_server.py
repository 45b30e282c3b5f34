"""A real Prometheus with the configuration of jobs/prometheus, its own data, and short intervals."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.jobs import free_port

CONFIGURATION = Path(__file__).parents[2] / "jobs" / "prometheus"
TIMEOUT_S = 240

# What a test has no time for. Windows of rates and the shares that count as bad stay as they are.
_HURRY = {
    "prometheus.yml": {r"(scrape|evaluation)_interval: 15s": r"\1_interval: 1s"},
    "rules/alerts.yml": {
        r"for: \d+m": "for: 20s",  # Prometheus drops a target up to 10 s after its file was deleted
        r"(step_seconds:mean), 120\)": r"\1, 5)",  # seconds that a step may always take
        r"(interval_seconds \+) 60": r"\1 5",
    },
}


class Prometheus:
    """A running server; ``targets`` is the folder in which runs announce themselves."""

    def __init__(self, folder: Path, port: int) -> None:
        self.targets = folder / "targets"
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of ``/api/v1/<path>``; a refused request fails with Prometheus' message."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def now(self, expression: str) -> dict[frozenset[tuple[str, str]], float]:
        """Value by labels, now."""
        found = self.ask("query", query=expression)["result"]
        return {frozenset(one["metric"].items()): float(one["value"][1]) for one in found}

    def scraped(self, selector: str) -> list[float]:
        """Values as they were scraped in the last minutes, of all series."""
        found = self.ask("query", query=f"{selector}[10m]")["result"]
        return [float(value) for one in found for _, value in one["values"]]

    def course(self, expression: str, start: float, end: float) -> list[list[float]]:
        """Values of every series between two times, a second apart."""
        found = self.ask("query_range", query=expression, start=start, end=end, step=1)["result"]
        return [[float(value) for _, value in one["values"]] for one in found]

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {
            one["labels"]["alertname"] for one in self.ask("alerts")["alerts"] if one["state"] == "firing"
        }

    def fired(self, run: str, start: float, end: float) -> set[str]:
        """Names of the alerts of a run that fired between two times."""
        expression = f'ALERTS{{run="{run}",alertstate="firing"}}'
        found = self.ask("query_range", query=expression, start=start, end=end, step=1)["result"]
        return {one["metric"]["alertname"] for one in found}

    def wait_for(self, condition: Callable[[], Any], what: str, seconds: float = TIMEOUT_S) -> float:
        """Poll until ``condition`` holds; returns the seconds it took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() < began + seconds, (
                f"no {what} within {seconds} s; firing: {self.firing()}"
            )
            time.sleep(0.2)
        return time.monotonic() - began


@contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes and judges every second, with an empty folder of targets."""
    shutil.copytree(CONFIGURATION, folder, ignore=shutil.ignore_patterns("*.json"))
    for name, changes in _HURRY.items():
        _rewrite(folder / name, changes)
    server = Prometheus(folder, free_port())
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={server.url.removeprefix('http://')}",
        f"--web.console.templates={folder / 'consoles'}",
        f"--web.console.libraries={folder / 'console_libraries'}",
    ]
    log = folder / "prometheus.log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        server.wait_for(lambda: _ready(server.url, process, log), "answer of Prometheus")
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _rewrite(path: Path, changes: dict[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for pattern, new in changes.items():
        text, count = re.subn(pattern, new, text)
        assert count, f"{path.name} has nothing like {pattern}"
    path.write_text(text, encoding="utf-8")


def _ready(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, f"Prometheus ended:\n{log.read_text()}"
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
