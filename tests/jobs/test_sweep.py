"""A sweep as a user starts it: two variants train, one fails, and the second call starts nothing again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import yaml

from tests.ranks import run_command, tiny_config, write_config


def test_a_sweep_trains_what_is_missing_and_prints_the_table(blocks: Path, tmp_path: Path) -> None:
    sections = {"train": {"steps": 1, "global_batch": 6}, "targets": {"other": str(blocks / "left")}}
    base = write_config(tmp_path / "base.yaml", tiny_config(blocks, tmp_path / "none", **sections))
    grid = {
        "base": str(base),
        "set": {"monitoring.trackers": ["csv"]},
        "variants": {
            "plain": {"ppar.enabled": False, "refit.prototypes": False},
            "PPAR": {},
            "hopeless": {"model.backbone.name": "no_such_model"},
        },
        "baseline": "plain",
    }
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(grid, sort_keys=False))
    command = ["sweep", str(file), "--out", str(tmp_path / "out"), "--run", "--nproc", "1", "--jobs", "2"]
    first = run_command([*command, "--json"])
    assert first.returncode == 78, first.stderr
    assert "hopeless, seed 0: ended with 78" in first.stderr
    rows = {row["run"]: row for row in json.loads(first.stdout)["rows"]}
    assert rows["hopeless"]["missing"] == [0]
    for name in ("plain", "PPAR"):
        results = json.loads((tmp_path / "out" / "runs" / name / "seed-0" / "results.json").read_text())
        assert rows[name]["scores"]["other"]["seeds"] == {"0": results["targets"]["other"]["miou"]}
        with (tmp_path / "out" / "runs" / name / "seed-0" / "metrics.csv").open() as table:
            (row,) = [row for row in csv.DictReader(table) if row.get("target/other/miou")]
        assert float(row["target/other/miou"]) == results["targets"]["other"]["miou"]
    grid["variants"] = {"plain": {"ppar.enabled": False, "refit.prototypes": False}, "PPAR": {}}
    file.write_text(yaml.safe_dump(grid, sort_keys=False))
    second = run_command(command)
    assert second.returncode == 0, second.stderr
    assert "[1/" not in second.stderr, "nothing was started"
    assert "Δ other" in second.stdout
