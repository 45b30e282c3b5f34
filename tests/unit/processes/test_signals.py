"""Signals outside the steps: before the ranks have met, and after the request was obeyed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytestmark = pytest.mark.process

PATIENCE_S = 60.0
# Seconds are cut short. A signal is told of; a line is answered late enough for a signal to have had its way.
LISTENING = """
import os, signal, sys, time
import pytest

from ppar_dist.processes import signals

def say(text):
    os.write(1, f"{text}\\n".encode())  # print is not for handlers: it may interrupt itself

signals._MEET_S, signals.SAME_REQUEST_S = 0.2, -1.0
asked = signals.Preemption(lambda code: say(f"noted {code}")).watch()
signal.signal(signal.SIGTERM, lambda *_: say("heard"))
say("listens")
for line in sys.stdin:
    time.sleep(0.5)
    if line == "met\\n":
        asked.limit(600.0)
    if line == "obeyed\\n":
        asked.done()
    say("lives")
"""


class Rank(subprocess.Popen[str]):
    """A process that listens to signals as a rank does."""

    def said(self) -> str:
        assert self.stdout is not None
        return self.stdout.readline().strip()

    def told(self, what: str) -> str:
        assert self.stdin is not None
        print(what, file=self.stdin, flush=True)
        return self.said()

    def end(self) -> str:
        """Its last output; it asks to be started again."""
        assert self.stdout is not None
        code, said = self.wait(PATIENCE_S), self.stdout.read()
        assert code == 75, said
        assert "noted 75\n" in said
        return said


@contextmanager
def rank(stderr: int = subprocess.STDOUT) -> Iterator[Rank]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
    with Rank([sys.executable, "-c", LISTENING], text=True, **pipes) as process:
        try:
            assert process.said() == "listens"
            yield process
        finally:
            process.kill()


def test_a_signal_before_the_ranks_have_met_is_not_waited_out() -> None:
    with rank() as process:
        process.send_signal(signal.SIGTERM)
        assert "the ranks have not met within 0.2 seconds of a signal" in process.end()


def test_a_rank_whose_output_is_closed_still_ends() -> None:
    """As after a terminal was closed."""
    reader, writer = os.pipe()
    os.close(reader)
    with rank(writer) as process:
        os.close(writer)
        process.send_signal(signal.SIGTERM)
        assert process.end().endswith("noted 75\n")


def test_ranks_that_have_met_are_given_their_grace_time() -> None:
    with rank() as process:
        assert process.told("met") == "lives"
        process.send_signal(signal.SIGTERM)
        assert process.said() == "heard"
        assert process.told("alive?") == "lives"


def test_a_terminal_that_is_closed_after_a_request_is_no_second_signal() -> None:
    with rank() as process:
        assert process.told("met") == "lives"
        process.send_signal(signal.SIGTERM)
        assert process.said() == "heard"
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
            assert process.told("alive?") == "lives"
        process.send_signal(signal.SIGINT)  # passed on under another number
        assert process.told("alive?") == "lives"
        process.send_signal(signal.SIGTERM)
        assert "a second signal, SIGTERM: ends now, without a checkpoint of this step" in process.end()


def test_one_signal_more_when_the_request_was_obeyed_is_the_launchers() -> None:
    with rank() as process:
        assert process.told("met") == "lives"
        for line in ("obeyed", "alive?"):
            process.send_signal(signal.SIGTERM)
            assert process.said() == "heard"
            assert process.told(line) == "lives"
        process.send_signal(signal.SIGTERM)
        assert "a second signal, SIGTERM: ends now, the checkpoint is saved" in process.end()
