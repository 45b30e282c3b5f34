"""A user's classes on real images: the file is needed when a run begins, and never again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.ranks import read_lines, run_command, succeed, tiny_config, write_config

MINE = """\
classes:
  - {name: way, colour: [128, 64, 128], labels: [road], texts: [road]}
  - {name: pavement, colour: [244, 35, 232], labels: [sidewalk], texts: [sidewalk]}
  - {name: house, colour: [70, 70, 70], labels: [building], texts: [building]}
  - {name: tree, colour: [107, 142, 35], texts: [vegetation]}
  - {name: sky, colour: [70, 130, 180]}
"""
SOME = """\
classes:
  - {name: sky, colour: [1, 1, 1]}
  - {name: way, colour: [2, 2, 2], labels: [road]}
"""
MORE = SOME + "  - {name: car, colour: [3, 3, 3]}\n"


@pytest.fixture(scope="module")
def place(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of CamVid by three files of classes, of which the first is moved away after five steps."""
    root = tmp_path_factory.mktemp("own")
    for name, text in (("mine", MINE), ("some", SOME), ("more", MORE)):
        (root / f"{name}.yaml").write_text(text)
        options = ("--classes", root / f"{name}.yaml", "--limit", 6)
        succeed("prepare", "camvid", "--root", real_data / "data" / "camvid", "--out", root / name, *options)
    tree = tiny_config(root, root / "run", train={"steps": 5}, checkpoint={"every": 3, "keep_last": 5})
    tree["data"] |= {"root": str(root / "mine"), "classes": str(root / "mine.yaml")}
    tree["data"]["sources"] = ["camvid_0006R0", "camvid_0016E5"]
    tree["targets"] = {"dusk": str(root / "some" / "camvid_0001TP")}
    succeed("train", write_config(root / "config.yaml", tree))
    (root / "mine.yaml").rename(root / "moved.yaml")
    return root


def test_a_run_resumes_without_the_file(place: Path) -> None:
    run = place / "run"
    before = read_lines(run / "metrics" / "train.jsonl")
    scores = (run / "results.json").read_text()
    shutil.rmtree(run / "checkpoints" / "step-00000005")
    (run / "results.json").unlink()
    succeed("train", run / "config.yaml")
    after = read_lines(run / "metrics" / "train.jsonl")
    assert [line["step"] for line in after] == [1, 2, 3, 4, 5]
    assert [line["loss/total"] for line in after] == [line["loss/total"] for line in before]
    assert json.loads((run / "results.json").read_text())["targets"] == json.loads(scores)["targets"]
    done = run_command(["train", str(place / "config.yaml")])
    assert done.returncode == 78
    assert "mine.yaml" in done.stderr
    assert "its own config.yaml" in done.stderr


def test_it_is_scored_on_the_classes_that_a_target_has(place: Path) -> None:
    targets = ["--target", f"some={place / 'some' / 'camvid_0001TP'}", "--target"]
    found = json.loads(
        succeed("evaluate", place / "run", *targets, f"all={place / 'mine' / 'camvid_0001TP'}", "--json")
    )["targets"]
    assert list(found["some"]["iou"]) == ["sky", "way"]
    assert found["some"]["scored"].startswith("2 of 5 classes (some@")
    # The labels of both are the same pixels, so what the model says there is, too.
    rows = {name: found[name]["confusion"] for name in found}
    for k in (0, 4):
        assert rows["some"][k] == rows["all"][k]
        assert sum(rows["some"][k]) > 0
    assert all(sum(rows["some"][k]) == 0 < sum(rows["all"][k]) for k in (2, 3))
    refused = run_command(
        ["evaluate", str(place / "run"), *targets, f"more={place / 'more' / 'camvid_0001TP'}"]
    )
    assert refused.returncode == 78
    assert "lacks car" in refused.stderr


def test_prediction_export_and_report_do_without_the_file(place: Path, real_data: Path) -> None:
    run, photo = place / "run", sorted((real_data / "data" / "camvid" / "images").iterdir())[0]
    copy = shutil.copytree(run / "checkpoints" / "step-00000003", place / "copied")
    for model in (run, copy):
        succeed("predict", model, photo, "--out", place / f"labels of {model.name}")
    succeed("export", run, "--out", place / "model")
    assert (place / "model" / "classes.json").read_text() == (run / "classes.json").read_text()
    assert "house" in Path(succeed("report", run).strip()).read_text()
    assert json.loads(succeed("doctor", run / "config.yaml", "--quick", "--json"))["status"] != "failure"
