"""A run's folder: every fault is named, and no damage ends in a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppar_dist.checkpoint import list_checkpoints
from ppar_dist.cli.parser import main
from ppar_dist.doctor.describe import describe, inspect
from ppar_dist.doctor.runs import examine_run
from ppar_dist.errors import UserError
from ppar_dist.run.facts import folder_bytes
from tests.unit.doctor.worlds import begun, flip, last_manifest

Examine = Callable[[], dict[str, Any]]


@pytest.fixture(scope="module")
def whole(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with two checkpoints, logs of 7 steps, a table and a report."""
    home = tmp_path_factory.mktemp("whole")
    run = begun(blocks, home, steps=(4, 8), targets={"unseen": str(blocks / "right")})
    (run / "metrics").mkdir()
    lines = [json.dumps({"step": n, "samples_seen": 6 * n, "seconds": 2.0}) for n in range(1, 9)]
    for name in ("train", "eval", "samples"):
        (run / "metrics" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (run / "results.json").write_text('{"step": 8}')
    (run / "report.html").write_text("<html></html>")
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture
def doctor(run: Path, capsys: pytest.CaptureFixture[str]) -> Examine:
    def examine() -> dict[str, Any]:
        code = main(["doctor", str(run), "--json"])
        report = json.loads(capsys.readouterr().out)
        assert code == (78 if report["status"] == "failure" else 0)
        return {check["name"]: check for check in report["checks"]}

    return examine


def test_a_whole_run_is_only_ok(doctor: Examine) -> None:
    checks = doctor()
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert checks["latest"]["found"] == "step-00000008"
    assert checks["results"]["found"] == "report.html, results.json of step-00000008"


def test_the_folder_is_only_read(doctor: Examine, run: Path) -> None:
    before = {str(p): p.stat().st_mtime_ns for p in (run, *run.rglob("*"))}
    doctor()
    assert {str(p): p.stat().st_mtime_ns for p in (run, *run.rglob("*"))} == before


def test_one_damaged_checkpoint_warns_and_all_of_them_fail(doctor: Examine, run: Path) -> None:
    flip(last_manifest(run).parent / "ppar.safetensors")
    checks = doctor()
    assert checks["checkpoints"]["status"] == "warning"
    assert "step-00000008 is damaged: ppar.safetensors differs" in checks["checkpoints"]["found"]
    assert "names step-00000008, which is damaged" in checks["latest"]["found"]
    assert checks["to repeat"]["facts"]["repeated_steps"] == 4
    (run / "checkpoints" / "step-00000004" / "state.json").unlink()
    checks = doctor()
    assert checks["checkpoints"]["status"] == "failure"
    assert "a job refuses to begin at step 0 again" in checks["checkpoints"]["found"]
    assert "step-00000004 is damaged: state.json is missing" in checks["checkpoints"]["found"]


def test_a_latest_that_names_nothing(doctor: Examine, run: Path) -> None:
    (run / "checkpoints" / "latest").write_text("step-00000099\n")
    assert "names 'step-00000099', which is not there" in doctor()["latest"]["found"]
    (run / "checkpoints" / "latest").unlink()
    assert "no `latest`" in doctor()["latest"]["found"]


def test_leftovers_have_their_sizes(doctor: Examine, run: Path) -> None:
    for name, total in ((".writing-step-00000009", 3000), (".deleting-step-00000001", 10)):
        (run / "checkpoints" / name / "engine").mkdir(parents=True)
        (run / "checkpoints" / name / "engine" / "part").write_bytes(bytes(total))
    checks = doctor()
    expected = {".writing-step-00000009": 3000, ".deleting-step-00000001": 10}
    assert checks["leftovers"]["facts"]["leftovers"] == expected
    assert checks["leftovers"]["status"] == "warning"
    assert inspect(run)["leftovers"] == expected


def test_a_cut_line_is_told_from_an_unreadable_one(doctor: Examine, run: Path) -> None:
    log = run / "metrics" / "train.jsonl"
    log.write_bytes(log.read_bytes()[:-5])
    checks = doctor()
    assert checks["metric files"]["status"] == "warning"
    assert "train.jsonl: the last line is cut" in checks["metric files"]["found"]
    assert checks["to repeat"]["facts"]["last_logged"] == 7
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([lines[0], b"\x00\x00\xff", *lines[1:-1], b"[3]", b""]))
    found = doctor()["metric files"]["found"]
    assert found == "train.jsonl: 2 lines not valid JSON (2, 9)"
    assert inspect(run)["logs"]["train.jsonl"] == {"records": 7, "unreadable_lines": 2}


