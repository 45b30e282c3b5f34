"""A rank's own log: its content, and the lines that stay in the job's log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ppar_dist.processes.rank_log import FOLDER
from tests.ranks import rank_environment

pytestmark = pytest.mark.process

REFUSAL = "ppar-dist: cannot read config nowhere.yaml: No such file or directory; check the path\n"


def refused(rank: int, folder: Path) -> str:
    """The lines in the job's log of a rank that is given a wrong path."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", FOLDER: str(folder)}
    ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    done = subprocess.run(
        [sys.executable, "-m", "ppar_dist", "train", "nowhere.yaml"],
        env=rank_environment() | ranks,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 78, done.stdout
    return done.stdout


def test_a_rank_has_a_log_of_its_own_that_grows_and_its_last_words_are_in_both(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "job-7"
    assert [refused(1, folder), refused(1, folder)] == [REFUSAL, REFUSAL]
    lines = (folder / "rank-00001.log").read_text().splitlines(keepends=True)
    assert [line for line in lines if line == REFUSAL] == [REFUSAL] * 2
    assert sum(" rank 1 of 2 on " in line for line in lines) == 2


def test_rank_0_stays_in_the_jobs_log(tmp_path: Path) -> None:
    assert refused(0, tmp_path) == REFUSAL
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_reported_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refused(1, tmp_path / "file" / "logs")
    assert said.endswith(REFUSAL)
    assert "rank-00001.log: Not a directory; rank 1 stays in the job's log" in said
