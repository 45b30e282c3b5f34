"""The content and the form of a diagnosis; it leaves no files behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ppar_dist.cli.parser import main
from ppar_dist.config.load import parse_config
from ppar_dist.doctor.findings import Check, Diagnosis, Status, counted, ok, run_checks
from ppar_dist.doctor.job import examine_config
from tests.ranks import tiny_config, write_config
from tests.unit.doctor.worlds import EXIT_CODES, Doctor


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in (folder, *folder.rglob("*"))}


def test_a_healthy_configuration_is_only_ok(doctor: Doctor) -> None:
    checks = doctor("--nproc", "1")
    checks.pop("trust")  # a warning: the towers of tests have random weights
    checks.pop("file system", None)  # where the tests write may be in memory
    assert {name: check["found"] for name, check in checks.items() if check["status"] != "ok"} == {}
    assert {"shards", "overlap", "classes", "batch", "stages", "space", "save time", "start"} < checks.keys()
    assert checks["classes"]["facts"]["never"] == []
    assert checks["classes"]["facts"]["lacking"] == {"right": ["car"]}
    assert checks["batch"]["facts"]["possible_ranks"] == [1, 2, 3, 6]
    assert checks["stages"]["facts"]["steps"] == {"warmup": 2, "text": 1, "visual_text": 2, "pixel": 3}


def test_the_schema_of_a_diagnosis(blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_config(tmp_path / "config.yaml", tiny_config(blocks, tmp_path / "run")))
    main(["doctor", path, "train.steps=9", "--json", "--quick"])
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["subject", "status", "checks"]
    assert report["subject"] == f"{path} train.steps=9"
    for check in report["checks"]:
        assert list(check) == ["name", "status", "found", "remedy", "facts"]
        assert check["status"] in EXIT_CODES
        assert (check["remedy"] is None) == (check["status"] == "ok")
    names = [check["name"] for check in report["checks"]]
    assert len(names) == len(set(names))


def test_nothing_is_left_behind_and_no_data_is_touched(doctor: Doctor, blocks: Path, tmp_path: Path) -> None:
    tiny_config(blocks, tmp_path / "run")  # writes the text beside the data, where no test has done so yet
    data = snapshot(blocks)
    before = {path.name for path in tmp_path.iterdir()} | {"config.yaml"}
    doctor()
    assert snapshot(blocks) == data
    assert {path.name for path in tmp_path.iterdir()} == before
    (tmp_path / "run").mkdir()
    doctor()
    assert list((tmp_path / "run").iterdir()) == []


def test_every_wrong_key_is_named_and_no_other_check_runs(doctor: Doctor) -> None:
    checks = doctor("train.stepz=3", "data.workers=-1")
    assert list(checks) == ["configuration"]
    assert "unknown key train.stepz" in checks["configuration"]["found"]
    assert "data.workers" in checks["configuration"]["found"]


def test_a_check_that_crashes_is_a_failure_and_the_others_run() -> None:
    def crash(_: int) -> None:
        raise KeyError("oops")

    report = run_checks("x", [("g", (Check("a", crash), Check("b", lambda n: ok(f"{n}"))))], 3)
    assert [result.finding.status for result in report.results] == [Status.FAILURE, Status.OK]
    assert "KeyError: 'oops'" in report.results[0].finding.found
    assert report.status == Status.FAILURE


def test_lines_fit_the_width_and_end_in_a_summary() -> None:
    long = ok(" ".join(["word"] * 60))
    report = run_checks(
        "x", [("g", (Check("a", lambda _: long), Check("longer name", lambda _: long)))], None
    )
    lines = report.lines(80)
    assert max(map(len, lines)) <= 80
    columns = {line.index("word") for line in lines if "word" in line}
    assert len(columns) == 1
    assert lines[-1] == "2 ok: no problems found"
    assert Diagnosis("x", ()).status == Status.OK
    assert counted(1, "step") + counted(1200, "step") == "1 step1,200 steps"


def test_figures_come_from_processes_own_progress(blocks: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    config = parse_config(tiny_config(blocks, tmp_path / "run"))
    examine_config("x", lambda: config, 1, progress=lambda *item: told.append(item))
    assert [item for item in told if item[0] == "shards"] == [("shards", 1, 2), ("shards", 2, 2)]


def test_zero_ranks_and_missing_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "x.yaml", "--nproc", "0"]) == 78
    assert "at least 1" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path / "none.yaml")]) == 78
    assert "cannot read config" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path), "train.steps=3"]) == 78
    assert os.listdir(tmp_path) == []
