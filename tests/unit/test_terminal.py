"""What rank 0 says, also when nobody listens."""

from __future__ import annotations

import os
import sys

import pytest

from ppar_dist.cli import main
from ppar_dist.terminal import Progress


def test_a_reader_that_leaves_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        progress = Progress(total=2, start=0, log_every=1)
        for step in (1, 2):
            progress.step(step, {"loss": "1.0"})
        progress.close()
        assert os.path.sameopenfile(stdout.fileno(), os.open(os.devnull, os.O_WRONLY))


def test_closed_streams_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["report", "nowhere"]) == 78
    Progress(total=1, start=0, log_every=1).say("hello")
