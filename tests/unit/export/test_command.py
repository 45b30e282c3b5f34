"""The command ``export``: what its options and the ending of --out mean, in its messages and in JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ppar_dist.cli import parser
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.export.exported import Exported
from tests.unit.export.models import ATTO, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command") / "run"
    make_run(folder, ATTO)
    return folder


def test_a_folder_by_default(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.main(["export", str(run), "--out", str(tmp_path / "model")]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{tmp_path / 'model'}: step-00000004, raw weights, as folder: ")
    assert "licences" in told
    assert load_segmentor(tmp_path / "model")[2].name == "roads6"
    assert parser.main(["inspect", str(tmp_path / "model")]) == 0
    assert "kind: model" in capsys.readouterr().out


def test_json_tells_how_to_load_a_tower(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tower.safetensors"
    assert parser.main(["export", str(run), "--out", str(out), "--format", "tower", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["file"] == str(out)
    assert facts["load"].startswith("timm.create_model('convnext_atto'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "OUT/model.onx"], "--format folder, onnx, pt2 or tower"),
        (["--out", "OUT/model.onx"], ".safetensors (with --format tower)"),
        (["--out", "OUT/model.safetensors"], "add --format tower if that is meant"),
        (["--out", "OUT/model", "--format", "onnx"], "an export as onnx ends in .onnx"),
        (["--out", "OUT/model", "--size", "64", "64"], "--size fixes an onnx or pt2 file"),
        (["--out", "OUT/model", "--weights", "averaged"], "holds no averaged weights"),
        (["--out", "OUT"], "neither an empty folder nor a model folder"),
        (["--out", "OUT", "--overwrite"], "neither an empty folder nor a model folder"),
        (["--out", "OUT/there/model"], "no folder"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").touch()
    arguments = [option.replace("OUT", str(tmp_path)) for option in options]
    assert parser.main(["export", str(run), *arguments]) == 78
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ppar-dist: ")
    assert message in error
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("name", ["model", "tower.safetensors"])
def test_what_is_there_is_replaced_only_when_asked(
    run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["export", str(run), "--out", str(tmp_path / name), *["--format", "tower"] * name.startswith("t")]
    assert parser.main(line) == 0
    file = tmp_path / name / "README.md" if name == "model" else tmp_path / name
    whole = file.read_bytes()
    file.write_bytes(b"mine")
    assert parser.main(line) == 78
    assert "add --overwrite" in capsys.readouterr().err
    assert file.read_bytes() == b"mine"
    assert parser.main([*line, "--overwrite"]) == 0
    assert len(file.read_bytes()) == len(whole)
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_the_weights_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run", ATTO)
    made = Exported(Path("m"), "folder", "step-00000004", (), 0.0)
    assert replace(made, weights="averaged").to_dict()["weights"] == "averaged"
    assert parser.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "m"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == "raw"