def test_work_that_a_restart_repeats(doctor: Examine, run: Path) -> None:
    with (run / "metrics" / "train.jsonl").open("a") as file:
        file.write('{"step": 11, "seconds": 2.0}\n')
    checks = doctor()
    assert checks["to repeat"]["status"] == "ok"
    assert "a restart repeats 3 steps, about 6.0 s" in checks["to repeat"]["found"]
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    checks = doctor()
    assert checks["to repeat"]["status"] == "warning"
    assert checks["to repeat"]["facts"]["repeated_steps"] == 7
    assert "although one is due every 4 steps" in checks["to repeat"]["found"]


def test_events_and_bad_samples_are_counted(doctor: Examine, run: Path) -> None:
    events = [
        {"kind": "rolled back", "step": 5},
        {"kind": "stopped", "step": 7},
        {"kind": "rolled back", "step": 6},
    ]
    (run / "metrics" / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    (run / "quarantine").mkdir()
    bad = [{"domain": "left", "reason": "truncated", "sample": number} for number in (1, 4, 1)]
    (run / "quarantine" / "left.jsonl").write_text("".join(json.dumps(e) + "\n" for e in bad))
    checks = doctor()
    assert checks["events"]["found"] == "rolled back 2, stopped 1; the last at step 6"
    assert checks["bad samples"]["found"] == ("2 bad samples replaced 3 times (truncated 2; left 2); 48 seen")


def test_results_that_are_missing_or_older(doctor: Examine, run: Path) -> None:
    (run / "results.json").write_text('{"step": 4}')
    os.utime(run / "report.html", (0, 0))
    checks = doctor()
    assert checks["results"]["facts"]["older"] == ["report.html", "results.json"]
    (run / "report.html").unlink()
    assert "report.html is missing" in doctor()["results"]["found"]


def test_a_checkpoint_deleted_while_it_is_read_is_not_damaged(
    run: Path, doctor: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is renamed between listing and reading, as retention does."""
    listed = list_checkpoints(run)
    listed[0].rename(listed[0].with_name(".deleting-" + listed[0].name))
    monkeypatch.setattr("ppar_dist.run.facts.list_checkpoints", lambda _: listed)
    assert doctor()["checkpoints"]["status"] == "ok"
    assert folder_bytes(listed[0]) == 0


def test_a_folder_that_is_not_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 78
    out = " ".join(capsys.readouterr().out.split())
    assert "cannot read config" in out
    assert "give the run.dir of a training run" in out


def test_a_checkpoint_says_the_state_of_each_file(run: Path) -> None:
    folder = last_manifest(run).parent
    flip(folder / "model.safetensors")
    (folder / "ppar.safetensors").unlink()
    (folder / "state.json").write_text("{}")
    (folder / "extra").write_text("12345")
    files = inspect(folder)["files"]
    assert files["model.safetensors"]["state"] == "differs from what was written (sha256)"
    assert files["ppar.safetensors"]["state"] == "is missing"
    assert files["state.json"]["state"].startswith("has 2 bytes, ")
    assert files["extra"] == {"bytes": 5, "state": "not in the manifest"}


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_ends_in_a_traceback(whole: Path, blocks: Path, tmp_path: Path, seed: int) -> None:
    """Files cut, filled with noise, emptied, replaced by folders or dangling links; JSON of another shape."""
    rng = random.Random(seed)
    for number in range(12):
        run = Path(shutil.copytree(whole, tmp_path / f"run{number}"))
        shutil.copytree(blocks / "left", run / "domain")
        for _ in range(rng.randint(1, 3)):
            spoil(rng.choice([path for path in sorted(run.rglob("*")) if path.is_file()]), rng)
        report = examine_run(run)
        crashed = [r.finding.found for r in report.results if "check itself failed" in r.finding.found]
        assert crashed == []
        for path in (run, run / "domain", *run.glob("checkpoints/step-*")):
            with contextlib.suppress(UserError):  # one line, as every UserError
                assert describe(json.loads(json.dumps(inspect(path))))


def spoil(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    match rng.randrange(6):
        case 0:
            path.write_bytes(content[: rng.randrange(len(content) + 1)])
        case 1:
            path.write_bytes(rng.randbytes(200))
        case 2:
            start = rng.randrange(len(content) + 1)
            path.write_bytes(content[:start] + rng.randbytes(4) + content[start + 4 :])
        case 3:
            path.write_text(rng.choice(["[]", "null", '{"files": [1]}', '{"step": "x"}', "{}", "[" * 5000]))
        case 4:
            path.unlink()
            path.mkdir()
        case _:
            path.unlink()
            path.symlink_to("nowhere")
