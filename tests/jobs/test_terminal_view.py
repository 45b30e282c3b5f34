"""A job of two ranks under the DeepSpeed launcher, as seen on the terminal it was started from."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

from tests.faults.jobs import ours, sabotaged, tiny_run
from tests.sabotage.pace import Pace
from tests.terminals import Terminal, terminal


def view(screen: Terminal) -> bool:
    """Whether the rows of the view are there, with a step done."""
    text = "\n".join(screen.rows())
    return bool(re.search(r"^loss \d[\s\S]*^data wait \d+ %", text, re.M))


def test_a_whole_run(blocks: Path, tmp_path: Path) -> None:
    columns = 80
    train = {"steps": 36, "eval_every": 18, "log_every": 1}
    run, config = tiny_run(blocks, tmp_path, train=train, checkpoint={"every": 12}, data={"holdout": 0.3})
    hold = Pace(tmp_path / "hold", step=12, seconds=1)
    command = sabotaged(hold.hold, "train", config, "--nproc", "2")
    with terminal(command, columns=columns) as screen:
        screen.wait_for(lambda: view(screen) and "checkpoint 12" in screen.text(), "view with the checkpoint")
        hold.release()
        shown = screen.text()
        for cell in ("step/s", "eta 0:0", "stage ", "segmentation ", "ess ", "weights left ", "right "):
            assert cell in shown
        assert screen.wait() == 0
        flat = "".join(
            line.ljust(columns) if len(line) == columns else line + "\n" for line in screen.lines()
        )
        for number in (12, 24, 36):
            assert re.search(rf"^checkpoint {run}/checkpoints/step-{number:08d} \(.* s\)$", flat, re.M)
        assert re.search(r"^step 18: held-out source mIoU \d+\.\d$", flat, re.M)
        assert re.search(r"^step 36/36 loss=.* stage=pixel .* eta 0:00:00$", flat, re.M)
        assert flat.count("data wait") == 0
        assert screen.screen.margins in (None, (0, 23))


def test_a_job_that_is_killed_leaves_the_terminal_whole(blocks: Path, tmp_path: Path) -> None:
    _, config = tiny_run(blocks, tmp_path, train={"steps": 100_000}, faults={"peer_s": 3})
    with terminal(ours("train", config, "--nproc", "2"), columns=40) as screen:
        screen.wait_for(lambda: view(screen), "view")
        family = psutil.Process(screen.process.pid).children(recursive=True)
        next(process for process in family if process.environ().get("RANK") == "0").kill()
        assert screen.wait() == 75
        assert "data wait" not in screen.text()
        assert screen.screen.margins in (None, (0, 23))
