"""Overlays as wished, confidence, and labels in Cityscapes' coding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapesscripts.helpers.csHelpers import getCsFileInfo
from cityscapesscripts.helpers.labels import name2label
from PIL import Image, ImageChops

from ppar_dist.api.model import load
from ppar_dist.class_sets import class_set
from ppar_dist.errors import UserError
from ppar_dist.evaluation import palette_images
from ppar_dist.evaluation.label_coding import check_coding, label_image
from ppar_dist.evaluation.palette_images import OverlayStyle, overlay_image
from ppar_dist.evaluation.predict import Outputs, predict
from tests.unit.evaluation.test_predict import photo
from tests.unit.tiny_run import CLASSES, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("options")
    make_run(root / "shards", root / "run")
    return root / "run"


def array(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_opacity_is_refused_beyond_its_range() -> None:
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="--opacity is from 0"):
            OverlayStyle(opacity=wrong)


def test_options_reach_the_overlay_and_leave_the_labels(run: Path, tmp_path: Path) -> None:
    image = photo(tmp_path / "x.png")
    plain = predict(run, [image], tmp_path / "plain").done[0]
    outputs = Outputs(OverlayStyle(opacity=1), confidence=True)
    (full,) = predict(run, [image], tmp_path / "full", outputs=outputs).done
    assert full.labels.read_bytes() == plain.labels.read_bytes()
    expected = np.asarray(CLASSES.palette)[array(full.labels)]
    assert np.abs(array(full.overlay) - expected.astype(float)).mean() < 8  # JPEG
    assert full.confidence == tmp_path / "full" / "x_confidence.png"
    _, probability = load(run, "cpu").predict(image, confidence=True)
    stored = array(full.confidence)
    assert stored.dtype == np.uint8
    assert np.abs(stored / 255 - probability).max() <= 0.5 / 255 + 1e-6
    assert full.to_dict()["confidence"] == str(full.confidence)
    assert "confidence" not in plain.to_dict()


def test_a_confidence_never_takes_the_name_of_a_label(run: Path, tmp_path: Path) -> None:
    images = [photo(tmp_path / name) for name in ("a_confidence.png", "a.png")]
    found = predict(run, images, tmp_path / "out", outputs=Outputs(confidence=True)).done
    assert len({path for item in found for path in (item.labels, item.confidence, item.overlay)}) == 6


def test_outlines_lie_on_both_sides_of_every_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).choice(np.array([0, 0, 0, 3, 255], np.uint8), (23, 31))
    black = Image.new("RGB", (31, 23))
    whole = np.asarray(overlay_image(black.copy(), labels, CLASSES, 0, outlines=True))
    padded = np.pad(labels, 1, mode="edge")
    around = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    expected = np.any([labels != neighbour for neighbour in around], axis=0)
    assert np.array_equal(whole, np.where(expected[..., None], 255, 0).repeat(3, 2))
    for strip in (1, 31 * 4, 31 * 22):
        monkeypatch.setattr(palette_images, "_STRIP", strip)
        assert np.array_equal(overlay_image(black.copy(), labels, CLASSES, 0, outlines=True), whole)


def test_the_legend_in_a_picture_has_the_classes_that_occur() -> None:
    labels = np.zeros((300, 400), np.uint8)
    labels[200:] = 4
    black = Image.new("RGB", (400, 300))
    drawn = overlay_image(black.copy(), labels, CLASSES, 0, legend=True)
    colours = {colour for _, colour in drawn.getcolors(100_000) or []}
    assert {CLASSES.palette[0], CLASSES.palette[4]} <= colours
    assert not {CLASSES.palette[k] for k in (1, 2, 3, 5)} & colours
    left, top, right, bottom = ImageChops.difference(drawn, black).getbbox() or (0, 0, 0, 0)
    assert (left, top) == (0, 0)
    assert right < 200
    assert bottom < 60
    ignored = np.full((300, 400), 255, np.uint8)
    assert overlay_image(black.copy(), ignored, CLASSES, 0, legend=True) == black


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 5)])
def test_a_legend_never_changes_the_size(size: tuple[int, int]) -> None:
    labels = np.arange(size[0] * size[1], dtype=np.int64).reshape(size[::-1]) % 19
    drawn = overlay_image(
        Image.new("RGB", size), labels.astype(np.uint8), class_set("cityscapes19"), legend=True
    )
    assert drawn.size == size


def test_label_ids_are_those_of_cityscapesscripts() -> None:
    labels = np.arange(19, dtype=np.uint8)[None]
    stored = label_image(labels, class_set("cityscapes19"), "cityscapes")
    assert stored.mode == "L"
    assert np.asarray(stored)[0].tolist() == [
        name2label[name].id for name in class_set("cityscapes19").classes
    ]
    assert [name2label[name].trainId for name in class_set("cityscapes19").classes] == list(range(19))
    ignored = label_image(np.full((1, 1), 255, np.uint8), class_set("cityscapes19"), "cityscapes")
    assert ignored.getpixel((0, 0)) == name2label["unlabeled"].id


def test_results_are_found_by_cityscapes_evaluator(run: Path, tmp_path: Path) -> None:
    name = "berlin_000000_000019_leftImg8bit.png"
    photo(tmp_path / "test" / "berlin" / name, (64, 32))
    out = tmp_path / "out"
    (item,) = predict(run, [tmp_path / "test"], out, outputs=Outputs(coding="cityscapes")).done
    frame = getCsFileInfo("berlin_000000_000019_gtFine_labelIds.png")
    pattern = f"{frame.city}_{frame.sequenceNb}_{frame.frameNb}*.png"  # of its getPrediction
    assert list(out.rglob(pattern)) == [item.labels]
    (plain,) = predict(run, [tmp_path / "test"], tmp_path / "plain").done
    ids = np.array([name2label[known].id for known in CLASSES.classes])
    assert np.array_equal(array(item.labels), ids[array(plain.labels)])


def test_what_the_evaluator_cannot_use_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="camvid11 has others: pavement, tree, sign, …"):
        check_coding("cityscapes", class_set("camvid11"))
    check_coding("cityscapes", replace(class_set("cityscapes19"), name="mine"))
    with pytest.raises(UserError, match="would take for labels"):
        Outputs(confidence=True, coding="cityscapes")
    twice = [photo(tmp_path / folder / "ulm_000000_000019_leftImg8bit.png") for folder in "ab"]
    with pytest.raises(UserError, match="several images are named as ulm_000000_000019"):
        predict(run, twice, tmp_path / "out", outputs=Outputs(coding="cityscapes"))
    assert not (tmp_path / "out").exists()


def test_other_names_are_told(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    predict(run, [photo(tmp_path / "x.png")], tmp_path / "out", outputs=Outputs(coding="cityscapes"))
    assert "1 are named otherwise: x" in caplog.text
