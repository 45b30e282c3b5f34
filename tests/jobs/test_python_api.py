"""Training from Python is the command: its results, errors and ends. The blocks of docs/python.md run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ppar_dist
from ppar_dist.cli.demo import write_stand_in_text
from ppar_dist.config.load import parse_config
from ppar_dist.synthetic import synth
from tests.faults.jobs import job
from tests.ranks import rank_environment, read_lines, run_command, tiny_config, write_config

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rank_environment().items():
        monkeypatch.setenv(name, value)


def test_it_trains_as_the_command_does(
    blocks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tree = tiny_config(blocks, tmp_path / "theirs", targets={"unseen": str(blocks / "right")})
    assert run_command(["train", str(write_config(tmp_path / "c.yaml", tree))]).returncode == 0
    handlers, environment = signal.getsignal(signal.SIGTERM), dict(os.environ)
    capfd.readouterr()
    run = ppar_dist.train(tree, run={"dir": tmp_path / "mine"})
    assert "budget: 8 steps" in capfd.readouterr().out
    assert run.folder == tmp_path / "mine"
    theirs, mine = (read_lines(tmp_path / name / "metrics" / "train.jsonl") for name in ("theirs", "mine"))
    assert [line["loss/total"] for line in mine] == [line["loss/total"] for line in theirs]
    assert run.results is not None
    scored = run.load().evaluate({"unseen": blocks / "right"})
    assert scored.targets["unseen"].iou == run.results.targets["unseen"].iou
    assert (signal.getsignal(signal.SIGTERM), dict(os.environ)) == (handlers, environment)
    again = ppar_dist.train(parse_config(tree), quiet=True, **{"run.dir": tmp_path / "mine"})
    assert again.results == run.results
    assert "budget" not in capfd.readouterr().out


def test_a_mistake_is_a_user_error(blocks: Path, tmp_path: Path) -> None:
    tree = tiny_config(blocks, tmp_path / "run")
    with pytest.raises(ppar_dist.UserError, match=r"train\.stepz"):
        ppar_dist.train(tree, train={"stepz": 3})
    with pytest.raises(ppar_dist.UserError, match=r"train\.steps"):
        ppar_dist.train(write_config(tmp_path / "c.yaml", tree), **{"train.steps": -1})
    with pytest.raises(ppar_dist.UserError, match="seed is a value, not a section"):
        ppar_dist.train(tree | {"seed": 3}, **{"seed.a": 1})
    with pytest.raises(ppar_dist.UserError, match="nowhere"):  # what the job itself says
        ppar_dist.train(tree, quiet=True, data={"sources": ["nowhere"]})


def test_an_interrupt_saves_before_it_is_raised(blocks: Path, tmp_path: Path) -> None:
    tree = tiny_config(blocks, tmp_path / "run", train={"steps": 5000, "log_every": 1, "global_batch": 6})
    config = write_config(tmp_path / "c.yaml", tree)
    script = tmp_path / "cell.py"
    script.write_text(f"import ppar_dist\nppar_dist.train({str(config)!r})\n")
    with job([sys.executable, str(script)], tmp_path / "log", PYTHONPATH=str(PAGE.parents[1])) as cell:
        cell.wait_for_step(tmp_path / "run", 3)
        os.kill(cell.process.pid, signal.SIGINT)  # this process alone, as a notebook's stop button
        cell.wait()
        assert "KeyboardInterrupt" in cell.output
        assert cell.alive() == []
    step = ppar_dist.load(tmp_path / "run").path.name
    assert int(step.removeprefix("step-")) >= 3


def test_an_end_that_a_retry_cures_has_its_code(blocks: Path, tmp_path: Path) -> None:
    tree = tiny_config(blocks, tmp_path / "run", train={"steps": 5000, "log_every": 1, "global_batch": 6})
    config = write_config(tmp_path / "c.yaml", tree)
    script = tmp_path / "cell.py"
    script.write_text(
        "import ppar_dist\n"
        "try:\n"
        f"    ppar_dist.train({str(config)!r}, quiet=True)\n"
        "except ppar_dist.JobEnded as error:\n"
        "    print('ended', error.code, error.folder)\n"
    )
    with job([sys.executable, str(script)], tmp_path / "log", PYTHONPATH=str(PAGE.parents[1])) as cell:
        cell.wait_for_step(tmp_path / "run", 3)
        (rank,) = (each for each in cell.family() if "train" in each.cmdline())
        os.kill(rank.pid, signal.SIGTERM)
        assert cell.wait() == 0
        assert f"ended 75 {tmp_path / 'run'}" in cell.output


def test_the_blocks_of_the_page_run(
    tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    synth(Path("demo/shards"), samples_per_domain=10)
    write_stand_in_text(Path("demo/text.npz"), 512)
    street = sorted((real_data / "data" / "camvid" / "images").glob("*.jpg"))[0]
    shutil.copy(street, "street.jpg")
    found = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(found) == 5
    names: dict[str, Any] = {}
    for block in found:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["labels"].shape == names["confidence"].shape == names["one"].shape
    assert names["other"].shape == (240, 320)
    assert np.array_equal(names["one"], names["labels"])
    assert names["results"].targets["night"].iou == names["run"].results.targets["night"].iou
    assert capsys.readouterr().out.count("night") >= 2
