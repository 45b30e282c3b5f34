"""The table of a sweep, against figures worked out by hand and printed quantiles."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import statistics
from pathlib import Path

import pytest
import yaml

from ppar_dist.config.load import dump_config
from ppar_dist.sweep.grid import Planned, plan_runs
from ppar_dist.sweep.statistics import (
    Difference,
    paired_difference,
    student_distribution,
    student_quantile,
)
from ppar_dist.sweep.table import HELD_OUT, MEAN, make_table
from tests.unit.tiny_run import make_config


@pytest.mark.parametrize(
    ("degrees", "quantile"),  # of a printed table, two-sided 95 %
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (9, 2.262),
        (10, 2.228),
        (30, 2.042),
        (120, 1.980),
    ],
)
def test_students_quantiles(degrees: int, quantile: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(quantile, abs=6e-4)
    assert student_distribution(0.0, degrees) == 0.5


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw, hits = random.Random(0), 0
    for _ in range(2000):
        one = {seed: draw.gauss(0.3, 0.1) for seed in range(3)}
        other = {seed: draw.gauss(0.2, 0.1) for seed in range(3)}
        found = paired_difference(one, other)
        assert found is not None
        hits += found.low <= 0.1 <= found.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = paired_difference({1: 0.5, 2: 0.7, 3: 0.9}, {2: 0.5, 1: 0.4, 9: 0.0})
    assert found is not None
    assert found.value == pytest.approx(0.15)
    assert found.high - found.value == pytest.approx(
        12.7062 * statistics.stdev([0.1, 0.2]) / math.sqrt(2), rel=1e-4
    )
    alone = paired_difference({1: 0.5}, {1: 0.4})
    assert alone is not None
    assert str(alone) == "+10.0"
    assert paired_difference({1: 0.5}, {2: 0.4}) is None
    assert str(Difference(-0.01, -0.02, 0.03)) == "−1.0 [−2.0, +3.0]"


def checkpoint(folder: Path, step: int) -> None:
    """What of a checkpoint says where the run is."""
    (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (folder / "checkpoints" / "latest").write_text(f"step-{step:08d}\n")


def finish(run: Planned, dusk: float, fog: float) -> None:
    folder = run.config.run.dir
    (folder / "metrics").mkdir(parents=True)
    checkpoint(folder, 40)
    (folder / "report.html").touch()
    (folder / "config.yaml").write_text(dump_config(run.config))
    targets = {"dusk": {"miou": dusk}, "fog": {"miou": fog}}
    (folder / "results.json").write_text(json.dumps({"step": 40, "targets": targets}))
    rows = [{"step": 20, "miou": 0.1}, {"step": 40, "miou": 0.6}]
    (folder / "metrics" / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_table_of_finished_runs(tmp_path: Path) -> None:
    base = make_config(tmp_path, tmp_path / "none", targets={"dusk": "d", "fog": "f"})
    (tmp_path / "base.yaml").write_text(dump_config(base))
    grid = {
        "base": "base.yaml",
        "seeds": [0, 1, 2],
        "variants": {"plain": {"ppar.enabled": False}, "PPAR": {}},
        "baseline": "plain",
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    planned = plan_runs(tmp_path / "grid.yaml", tmp_path / "out")
    for run in planned:
        if (run.row.name, run.seed) != ("PPAR", 2):
            bonus = 0.1 * run.seed + (0.05 + 0.01 * run.seed) * (run.row.name == "PPAR")
            finish(run, 0.2 + bonus, 0.4)
    unfinished = planned[-1].config.run.dir
    checkpoint(unfinished, 20)
    (unfinished / "report.html").touch()
    (unfinished / "results.json").write_text(json.dumps({"step": 20, "targets": {"dusk": {"miou": 0.9}}}))
    table = make_table(planned)
    assert table.columns == ("dusk", "fog", MEAN, HELD_OUT)
    plain, ours = table.lines
    assert plain.scores["dusk"] == pytest.approx({0: 0.2, 1: 0.3, 2: 0.4})
    assert not plain.differences
    assert ours.missing == (2,)
    assert ours.scores[MEAN] == pytest.approx({0: 0.325, 1: 0.38})
    assert ours.differences["dusk"].value == pytest.approx(0.055), "seeds 0 and 1 only"
    assert ours.differences["fog"] == Difference(0.0, 0.0, 0.0)
    text = table.text()
    assert "30.0 ± 10.0" in text
    assert "PPAR: not finished: seed 2" in text
    rows = {row["run"]: row for row in json.loads(table.to_json())["rows"]}
    assert rows["PPAR"]["scores"]["dusk"]["difference"]["difference"] == pytest.approx(0.055)
    lines = {(row["run"], row["column"]): row for row in csv.DictReader(io.StringIO(table.to_csv()))}
    assert float(lines["plain", "dusk"]["mean"]) == pytest.approx(0.3)
    assert lines["PPAR", "dusk"]["seeds"] == "2"
    assert float(lines["PPAR", "dusk"]["low"]) == pytest.approx(ours.differences["dusk"].low)
