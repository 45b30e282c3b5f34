"""The main job on real images: the README's commands one after the other, on a few images and steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.ranks import read_lines, run_command, succeed

ROADS = Path(__file__).parents[2] / "configs" / "roads.yaml"


@pytest.fixture(scope="module")
def shards(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    for name, classes in (("camvid", "roads6"), ("labelmefacade", "roads6"), ("cityscapes", "cityscapes19")):
        root = real_data / "data" / name
        succeed("prepare", name, "--root", root, "--out", out, "--classes", classes, "--limit", 12)
    return out


@pytest.fixture(scope="module")
def run(shards: Path, real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "roads"
    text = real_data / "weights" / "clip-vit-b-16-openai-text-multi.npz"
    overrides = [f"data.root={shards}", f"run.dir={folder}", f"text.file={text}", "train.steps=6"]
    succeed("train", ROADS, *overrides, "train.log_every=1", "monitoring.port=0", "--nproc", 2)
    return folder


def test_prepare_makes_a_domain_per_sequence_and_list(shards: Path) -> None:
    names = {path.name for path in shards.iterdir()}
    camvid = {f"camvid_{sequence}" for sequence in ("0001TP", "0006R0", "0016E5", "Seq05VD")}
    assert camvid | {"labelmefacade_train", "labelmefacade_test", "cityscapes_train"} == names
    described = json.loads(succeed("inspect", shards / "camvid_0016E5", "--json"))
    assert described["samples"] == 12


def test_the_day_sequences_alone_are_trained_on(run: Path) -> None:
    rows = [sample for step in read_lines(run / "metrics" / "samples.jsonl") for sample in step["samples"]]
    assert {row["domain"] for row in rows} == {"camvid_0016E5", "camvid_0006R0", "camvid_Seq05VD"}
    assert len(rows) == 6 * 8


def test_the_targets_are_scored(run: Path, shards: Path) -> None:
    targets = [f"dusk={shards / 'camvid_0001TP'}", f"facade={shards / 'labelmefacade_test'}"]
    done = succeed("evaluate", run, "--target", targets[0], "--target", targets[1], "--json")
    results = json.loads(done)["targets"]
    assert {name: result["images"] for name, result in results.items()} == {"dusk": 12, "facade": 12}
    assert all(0 < result["miou"] < 1 for result in results.values())


def test_a_real_image_is_labelled_at_its_own_size(run: Path, real_data: Path, tmp_path: Path) -> None:
    image = sorted((real_data / "data" / "labelmefacade" / "images").iterdir())[0]
    succeed("predict", run, image, "--out", tmp_path / "out")
    labels = Image.open(tmp_path / "out" / f"{image.stem}.png")
    assert labels.size == Image.open(image).size
    assert set(np.unique(np.asarray(labels))) <= set(range(6))


def test_the_report_holds_the_run(run: Path) -> None:
    path = Path(succeed("report", run).strip())
    page = path.read_text()
    assert path == run / "report.html"
    for text in ("camvid_0016E5", "vegetation", "reliab"):
        assert text in page


def test_a_source_of_other_classes_is_refused(shards: Path, tmp_path: Path) -> None:
    arguments = [
        "train",
        str(ROADS),
        f"data.root={shards}",
        f"run.dir={tmp_path}",
        "data.sources=[cityscapes_train]",
    ]
    done = run_command(arguments)
    assert done.returncode == 78
    assert "cityscapes19" in done.stderr
    assert "roads6" in done.stderr
