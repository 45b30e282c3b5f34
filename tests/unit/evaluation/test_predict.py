from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppar_dist.errors import UserError
from ppar_dist.evaluation import palette_images
from ppar_dist.evaluation.palette_images import legend_image, overlay_image, palette_image
from ppar_dist.evaluation.photos import read
from ppar_dist.evaluation.predict import predict
from tests.unit.tiny_run import CLASSES, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("predict")
    make_run(root / "shards", root / "run")
    return root / "run"


def photo(path: Path, size: tuple[int, int] = (50, 38), seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_labels_overlay_and_legend(run: Path, tmp_path: Path) -> None:
    image = photo(tmp_path / "street.png")
    (written,) = predict(run, [image], tmp_path / "out").done
    with Image.open(written.labels) as labels:
        assert (labels.mode, labels.size) == ("P", (50, 38))
        ids = np.asarray(labels)
        colours = np.asarray(labels.convert("RGB"))
    assert set(np.unique(ids)) <= set(range(6))
    assert np.array_equal(colours, np.asarray(CLASSES.palette)[ids])
    with Image.open(written.overlay) as overlay, Image.open(image) as original:
        blend = (np.asarray(original, float) + colours) / 2
        assert np.abs(np.asarray(overlay, float) - blend).mean() < 25  # JPEG of noise
    assert {item.name for item in (tmp_path / "out").iterdir()} == {
        "street.png",
        "street_overlay.jpg",
        "legend.png",
    }


def test_every_picture_of_one_name_is_kept(run: Path, tmp_path: Path) -> None:
    images = [photo(tmp_path / folder / name) for folder in "ab" for name in ("x.png", "legend.png")]
    written = predict(run, [tmp_path / "a", tmp_path / "b"], tmp_path / "out").done
    assert sorted(item.image for item in written) == sorted(images)
    assert len({item.labels for item in written} | {tmp_path / "out" / "legend.png"}) == 5


def test_a_rotated_phone_picture_is_upright(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    Image.new("RGB", (40, 20), "red").save(path, exif=exif)
    assert read(path, None).size == (20, 40)
    (written,) = predict(run, [path], tmp_path / "out").done
    with Image.open(written.labels) as labels:
        assert labels.size == (20, 40)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_any_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (9, 7), "white").convert(mode).save(path)
    picture = read(path, None)
    assert (picture.mode, picture.size) == ("RGB", (9, 7))


def test_a_wrong_path_is_refused_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    good = photo(tmp_path / "good.png")
    (tmp_path / "empty").mkdir()
    cases = {tmp_path / "gone.png": r"no image at .*gone\.png", tmp_path / "empty": "holds no images"}
    for path, message in cases.items():
        with pytest.raises(UserError, match=message):
            predict(run, [good, path], tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no images given"):
        predict(run, [], tmp_path / "out")


def test_an_out_folder_in_use_is_refused(run: Path, tmp_path: Path) -> None:
    image = photo(tmp_path / "x.png")
    with pytest.raises(UserError, match="is a file"):
        predict(run, [image], image)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        predict(run, [image], tmp_path / "out")
    with pytest.raises(UserError, match="no run or checkpoint"):
        predict(tmp_path / "nowhere", [image], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    predict(run, [image], tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_ignored_pixels_stay_as_they_are() -> None:
    image = Image.new("RGB", (2, 1), (10, 20, 31))
    labels = np.array([[255, 4]], np.uint8)
    blend = np.asarray(overlay_image(image, labels, CLASSES, opacity=0.5))
    mixed = (np.asarray(CLASSES.palette[4]) + np.array([10, 20, 31])) / 2
    assert blend[0, 0].tolist() == [10, 20, 31]
    assert np.abs(blend[0, 1] - mixed).max() <= 0.5
    assert palette_image(labels, CLASSES).convert("RGB").getpixel((0, 0)) == (0, 0, 0)


def test_an_overlay_in_strips_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (23, 31, 3), dtype=np.uint8)
    labels = rng.choice(np.array([0, 3, 5, 255], np.uint8), (23, 31))
    whole = np.asarray(overlay_image(Image.fromarray(pixels), labels, CLASSES, 0.3))
    for strip in (1, 31 * 4, 31 * 22):
        monkeypatch.setattr(palette_images, "_STRIP", strip)
        assert np.array_equal(overlay_image(Image.fromarray(pixels), labels, CLASSES, 0.3), whole)


def test_the_legend_shows_every_colour() -> None:
    picture = legend_image(CLASSES)
    colours = {colour for _, colour in picture.getcolors(100_000) or []}
    assert set(CLASSES.palette) <= colours
