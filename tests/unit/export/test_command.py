"""The command ``export``: what its options and the ending of --out mean, in its messages and in JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppar_dist.cli import parser
from ppar_dist.evaluation.load import load_segmentor
from tests.unit.export.models import ATTO, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command") / "run"
    make_run(folder, ATTO)
    return folder


def test_a_folder_by_default(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parser.main(["export", str(run), "--out", str(tmp_path / "model")]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{tmp_path / 'model'}: step-00000004 as folder")
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
        (["--out", "OUT/model.onx"], "--out ends in .onnx, .pt2 or in nothing"),
        (["--out", "OUT/model.safetensors"], "--format folder, onnx, pt2 or tower"),
        (["--out", "OUT/model", "--format", "onnx"], "an export as onnx ends in .onnx"),
        (["--out", "OUT/model", "--size", "64", "64"], "--size fixes an onnx or pt2 file"),
        (["--out", "OUT/model", "--weights", "averaged"], "holds no averaged weights"),
        (["--out", "OUT"], "is not an empty folder"),
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
