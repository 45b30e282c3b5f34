"""Real people's folders: what is a picture, what cannot be done, and under which names results are kept."""

from __future__ import annotations

import os
import random
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from PIL import Image

from ppar_dist.data.transforms import EvalTransform
from ppar_dist.errors import UserError
from ppar_dist.evaluation import photos
from ppar_dist.evaluation import predict as predict_module
from ppar_dist.evaluation.photos import groups, input_size, model_input
from ppar_dist.evaluation.picture_files import Failure, PictureFile, picture_files
from ppar_dist.evaluation.predict import Predictions, predict
from tests.unit.evaluation.test_predict import photo
from tests.unit.tiny_run import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    make_run(root / "shards", root / "run")
    return root / "run"


def reasons(found: Predictions, folder: Path) -> dict[str, str]:
    return {str(item.image.relative_to(folder)): item.reason for item in found.failed}


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def labels_in(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_what_cannot_be_done_is_told_and_the_rest_is_done(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    good = photo(folder / "good.png")
    photo(folder / "z" / "last.jpg")
    (folder / "cut.png").write_bytes(good.read_bytes()[:2000])
    (folder / "empty.jpg").touch()
    (folder / "paper.jpg").write_bytes(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n")
    (folder / "gone.jpg").symlink_to(folder / "nothing")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    (folder / "z" / "up").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    Image.new("RGB", (1, 1000)).save(folder / "thread.png")
    told: list[tuple[int, int]] = []
    found = predict(run, [folder], tmp_path / "out", watch=lambda _, done, all_: told.append((done, all_)))
    failed = reasons(found, folder)
    expected = {
        "cut.png": "the picture is cut off",
        "empty.jpg": "the picture is not a readable",
        "paper.jpg": "the picture is not a readable",
        "gone.jpg": "no such file",
        "circle.jpg": "not a readable",
        "pipe.png": "not a regular file",
        "thread.png": "at most 200 times the other, got 1x1000",
        "z/up": "a link to a folder above it",
    }
    assert failed.keys() == expected.keys()
    for name, words in expected.items():
        assert words in failed[name]
        assert "\n" not in failed[name]
    assert [item.image for item in found.done] == [good, folder / "z" / "last.jpg"]
    assert str(found) == "2 of 10 done, 8 failed"
    assert told == [(number, 10) for number in range(1, 11)]
    assert files_in(tmp_path / "out") == {
        *("legend.png", "good.png", "good_overlay.jpg", "z/last.png", "z/last_overlay.jpg"),
    }


def test_folders_are_searched_and_clutter_is_no_picture(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a.JPG", "sub/deep/b.png", "sub.png/c.jpg", "sub.jpg"):
        photo(folder / name)
    for name in ("._a.JPG", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", "Thumbs.db", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0")
    out = folder / "out"
    for _ in range(2):  # the second finds the results of the first, and takes none for a picture
        found = predict(run, [folder], out, overwrite=True)
        assert not found.failed
        labels = {
            str(item.image.relative_to(folder)): str(item.labels.relative_to(out)) for item in found.done
        }
        assert labels == {
            "a.JPG": "a.png",
            "sub/deep/b.png": "sub/deep/b.png",
            "sub.jpg": "sub-2.png",  # sub.png is the folder
            "sub.png/c.jpg": "sub.png/c.png",
        }


def test_results_of_like_names_do_not_clash(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "A.bmp", "a-2.png", "a_overlay.png", "legend.jpg", "sub/legend.jpg", "b.c.jpg"]
    files = [photo(tmp_path / name) for name in names]
    found, failed = picture_files([*files[:6], tmp_path / "sub", files[7]], tmp_path / "out")
    results = [str(file.name) for file in found]
    assert results == ["a", "a-2", "A-3", "a-2-2", "a_overlay-2", "legend-2", "legend-3", "b.c"]
    assert not failed


def test_names_of_any_bytes(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    names = [b"\xe8\xb7\xaf\xe9\x9d\xa2.png", b"caf\xe9.png", b"two\nlines.png", b"x" * 249 + b".png"]
    for name in names:
        path = folder / os.fsdecode(name)
        photo(folder / "plain.png").rename(path)
    found = predict(run, [folder], tmp_path / "out")
    assert {os.fsencode(item.image.name) for item in found.done} == set(names[:3])
    (failure,) = found.failed
    assert "File name too long" in failure.reason
    assert len(files_in(tmp_path / "out")) == 7  # nothing of the one with the long name
    for item in [*found.done, failure]:
        assert str(item).isprintable()


def test_a_result_never_replaces_a_picture(run: Path, tmp_path: Path) -> None:
    image = photo(tmp_path / "x.png")
    before = image.read_bytes()
    with pytest.raises(UserError, match=r"replace the image .*x\.png"):
        predict(run, [image], tmp_path, overwrite=True)
    with pytest.raises(UserError, match="is the folder of the images"):
        predict(run, [tmp_path], tmp_path, overwrite=True)
    assert image.read_bytes() == before


def test_images_of_one_input_size_go_through_the_model_together(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(50, 38), (38, 50), (100, 76), (50, 38), (38, 50), (50, 38)]
    for number, size in enumerate(sizes):
        photo(tmp_path / "in" / f"{number}.png", size, seed=number)
    (tmp_path / "in" / "3.bmp").touch()
    one = predict(run, [tmp_path / "in"], tmp_path / "one")
    batches: list[int] = []
    plain = predict_module.logits_of

    def counted(segmentor: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        batches.append(len(images))
        return plain(segmentor, images)

    monkeypatch.setattr(predict_module, "logits_of", counted)
    three = predict(run, [tmp_path / "in"], tmp_path / "three", batch=3)
    assert sorted(batches) == [1, 2, 3]
    assert [item.image for item in three.done] == [item.image for item in one.done]
    assert [item.image for item in three.failed] == [item.image for item in one.failed]
    assert len(one.done) == 6
    for alone, together in zip(one.done, three.done, strict=True):
        assert alone.labels.name == together.labels.name
        assert np.array_equal(labels_in(alone.labels), labels_in(together.labels))


def test_a_batch_holds_a_bounded_number_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [PictureFile(photo(tmp_path / f"{i}.png", (40, 30)), PurePath(str(i))) for i in range(5)]
    monkeypatch.setattr(photos, "HELD", 2 * 1200)
    assert [len(group) for group in groups(files, 4, 16)] == [2, 2, 1]


def test_the_size_of_an_input_is_known_beforehand() -> None:
    draw = random.Random(0)
    for _ in range(300):
        width, height, size = (draw.randint(1, 300) for _ in range(3))
        picture = torch.empty(3, height, width, dtype=torch.uint8, device="meta")
        assert EvalTransform(size)(picture).shape[:0:-1] == input_size(width, height, size)


def test_the_model_sees_what_an_evaluation_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    expected = EvalTransform(24)(picture)
    monkeypatch.setattr("ppar_dist.evaluation.palette_images._STRIP", 83 * 7)
    assert torch.equal(model_input(picture, 24), expected)


def test_sixteen_bits_need_their_range(run: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (38, 50)).astype(np.uint16)
    deep, plain = tmp_path / "deep.png", tmp_path / "plain.png"
    Image.fromarray(values).save(deep)
    Image.fromarray(np.rint(values / 4095 * 255).astype(np.uint8)).save(plain)
    (failure,) = predict(run, [deep], tmp_path / "without").failed
    assert "--range 0 4095" in failure.reason
    found = predict(run, [deep, plain], tmp_path / "with", span=(0, 4095))
    assert np.array_equal(*(labels_in(item.labels) for item in found.done))
    with pytest.raises(UserError, match="LOW below HIGH"):
        predict(run, [deep], tmp_path / "wrong", span=(5, 5))


def test_a_panorama_longer_than_jpeg_allows(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "MAX_RATIO", 2000)  # for a small one
    path = tmp_path / "long.png"
    Image.new("RGB", (65_501, 40), "red").save(path)
    (written,) = predict(run, [path], tmp_path / "out").done
    assert written.overlay.name == "long_overlay.png"
    with Image.open(written.overlay) as overlay, Image.open(written.labels) as labels:
        assert overlay.size == labels.size == (65_501, 40)


def test_too_many_pixels_are_refused_by_the_header(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [photo(tmp_path / "big.png", (50, 41)), photo(tmp_path / "fits.png", (50, 40))]
    monkeypatch.setattr(photos, "MAX_PIXELS", 2000)
    found = predict(run, images, tmp_path / "out")
    assert [item.image.name for item in found.done] == ["fits.png"]
    assert "too large (50x41), at most 2000 pixels" in found.failed[0].reason


def test_a_lack_of_memory_fails_one_picture(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [photo(tmp_path / f"{i}.png", (50, 38 + i)) for i in range(2)]

    def short(photo: Image.Image, size: int) -> torch.Tensor:
        if photo.height == 38:
            return torch.empty(1 << 60, dtype=torch.uint8)
        return model_input(photo, size)

    monkeypatch.setattr(predict_module, "model_input", short)
    found = predict(run, images, tmp_path / "out")
    assert [type(item) for item in found.failed] == [Failure]
    assert "not enough memory" in found.failed[0].reason
    assert len(found.done) == 1


def test_files_of_a_folder_that_are_no_images_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jpg", "b.heic", "sub/c.gif", "sub/d.MP4", ".DS_Store"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    assert len(picture_files([tmp_path / "in"], tmp_path / "out")[0]) == 1
    told = "passed over 3 files that are not images by their endings: b.heic, sub/c.gif, sub/d.MP4; a video"
    assert told in caplog.text
    (tmp_path / "in" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"holds no images .*; give another; a video is named itself"):
        picture_files([tmp_path / "in"], tmp_path / "out")


def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["7.jpg", "a/frame9.jpg", "a/frame10.jpg", "a/frame010.png", "b2.jpg", "b²0.jpg", "b10.jpg"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    found = [
        each.path.relative_to(tmp_path / "in").as_posix()
        for each in picture_files([tmp_path / "in"], tmp_path)[0]
    ]
    assert found == [
        "7.jpg",
        "a/frame9.jpg",
        "a/frame010.png",
        "a/frame10.jpg",
        "b2.jpg",
        "b10.jpg",
        "b²0.jpg",
    ]
