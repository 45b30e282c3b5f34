"""The live view of rank 0: on a real pseudo-terminal, in a log, and with closed streams."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from ppar_dist.cli.parser import main
from ppar_dist.text import clock
from ppar_dist.view import terminal as terminals
from ppar_dist.view.progress import Pace, Progress, StepSummary, bar, flow
from tests.ranks import rank_environment
from tests.terminals import Terminal, terminal

pytestmark = pytest.mark.process

SCRIPT = """
import os, subprocess, sys, time
from ppar_dist.view import terminal
from ppar_dist.view.progress import StepSummary, Progress

def glance(step):
    loss = {"total": 1.5, "segmentation": 1.25, "text": 2.125, "visual_text": 0.75, "pixel": 0.0}
    weights = {"day": 1.04, "fog": 0.95, "bad\\x1b[2Jname": 1.0}
    return StepSummary(loss, "text", ("visual_text", 20), 0.875, weights)

def train(steps=12, seconds=0.05):
    for step in range(1, steps + 1):
        time.sleep(seconds)
        progress.step(step, glance(step), 0.25 * seconds)

progress = Progress(40, 0, 4)
"""
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[78]")


def shown(body: str, lines: int = 24, columns: int = 80, **environment: str):  # type: ignore[no-untyped-def]
    return terminal([sys.executable, "-c", SCRIPT + body], lines, columns, **environment)


def until_step(screen: Terminal, step: int) -> None:
    """Until the whole view of ``step`` is there."""
    last = re.compile(rf"step {step}/40 [\s\S]*^ess 0\.88 [\s\S]*data wait \d+ %", re.M)
    screen.wait_for(lambda: last.search(screen.text()), f"step {step}")


def test_a_glance_on_80_columns() -> None:
    with shown("train(); input()") as screen:
        until_step(screen, 12)
        *above, first, second, third, fourth, fifth = screen.rows()
        assert not any(above)
        assert re.fullmatch(r"step 12/40 ━+─+ 30 %  \d+\.\d\d step/s  eta \d:\d\d:\d\d", first)
        assert second == "stage text · visual_text in 8 steps"
        assert third == "loss 1.500 · segmentation 1.250 · text 2.125 · visual_text 0.750"
        assert fourth == r"ess 0.88 · weights day 1.04 · fog 0.95 · bad\x1b[2Jname 1.00"
        assert re.fullmatch(r"data wait \d+ %", fifth)


def test_on_40_columns_nothing_is_wrapped_or_lost() -> None:
    with shown("train(); progress.note('checkpoint', '8'); input()", columns=40) as screen:
        until_step(screen, 12)
        screen.wait_for(lambda: "checkpoint 8" in screen.text(), "checkpoint")
        text = "\n".join(row for row in screen.rows() if row)
        for cell in ("step 12/40", "step/s", "eta 0:", "visual_text in 8 steps", "segmentation 1.250"):
            assert cell in text
        for cell in (
            "visual_text 0.750",
            "weights day 1.04",
            "fog 0.95",
            "data wait",
            "checkpoint 8, 0:",
        ):
            assert cell in text


def test_lines_of_other_processes_stay_whole() -> None:
    """Of children that know nothing of the view, in bursts; also this program's own."""
    body = """
for step in range(1, 13):
    time.sleep(0.06)
    progress.step(step, glance(step))
    subprocess.run(["sh", "-c", f"echo other {step} a >&2; echo other {step} b; echo other {step} c"])
    progress.say(f"own {step}")
progress.close()
"""
    with shown(body, lines=14) as screen:
        assert screen.wait() == 0
        found = [line for line in screen.lines() if line]
        expected = [line for n in range(1, 13) for line in (*(f"other {n} {x}" for x in "abc"), f"own {n}")]
        assert found[: len(expected)] == expected
        last = "".join(found[len(expected) :])  # wrapped
        assert re.match(r"step 12/40 loss=1\.500 segmentation=1\.250 .*stage=text ?ess=0\.88 wait=", last)
        assert screen.screen.margins in (None, (0, 13))


def test_a_window_that_changes_its_size() -> None:
    with shown("train(); input(); train(1); input()") as screen:
        until_step(screen, 12)
        for lines, columns in ((16, 50), (30, 100)):
            screen.resize(lines, columns)
            screen.wait_for(lambda: screen.rows()[-1].startswith("data wait"), "the view in its new place")
            assert screen.text().count("step 12/40") == 1
        screen.resize(6, 30)  # too small for a view
        screen.wait_for(lambda: "step 12/40" not in screen.text(), "a screen without the view")


@pytest.mark.parametrize("ending", ["progress.close()", "", "terminal.close_all(); os._exit(0)", "1 / 0"])
def test_the_terminal_is_whole_afterwards(ending: str) -> None:
    with shown(f"train(); time.sleep(0.5)\n{ending}", lines=12) as screen:
        assert screen.wait() == (1 if ending == "1 / 0" else 0)
        assert screen.screen.margins in (None, (0, 11))
        assert "data wait" not in screen.text()


def test_a_killed_process_is_cleaned_up_after() -> None:
    kill = "import os, signal; train(); time.sleep(0.6); os.kill(os.getpid(), signal.SIGKILL)"
    body = f"""
import subprocess, sys
print("before")
subprocess.run([sys.executable, "-c", {SCRIPT + kill!r}])
from ppar_dist.view import terminal
terminal.give_back(sys.stderr)
print("after")
"""
    with terminal([sys.executable, "-c", body], lines=12) as screen:
        assert screen.wait() == 0
        assert [line for line in screen.lines() if line] == ["before", "after"]
        assert screen.screen.margins in (None, (0, 11))


