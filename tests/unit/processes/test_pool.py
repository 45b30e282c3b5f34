"""Workers, forked or programs of their own: order, errors, deaths, and what they have of their parent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.unit.processes import pool_program

pytestmark = [pytest.mark.process, pytest.mark.parametrize("how", ["forked", "program"])]


def command(how: str, what: str) -> list[str]:
    return [sys.executable, "-m", pool_program.__name__, how, what]


def run(how: str, what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(how, what), capture_output=True, text=True, timeout=100, check=True)


def test_results_come_in_order_from_workers_with_no_file_of_their_parents(how: str) -> None:
    done = run(how, "tell")
    told = json.loads(done.stdout)
    assert [each["item"] for each in told] == list(range(9))
    assert len({each["pid"] for each in told}) == 2
    assert len({each["parent"] for each in told} - {each["pid"] for each in told}) == 1
    assert {each["is_fork"] for each in told} == {how == "forked"}
    for each in told:
        assert sum("socket" in file for file in each["files"]) == 1, each  # to its parent
        assert not [file for file in each["files"] if file.endswith(".py")], each
    assert done.stderr.count("chatter") == 9


def test_an_error_of_the_function_is_the_callers(how: str) -> None:
    assert run(how, "fail").stdout == "item 0 is wrong\n"


def test_a_killed_worker_is_an_error(how: str) -> None:
    assert run(how, "die").stdout.startswith("a worker process ended with -9, -9 is a kill")


def test_a_killed_parent_takes_its_workers_with_it(how: str, tmp_path: Path) -> None:
    folder = os.environ | {"PPAR_TEST_WORKERS": str(tmp_path)}
    with subprocess.Popen(command(how, "wait"), env=folder) as parent:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        parent.kill()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
