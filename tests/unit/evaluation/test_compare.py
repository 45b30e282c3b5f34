"""Runs side by side, from files alone."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from ppar_dist.config.load import dump_config
from ppar_dist.errors import UserError
from ppar_dist.evaluation.compare import compare
from ppar_dist.evaluation.results import Results, TargetResult, keep_results
from tests.unit.tiny_run import make_config

PROTOCOL = "shorter side 16, whole, labels at their own size"


def make_scored(
    folder: Path, seed: int, miou: dict[str, float], protocol: str = PROTOCOL, **changes: Any
) -> Path:
    """A run's folder with a configuration and scores."""
    images, step = changes.pop("images", 9), changes.pop("step", 40)
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(make_config(folder, folder, seed=seed, **changes)))
    targets = {name: TargetResult(f"domain {name}", images, value, value, {}) for name, value in miou.items()}
    results = Results(folder.name, f"step-{step:08d}", step, (), targets, protocol)
    keep_results(folder / "results.json", results, own=PROTOCOL)
    return folder


def test_runs_that_differ_in_the_seed_are_one_row(tmp_path: Path) -> None:
    plain = [{"dusk": 0.50, "fog": 0.40}, {"dusk": 0.54, "fog": 0.30}, {"dusk": 0.49, "fog": 0.36}]
    runs = [make_scored(tmp_path / f"plain-{seed}", seed, scores) for seed, scores in enumerate(plain)]
    other = {"optim": {"lr": 0.5}}
    runs.append(make_scored(tmp_path / "fast", 0, {"dusk": 0.2, "fog": 0.1}, **other))
    found = compare([runs[1], runs[3], runs[0], runs[2]])
    first, second = found.rows
    assert (first.name, first.seeds, second.name, second.seeds) == ("plain", (0, 1, 2), "fast", (0,))
    scores = first.scores[PROTOCOL]
    for target in ("dusk", "fog"):
        values = [each[target] for each in plain]
        assert scores[target].mean == pytest.approx(statistics.mean(values))
        assert scores[target].deviation == pytest.approx(statistics.stdev(values))
    means = [(each["dusk"] + each["fog"]) / 2 for each in plain]
    assert scores["mean"].mean == pytest.approx(statistics.mean(means))
    assert scores["mean"].deviation == pytest.approx(statistics.stdev(means))
    assert second.scores[PROTOCOL]["mean"].deviation is None
    assert (first.changes, second.changes) == ((), ("optim.lr: 0.001 -> 0.5",))
    table = found.table()
    assert "51.0 ± 2.6" in table
    assert f"mIoU; {PROTOCOL}" in table
    assert "plain -> fast:\n  optim.lr: 0.001 -> 0.5" in table
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [(row["row"], row["target"], row["n"]) for row in rows[:2]] == [
        ("plain", "dusk", "3"),
        ("plain", "fog", "3"),
    ]
    assert json.loads(found.to_json())["rows"][1]["scores"][PROTOCOL]["dusk"]["mean"] == 0.2


def test_only_scores_of_one_protocol_and_target_are_compared(tmp_path: Path) -> None:
    one = make_scored(tmp_path / "one", 0, {"dusk": 0.5, "fog": 0.4})
    two = make_scored(tmp_path / "two", 0, {"dusk": 0.6, "fog": 0.3}, optim={"lr": 0.5})
    make_scored(one, 0, {"dusk": 0.9}, "images as they are")
    make_scored(two, 0, {"fog": 0.3}, images=8, optim={"lr": 0.5})  # another fog
    found = compare([one, two])
    assert {protocol: list(scores) for protocol, scores in found.rows[0].scores.items()} == {
        PROTOCOL: ["dusk"]
    }
    told = "\n".join(found.notes)
    assert f"[images as they are], which {two} lack" in told
    assert f"target fog by [{PROTOCOL}]: its images differ: 8, 9" in told
    with pytest.raises(
        UserError, match=r"no score on fog of all these runs is by one protocol.*images differ"
    ):
        compare([one, two], ["fog"])
    with pytest.raises(UserError) as caught:
        compare([one, two], ["dask", "dusk"])
    assert str(caught.value) == "no run was scored on dask; there are dusk, fog; did you mean dusk?"


def test_scores_by_different_protocols_alone_are_refused(tmp_path: Path) -> None:
    one = make_scored(tmp_path / "one", 0, {"dusk": 0.5})
    two = make_scored(tmp_path / "two", 1, {"dusk": 0.6}, "images as they are")
    with pytest.raises(
        UserError, match=r"no score of all these runs is by one protocol.*with the same options"
    ):
        compare([one, two])


def test_a_run_given_twice_says_nothing_of_the_spread(tmp_path: Path) -> None:
    one = make_scored(tmp_path / "one", 3, {"dusk": 0.5})
    two = make_scored(tmp_path / "two", 3, {"dusk": 0.6})
    with pytest.raises(UserError, match=r"of one configuration and seed 3.*give one of them"):
        compare([one, two])


def test_another_step_is_told(tmp_path: Path) -> None:
    one = make_scored(tmp_path / "a-0", 0, {"dusk": 0.5})
    two = make_scored(tmp_path / "a-1", 1, {"dusk": 0.6}, step=20)
    found = compare([one, two])
    assert "the checkpoints are of different steps" in found.notes
    assert "20–40" in found.table()


def test_what_has_no_scores_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run: no config\.yaml"):
        compare([tmp_path / "nowhere"])
    run = make_scored(tmp_path / "one", 0, {"dusk": 0.5})
    (run / "results.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read; score the run again"):
        compare([run])
    assert (run / "results.json").read_text() == "[", "a comparison changes no file"
    (run / "results.json").unlink()
    with pytest.raises(UserError, match="has no scores; first ppar-dist evaluate"):
        compare([run])
