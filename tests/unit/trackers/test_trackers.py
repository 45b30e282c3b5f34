"""Trackers hold exactly what the run's own files hold, whatever happens in between."""

from __future__ import annotations

import csv
import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.files.jsonl import JsonLines, drop_after
from ppar_dist.run import paths
from ppar_dist.trackers import all_trackers
from ppar_dist.trackers.csv_file import CsvFile
from ppar_dist.trackers.follower import Follower
from ppar_dist.trackers.mlflow_server import Mlflow
from ppar_dist.trackers.tensorboard_files import TensorBoard
from ppar_dist.trackers.tracker import About, Point, TakesBack, Tracker
from tests.unit.tiny_run import make_config
from tests.unit.trackers.event_files import as_float32, read_tensorboard

STEPS = 40
SCORES = {"target/dusk/miou": 0.25}


def about(run: Path) -> About:
    return About(run, "tiny", "streets", STEPS, {"optim.lr": 1e-3, "data.sources": ["a", "b"]})


class Run:
    """Metric files as the recorder writes, resumes and rewinds them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.step = folder, 0
        self.draw = random.Random(0)
        self.rewind(0)

    def rewind(self, step: int) -> None:
        self.step, self.files = step, {}
        for name in ("train", "eval"):
            path = paths.metrics_file(self.folder, name)
            drop_after(path, step)
            self.files[name] = JsonLines(path)
            self.files[name].open()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            figures = {"samples_seen": 4 * self.step, "loss/total": self.draw.random(), "grad_norm": None}
            late = {"trust/a/road": self.draw.random()} if self.step > 10 else {}
            self.files["train"].write({"step": self.step, **figures, **late})
            if self.step % 4 == 0:
                miou = self.draw.random()
                self.files["eval"].write({"step": self.step, "miou": miou, "domains": {"a": miou / 2}})

    def expected(self) -> dict[str, dict[int, float]]:
        found: dict[str, dict[int, float]] = {}
        for line in paths.metrics_file(self.folder, "train").read_text().splitlines():
            record = json.loads(line)
            named = {"samples_seen": "train/samples_seen", "loss/total": "loss/total"}
            for key, name in {**named, "trust/a/road": "trust/a/road"}.items():
                if key in record:
                    found.setdefault(name, {})[record["step"]] = record[key]
        for line in paths.metrics_file(self.folder, "eval").read_text().splitlines():
            record = json.loads(line)
            found.setdefault("held_out/miou", {})[record["step"]] = record["miou"]
            found.setdefault("held_out/a/miou", {})[record["step"]] = record["domains"]["a"]
        return found


def rounded(figures: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    return {name: {step: as_float32(x) for step, x in row.items()} for name, row in figures.items()}


def carry(follower: Follower, step: int | None = None) -> None:
    """What the thread does when it wakes up; at a start the run is at ``step``."""
    if step is not None:
        follower.rewind(step)
    follower._carry()


def test_tensorboard_equals_the_metric_files_over_kills_resumes_and_rollbacks(tmp_path: Path) -> None:
    run = Run(tmp_path)
    follower = Follower("tensorboard", about(tmp_path), TensorBoard(about(tmp_path)))
    run.train(7)
    carry(follower, 0)
    run.train(6)  # killed before these were sent
    run.rewind(12)
    follower = Follower("tensorboard", about(tmp_path), TensorBoard(about(tmp_path)))
    carry(follower, 12)
    run.train(5)
    carry(follower)
    run.train(3)
    carry(follower)
    run.rewind(10)  # a rollback behind what was sent
    follower.rewind(10)
    run.train(2)
    carry(follower)
    assert read_tensorboard(tmp_path) == rounded(run.expected())
    run.rewind(4)  # a kill, and a resume from a checkpoint long before
    follower = Follower("tensorboard", about(tmp_path), TensorBoard(about(tmp_path)))
    follower.start(4)
    run.train(STEPS - 4)
    follower.finish(SCORES)
    follower.close(60)
    run.rewind(STEPS)  # killed between the scores and the report
    follower = Follower("tensorboard", about(tmp_path), TensorBoard(about(tmp_path)))
    follower.start(STEPS)
    follower.finish(SCORES)
    follower.close(60)
    assert read_tensorboard(tmp_path) == rounded(
        {**run.expected(), "target/dusk/miou": {STEPS: SCORES["target/dusk/miou"]}}
    )


def test_a_note_that_was_not_written_before_a_kill_doubles_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train(9)
    follower = Follower("tensorboard", about(tmp_path), TensorBoard(about(tmp_path)))
    carry(follower, 0)
    note = paths.tracker_note(tmp_path, "tensorboard")
    before = note.read_text()
    run.train(9)
    carry(follower)
    note.write_text(before)
    follower = Follower("tensorboard", about(tmp_path), TensorBoard(about(tmp_path)))
    carry(follower, 18)
    assert read_tensorboard(tmp_path) == rounded(run.expected())


def test_the_csv_table_equals_the_metric_files(tmp_path: Path) -> None:
    run = Run(tmp_path)
    follower = Follower("csv", about(tmp_path), CsvFile(about(tmp_path)))
    run.train(8)
    carry(follower, 0)
    run.train(10)  # the figures of later steps have one more column
    carry(follower)
    run.rewind(6)
    follower.rewind(6)
    run.train(8)
    carry(follower)
    found: dict[str, dict[int, float]] = {}
    with paths.metrics_table(tmp_path).open(newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if name != "step" and text:
                    assert int(row["step"]) not in found.setdefault(name, {})
                    found[name][int(row["step"])] = float(text)
    assert found == run.expected()


def test_mlflow_has_each_step_once_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'store'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run, folder = Run(tmp_path / "run"), tmp_path / "run"
    follower = Follower("mlflow", about(folder), Mlflow(about(folder)))
    run.train(3)
    carry(follower, 0)
    note = paths.tracker_note(folder, "mlflow")
    early = note.read_text()
    run.train(3)
    carry(follower)
    note.write_text(early)  # a kill after they were sent, and before this was noted
    follower = Follower("mlflow", about(folder), Mlflow(about(folder)))
    follower.start(6)
    run.train(2)
    follower.finish(SCORES)
    follower.close(60)
    client = MlflowClient(tracking_uri=f"file:{tmp_path / 'store'}")
    experiment = client.get_experiment_by_name("streets")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["optim.lr"] == "0.001"
    for name, row in {**run.expected(), "target/dusk/miou": {STEPS: 0.25}}.items():
        history = client.get_metric_history(found.info.run_id, name)
        assert sorted((each.step, each.value) for each in history) == sorted(row.items()), name


class Broken:
    """A tracker that does not work until ``works``."""

    takes_back = TakesBack.NONE

    def __init__(self) -> None:
        self.works, self.got = False, list[Point]()

    def open(self, own: dict[str, Any], first: int) -> None:
        if not self.works:
            raise ConnectionError("http://me:secret@host:5000 is down, api_key=abc")

    def write(self, points: Sequence[Point]) -> None:
        self.got += points

    def finish(self, scores: Mapping[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        raise ConnectionError("still down")


def test_a_failure_is_told_once_counted_and_made_up_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppar_dist.trackers.follower._AGAIN_S", 0.0)
    failures, broken, run = [], Broken(), Run(tmp_path)
    tracker: Tracker = broken
    run.train(2)
    follower = Follower("mlflow", about(tmp_path), tracker, lambda: failures.append(1), every_s=0.01)
    follower.start(0)
    deadline = time.monotonic() + 30
    while len(failures) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(failures) >= 3
    (message,) = [each.getMessage() for each in caplog.records if "cannot be written" in each.getMessage()]
    assert "ConnectionError" in message
    assert "secret" not in message
    assert "abc" not in message
    broken.works = True
    follower.close(30)
    assert [point.step for point in broken.got] == [1, 2]


class Hanging(Broken):
    def open(self, own: dict[str, Any], first: int) -> None:
        threading.Event().wait()


def test_a_tracker_that_hangs_does_not_keep_the_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    follower = Follower("wandb", about(tmp_path), Hanging(), every_s=0.01)
    follower.start(0)
    began = time.monotonic()
    follower.close(0.2)
    assert time.monotonic() - began < 5
    assert "wandb does not answer" in caplog.text


def config(folder: Path, *trackers: str) -> Config:
    return make_config(folder, folder / "run", monitoring={"trackers": list(trackers)})


def test_a_tracker_that_cannot_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
        all_trackers.refuse_missing(config(tmp_path, "csv", "mlflow"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ppar-dist\[tensorboard\]'"):
        all_trackers.refuse_missing(config(tmp_path, "tensorboard"))
    all_trackers.refuse_missing(config(tmp_path, "csv"))