def test_no_colour_means_none() -> None:
    with shown("train(); input()", NO_COLOR="1") as screen:
        until_step(screen, 12)
        assert set(re.findall(rb"\x1b\[[0-9;]*m", screen.raw)) <= {b"\x1b[0m"}
    with shown("train(); input()") as screen:
        until_step(screen, 12)
        assert b"\x1b[36m" in screen.raw


def test_a_dumb_terminal_gets_lines() -> None:
    with shown("train(); progress.close()", TERM="dumb") as screen:
        assert screen.wait() == 0
        assert not ESCAPES.search(screen.raw)
        assert len(re.findall(r"step \d+/40 loss=1\.500", screen.text())) == 3


def test_a_terminal_that_cannot_show_the_bar() -> None:
    with shown("train(); input()", PYTHONIOENCODING="ascii") as screen:
        until_step(screen, 12)
        assert re.search(r"step 12/40 #+\.+ 30 %", screen.text())


def test_a_terminal_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    body = f"""
import signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
train()
while not os.path.exists({str(tmp_path / "gone")!r}): time.sleep(0.01)
progress.say("a line"); train(30, 0.02); progress.close()
open({str(tmp_path / "done")!r}, "w")
"""
    with shown(body) as screen:
        until_step(screen, 12)
        os.close(screen.slave)
        os.close(screen.master)
        (tmp_path / "gone").touch()
        assert screen.process.wait(60) == 0
    assert (tmp_path / "done").exists()


def test_a_terminal_that_is_stopped_does_not_stop_the_run(tmp_path: Path) -> None:
    stopped, done = tmp_path / "stopped", tmp_path / "done"
    body = f"""
train()
while not os.path.exists({str(stopped)!r}): time.sleep(0.01)
train(30, 0.02); open({str(done)!r}, "w"); progress.close()
"""
    with shown(body) as screen:
        until_step(screen, 12)
        termios.tcflow(screen.slave, termios.TCOOFF)  # Ctrl-S
        stopped.touch()
        screen.wait_for(done.exists, "end of the steps while the terminal was stopped")
        termios.tcflow(screen.slave, termios.TCOON)
        assert screen.wait() == 0


def test_lines_in_a_log() -> None:
    body = "train(); progress.say('bad\\x1b[2J\\nname'); progress.close()"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + body], capture_output=True, env=rank_environment(), check=True
    )
    lines = done.stdout.decode().splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["4/40", "8/40", "12/40"]
    assert re.search(r" \d+\.\d\d step/s eta 0:\d\d:\d\d$", lines[2])
    assert lines[-1] == r"bad\x1b[2J\nname"
    assert done.stderr == b""


def test_what_a_rate_amounts_to_stands_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[float] = []

    def speed(rate: float) -> list[str]:
        asked.append(rate)
        return [f"{8 * rate:.1f} images/s", "MFU 41.5%"]

    progress = Progress(2, 0, 1, speed)
    progress.step(1, StepSummary({"total": 1.0}))
    progress.close()
    found = re.search(r" (\d+\.\d\d) step/s (\S+) images/s MFU 41\.5% eta ", capsys.readouterr().out)
    assert found is not None
    assert (found[1], found[2]) == (f"{asked[0]:.2f}", f"{8 * asked[0]:.1f}")
    assert "MFU 41.5%" in progress._rows(100)[-1]


def test_a_reader_that_leaves_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        progress = Progress(total=2, start=0, log_every=1)
        for step in (1, 2):
            progress.step(step, StepSummary({"total": 1.0}))
        progress.close()
        assert os.path.sameopenfile(stdout.fileno(), os.open(os.devnull, os.O_WRONLY))


def test_closed_streams_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["report", "nowhere"]) == 78
    Progress(total=1, start=0, log_every=1).say("hello")


def test_the_rate_is_of_the_last_steps() -> None:
    pace = Pace(0.0)
    assert pace.figures() == (0.0, 0.0)
    pace.step(100.0, 90.0)  # a slow first step
    assert pace.figures() == (0.01, 0.9)
    for number in range(1, 301):
        pace.step(100.0 + number, 0.5)
    rate, waiting = pace.figures()
    assert rate == pytest.approx(1.0)
    assert waiting == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (65.4, "0:01:05"), (3600, "1:00:00"), (183600, "2 d 3:00:00"), (float("inf"), "?")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_rows_fit_their_width() -> None:
    for width in range(20, 200):
        assert all(len(row) <= width for row in flow(["a" * 9, "b" * 11, "c" * 3, "d" * 17], width))
    plain = re.compile(r"\x1b\[[0-9;]*m")
    pace = ["2.00 step/s", "eta 0:00:03"]
    for width in range(40, 200):
        rows = bar(5, 10, pace, width)
        assert all(len(plain.sub("", row)) <= width for row in rows)
        assert len(rows) == (2 if width < 44 else 1)


def test_what_can_be_drawn_on() -> None:
    assert not terminals.can_draw(None)
    with open(os.devnull, "w") as stream:
        assert not terminals.can_draw(stream, {"TERM": "xterm"})
    assert not terminals.can_draw(stream, {"TERM": "xterm"})  # closed
    assert terminals.has_colour({"NO_COLOR": ""})
    assert not terminals.has_colour({"NO_COLOR": "1"})
