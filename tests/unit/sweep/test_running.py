"""Which runs are started, how often, and what the end says; the program that is started is a shell script."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from ppar_dist.sweep.grid import Planned, plan_runs, write_configs
from ppar_dist.sweep.running import run_all
from tests.unit.sweep.test_grid import grid_file

pytestmark = pytest.mark.process


def plan(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> list[Planned]:
    """Runs a, b and c, whose program is ``script``: $1 is the run's name, $2 a file of its starts so far."""
    program = folder / "program"
    program.write_text(
        '#!/bin/sh\nname=$(basename "$(dirname "$4")")\nstarts="$0-$name"\necho >>"$starts"\n'
        f'n=$(wc -l <"$starts")\necho start $n of $name\n{script}\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    planned = plan_runs(grid_file(folder, variants={"a": {}, "b": {}, "c": {}}), folder / "out")
    write_configs(planned)
    return planned


def starts(folder: Path) -> dict[str, int]:
    return {file.name[-1]: len(file.read_text().splitlines()) for file in folder.glob("program-*")}


def test_a_run_that_would_go_on_is_started_again_and_a_failed_one_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'case $name in a) [ $n -ge 3 ] || exit 75;; b) echo "it is wrong"; exit 78;; esac'
    planned, said = plan(tmp_path, monkeypatch, script), list[str]()
    assert run_all(planned, 2, None, said.append) == 78
    assert starts(tmp_path) == {"a": 3, "b": 1, "c": 1}
    assert any("b, seed 0: ended with 78" in line and "it is wrong" in line for line in said)
    assert len(said) == 3


def test_one_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(tmp_path, monkeypatch, "exit 75")
    assert run_all(planned[:1], 1, 2, lambda line: None) == 75
    assert starts(tmp_path) == {"a": 4}


def test_a_signal_reaches_each_run_once_and_starts_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = """trap 'echo >>"$starts-asked"; asked=1' TERM"""
    script = f'{trap}; while [ -z "$asked" ]; do sleep 0.05; done; exit 75'
    planned = plan(tmp_path, monkeypatch, script)

    def ask() -> None:
        while len(starts(tmp_path)) < 2:
            time.sleep(0.02)
        time.sleep(0.2)  # the trap is set
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    assert run_all(planned, 2, None, lambda line: None) == 75
    asked = [len(file.read_text().splitlines()) for file in tmp_path.glob("program-*-asked")]
    assert asked == [1, 1]
    assert not (tmp_path / "program-c").exists()
