"""Shards of others: endings, keys with dots, compression, clutter, turned images."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ppar_dist.cli.parser import main
from ppar_dist.data.reading import read_sample
from ppar_dist.data.shards.build_index import index_folder
from ppar_dist.data.shards.findings import BadSamples
from ppar_dist.data.shards.grouping import endings_of
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.writer import write_domain
from ppar_dist.errors import UserError
from tests.unit.data.shards.test_bad_shards import pair, write_tar
from tests.unit.street_shards import scene

IMAGE, LABEL = scene(0)


def keys(index: DomainIndex) -> list[str]:
    return [index.key(sample) for sample in range(len(index))]


def named(key: str, image: str, label: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.{image}", IMAGE), (f"{key}.{label}", LABEL)]


def test_keys_may_hold_dots(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", [*named("frame.000000", "jpg", "png"), *named("frame.000001", "jpg", "png")]
    )
    assert keys(index_folder(tmp_path, "roads6")[0]) == ["frame.000000", "frame.000001"]


def test_usual_endings_are_known_and_others_can_be_named(tmp_path: Path) -> None:
    members = [*named("a", "jpeg", "seg.png"), *named("b", "JPG", "label.png")]
    write_tar(tmp_path / "a.tar", members)
    assert keys(index_folder(tmp_path, "roads6")[0]) == ["a", "b"]
    write_tar(tmp_path / "a.tar", named("a", "camera.jpg", "gt.png"))
    with pytest.raises(BadSamples, match=r"incomplete .*--(label|image)-ending"):
        index_folder(tmp_path, "roads6")
    chosen = endings_of(["camera.jpg"], [".gt.png"])
    assert keys(index_folder(tmp_path, "roads6", endings=chosen)[0]) == ["a"]


def test_png_images_beside_png_labels(tmp_path: Path) -> None:
    packed = io.BytesIO()
    Image.open(io.BytesIO(IMAGE)).save(packed, "PNG")
    write_tar(tmp_path / "a.tar", [("a.png", packed.getvalue()), ("a.seg.png", LABEL)])
    with pytest.raises(BadSamples, match=r"two label members; .*name the ending of the label"):
        index_folder(tmp_path, "roads6")
    index = index_folder(tmp_path, "roads6", endings=endings_of(["png"], ["seg.png"]))[0]
    expected = np.asarray(Image.open(io.BytesIO(IMAGE)).convert("RGB"))
    np.testing.assert_array_equal(read_sample(index, 0).image.permute(1, 2, 0).numpy(), expected)


def test_endings_that_contradict_are_refused() -> None:
    with pytest.raises(UserError, match=r"got .png for both"):
        endings_of(["png"], ["png"])
    with pytest.raises(UserError, match="got an empty one"):
        endings_of([""], [])
    assert "png" not in endings_of(["png"], []).label


def test_other_members_of_a_sample_stay_members_of_it(tmp_path: Path) -> None:
    members = [
        ("a.depth.png", LABEL),
        *pair("a"),
        ("a.flow.tif", b"?"),
        ("b.0.depth.png", LABEL),
        *pair("b.0"),
    ]
    write_tar(tmp_path / "a.tar", members)
    index, findings = index_folder(tmp_path, "roads6", max_bad_ratio=1)
    assert keys(index) == ["a", "b.0"]
    assert findings.ignored == {"depth.png": 1, "flow.tif": 1}
    assert findings.bad == {"incomplete": 1}, "b.0.depth could be a sample of its own without an image"


def test_a_sample_of_unknown_kinds_is_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*pair("a"), ("b.webp", b"?"), ("b.tif", b"?"), ("README", b"")])
    with pytest.raises(BadSamples, match=r"1 of 2 samples of domain .* are bad: 1 incomplete .*sample b"):
        index_folder(tmp_path, "roads6")


def test_clutter_is_no_sample(tmp_path: Path) -> None:
    members = [
        ("._a.jpg", b"?"),
        *pair("a"),
        (".DS_Store", b"?"),
        ("__MACOSX/._b.jpg", b"?"),
        ("./b.jpg", IMAGE),
    ]
    write_tar(tmp_path / "d/a.tar", [*members, ("./b.png", LABEL)])
    write_tar(tmp_path / "d/._a.tar", pair("never"))
    index, findings = index_folder(tmp_path / "d", "roads6")
    assert keys(index) == ["a", "./b"]
    assert findings.ignored == {"clutter": 3}
    assert findings.lines() == ["ignored members of other kinds: clutter 3"]


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("s.tar.gz", gzip.compress),
        ("s.tgz", gzip.compress),
        ("s.tar", gzip.compress),
        ("s.tar.bz2", bz2.compress),
        ("s.tar.xz", lzma.compress),
    ],
)
def test_compressed_shards_are_unpacked(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    write_tar(tmp_path / "plain", [*pair("a"), *pair("b")])
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_bytes(pack((tmp_path / "plain").read_bytes()))
    index, findings = index_folder(tmp_path / "d", "roads6")
    assert keys(index) == ["a", "b"]
    assert index.shards == ("s.unpacked.tar",)
    assert index.read(0).image == IMAGE
    assert findings.lines()[0].startswith(f"unpacked {name} to s.unpacked.tar")
    again, _ = index_folder(tmp_path / "d", "roads6")
    assert again.fingerprint == index.fingerprint


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_damaged_compressed_shard_is_named(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    write_tar(tmp_path / "good.tar", pair("a"))
    write_tar(tmp_path / "plain", [*pair("b"), *pair("c")])
    (tmp_path / "bad.tgz").write_bytes(pack((tmp_path / "plain").read_bytes())[:-20])
    with pytest.raises(BadSamples, match=r"bad\.tgz: it is compressed and damaged"):
        index_folder(tmp_path, "roads6")
    assert not list(tmp_path.glob("*.unpacked.tar*"))
    assert keys(index_folder(tmp_path, "roads6", max_bad_ratio=0.5)[0]) == ["a"]


def test_an_unknown_compression_is_not_passed_over(tmp_path: Path) -> None:
    write_tar(tmp_path / "good.tar", pair("a"))
    (tmp_path / "bad.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + b"?" * 100)
    with pytest.raises(BadSamples, match=r"bad\.tar\.zst: it is compressed by zstd"):
        index_folder(tmp_path, "roads6")


def test_the_last_line_counts_what_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "a.tar", [*pair("a"), *pair("b"), *pair("c", image=b"?")])
    assert main(["index", str(tmp_path), "--classes", "roads6", "--max-bad-ratio", "0.5"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{tmp_path}: 2 samples in 1 shards; left out 1: image_unreadable 1"


@pytest.mark.parametrize("turn", [3, 6])
@pytest.mark.parametrize("min_side", [None, 10])
def test_a_turned_image_is_read_upright(tmp_path: Path, turn: int, min_side: int | None) -> None:
    picture = Image.open(io.BytesIO(IMAGE)).convert("RGB")
    exif = Image.Exif()
    exif[0x112] = turn
    packed, label = io.BytesIO(), io.BytesIO()
    picture.save(packed, "JPEG", quality=95, exif=exif)
    upright = picture.rotate({3: 180, 6: 270}[turn], expand=True)
    Image.fromarray(np.zeros((upright.height, upright.width), np.uint8)).save(label, "PNG")
    write_tar(tmp_path / "a.tar", [("a.jpg", packed.getvalue()), ("a.png", label.getvalue())])
    index, findings = index_folder(tmp_path, "roads6")
    assert findings.lines() == [
        "1 images are turned upright by their EXIF orientation whenever they are read"
    ]
    assert json.loads((tmp_path / "domain.json").read_text())["turned"] == 1
    image = read_sample(index, 0, min_side).image
    size = (image.shape[2], image.shape[1])
    expected = torch.from_numpy(np.array(upright.resize(size, Image.Resampling.BOX)))
    assert (image.permute(1, 2, 0).float() - expected.float()).abs().mean() < 12
    write_tar(tmp_path / "b.tar", [("b.jpg", packed.getvalue()), ("b.png", scene(0, 24, 24)[1])])
    with pytest.raises(BadSamples, match="image is upright"):
        index_folder(tmp_path, "roads6")


def test_a_replaced_compressed_shard_is_read_whatever_its_age(tmp_path: Path) -> None:
    for key in "ab":
        write_tar(tmp_path / "plain", pair(key))
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d/s.tgz").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
        os.utime(tmp_path / "d/s.tgz", (1e9, 1e9))  # as cp -p and rsync -a leave it
        assert keys(index_folder(tmp_path / "d", "roads6")[0]) == [key]


def test_two_compressed_shards_of_one_name_are_refused(tmp_path: Path) -> None:
    for key, name in (("a", "s.tgz"), ("b", "s.tar.gz")):
        write_tar(tmp_path / "plain", pair(key))
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    with pytest.raises(
        UserError, match=r"s.tar.gz and .*s.tgz would both be unpacked to s.unpacked.tar; rename"
    ):
        index_folder(tmp_path, "roads6")


def test_ids_of_one_class_set_are_not_indexed_as_those_of_another(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", pair("a"))
    index_folder(tmp_path, "roads6")
    with pytest.raises(UserError, match=r"ids of roads6, .*ids of camvid11: .*remove .*domain.json"):
        index_folder(tmp_path, "camvid11")
    assert DomainIndex.open(tmp_path).class_set == "roads6"
    (tmp_path / "domain.json").unlink()
    assert index_folder(tmp_path, "camvid11")[0].class_set == "camvid11"


def test_archives_that_are_passed_over_are_told(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    write_tar(tmp_path / "s.tar", pair("a"))
    write_tar(tmp_path / "more/t.tar", pair("b"))
    for name in ("u.tar.lz4", "v.tar.Z", "w.zip", "notes.txt"):
        (tmp_path / name).write_bytes(b"?")
    findings = index_folder(tmp_path, "roads6")[1]
    assert findings.lines() == [
        "passed over 4 archives, which are in subfolders or of an ending that is not read: more/t.tar, "
        "u.tar.lz4, v.tar.Z, …"
    ]
    (tmp_path / "s.tar").unlink()
    with pytest.raises(UserError, match=r"holds no samples .*; there are more/t.tar, u.tar.lz4"):
        index_folder(tmp_path, "roads6")


def test_a_file_too_large_for_the_system_is_no_traceback(tmp_path: Path) -> None:
    """The same way as a full disk: an OSError in the middle of a write."""
    write_tar(tmp_path / "d/s.tar", pair("a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))
    try:
        with pytest.raises(UserError, match=r"cannot complete .*/d \(.*File too large.*\); make room"):
            index_folder(tmp_path / "d", "roads6")
        with pytest.raises(UserError, match=r"cannot complete .*/new \(.*File too large.*\); make room"):
            write_domain(tmp_path / "new", "roads6", [("a", IMAGE, LABEL, {})])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
