"""Damage within JPEGs is found, and whole ones of every kind are accepted, in shards and in data sets."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppar_dist.data.prepare import prepare
from ppar_dist.data.shards.build_index import index_folder
from ppar_dist.data.shards.findings import BadSamples
from ppar_dist.data.shards.jpeg import check_jpeg
from ppar_dist.data.shards.sample import encode_label
from ppar_dist.errors import UserError
from ppar_dist.pictures import PictureError, open_picture
from tests.unit.data.prepare.test_prepare import real_data

H, W = 96, 128


def photo() -> Image.Image:
    """A gradient with noise: no two blocks are alike."""
    rows, columns = np.mgrid[:H, :W]
    noise = np.random.default_rng(0).integers(0, 60, (H, W, 3))
    pixels = np.stack([rows, columns, rows + columns], axis=2) * 0.8 + noise
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, **options: object) -> bytes:
    packed = io.BytesIO()
    image.save(packed, "JPEG", **options)
    return packed.getvalue()


def two_views(image: Image.Image) -> bytes:
    packed = io.BytesIO()
    image.save(packed, "MPO", save_all=True, append_images=[image.resize((W // 2, H // 2))])
    return packed.getvalue()


KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "usual": encoded,
    "grey": lambda image: encoded(image.convert("L")),
    "CMYK": lambda image: encoded(image.convert("CMYK")),
    "progressive": lambda image: encoded(image, progressive=True),
    "progressive grey": lambda image: encoded(image.convert("L"), progressive=True),
    "progressive CMYK": lambda image: encoded(image.convert("CMYK"), progressive=True),
    "colour at full resolution": lambda image: encoded(image, subsampling=0),
    "RGB as it is": lambda image: encoded(image, keep_rgb=True),
    "restart markers": lambda image: encoded(image, restart_marker_rows=1),
    "two views": two_views,
    "bytes behind its end": lambda image: encoded(image) + b"\0 maker's notes",
    "without its end marker": lambda image: encoded(image)[:-2],
    "a side that no block fills": lambda image: encoded(image.crop((0, 0, 33, 17))),
}


def accepted(raw: bytes) -> bool:
    try:
        check_jpeg(raw, open_picture(raw))
    except PictureError:
        return False
    return True


def zeroed(raw: bytes, at: int, size: int) -> bytes:
    return raw[:at] + bytes(size) + raw[at + size :]


def pixels_from(raw: bytes) -> int:
    """Where the data of the pixels begin: behind the header of the first scan."""
    start = raw.index(b"\xff\xda")
    return start + 2 + int.from_bytes(raw[start + 2 : start + 4], "big")


@pytest.mark.parametrize("kind", KINDS)
def test_whole_jpegs_are_accepted(kind: str) -> None:
    assert accepted(KINDS[kind](photo()))


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"two views"}))
def test_jpegs_that_are_cut_off_are_refused(kind: str) -> None:
    raw = KINDS[kind](photo())
    start, end = pixels_from(raw), raw.rindex(b"\xff\xd9") if b"\xff\xd9" in raw else len(raw)
    for share in (0.1, 0.5, 0.9):
        assert not accepted(raw[: int(start + share * (end - start))])


def test_a_progressive_jpeg_without_its_last_scan_is_refused() -> None:
    """Its pixels are all there, of less detail; an end marker would make it a whole file."""
    raw = encoded(photo(), progressive=True)
    assert not accepted(raw[: raw.rindex(b"\xff\xda")])


@pytest.mark.parametrize("kind", ["usual", "grey", "CMYK", "restart markers", "two views"])
def test_most_damage_in_the_middle_is_found(kind: str) -> None:
    raw = KINDS[kind](photo())
    start, end = pixels_from(raw), raw.index(b"\xff\xd9", pixels_from(raw))
    places = np.linspace(start, end - 600, 20).astype(int)
    silent = sum(Image.open(io.BytesIO(zeroed(raw, at, 512))).convert("RGB").size == (W, H) for at in places)
    assert silent >= 15  # Pillow's decoder, which decoded them before
    assert sum(accepted(zeroed(raw, at, 512)) for at in places) <= 3


def test_real_photos_are_accepted_and_damaged_ones_found() -> None:
    found = whole = total = 0
    for image in sorted((real_data() / "idd_lite/images/val").glob("*.jpg"))[:60]:
        raw = image.read_bytes()
        start = pixels_from(raw)
        whole += accepted(raw)
        found += not accepted(zeroed(raw, start + (len(raw) - start) // 3, 4096))
        total += 1
    assert whole == total == 60
    assert found >= 55


@pytest.mark.parametrize("kind", KINDS)
def test_real_photos_encoded_in_each_way_are_accepted(kind: str) -> None:
    for image in sorted((real_data() / "camvid/images").glob("*.jpg"))[::160]:
        with Image.open(image) as opened:
            assert accepted(KINDS[kind](opened.convert("RGB")))


def damaged() -> bytes:
    raw = encoded(photo())
    return zeroed(raw, (pixels_from(raw) + len(raw)) // 2, 512)


def test_index_leaves_damaged_images_out(tmp_path: Path) -> None:
    label = encode_label(np.zeros((H, W), np.uint8))
    members = {"a.jpg": encoded(photo()), "a.png": label, "b.jpg": damaged(), "b.png": label}
    with tarfile.open(tmp_path / "shard-000000.tar", "w") as shard:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    with pytest.raises(
        BadSamples, match=r"1 image_unreadable .*the image is cut off or corrupt \(Corrupt JPEG"
    ):
        index_folder(tmp_path, "roads6")
    index, findings = index_folder(tmp_path, "roads6", max_bad_ratio=0.5)
    assert (index.key(0), len(index), findings.bad) == ("a", 1, {"image_unreadable": 1})


def test_prepare_names_damaged_images(tmp_path: Path) -> None:
    for name, image in (("0016E5_1", encoded(photo())), ("0016E5_2", damaged())):
        for folder, ending, content in (
            ("images", "jpg", image),
            ("labels", "png", encode_label(np.full((H, W), 3, np.uint8))),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.{ending}").write_bytes(content)
    with pytest.raises(
        UserError, match=r"(?s)bad pairs: 1; .*0016E5_2.jpg is cut off or corrupt \(Corrupt JPEG"
    ):
        prepare("camvid", tmp_path, tmp_path / "out", "roads6")
