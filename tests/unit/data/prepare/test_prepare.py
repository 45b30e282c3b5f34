"""Readers of data sets: native layouts made here, and the real data where PPAR_TEST_DATA holds them."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from ppar_dist.class_sets import IGNORE_INDEX, class_set
from ppar_dist.data.prepare import (
    DATASETS,
    SOURCES,
    Options,
    camvid,
    cityscapes,
    gta5,
    labelmefacade,
    prepare,
    synthia,
)
from ppar_dist.data.shards.build_index import index_folder
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.manifest import read_domain_file
from ppar_dist.data.shards.sample import decode_label
from ppar_dist.errors import UserError

H, W = 6, 8
RNG = np.random.default_rng(0)


def real_data() -> Path:
    folder = os.environ.get("PPAR_TEST_DATA")
    if not folder or not (Path(folder) / "data").is_dir():
        pytest.skip("PPAR_TEST_DATA names no folder with data/ in it: real data sets are not at hand")
    return Path(folder) / "data"


def save_image(path: Path, size: tuple[int, int] = (H, W)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)


def save_index(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if palette:
        image = image.convert("P")
        image.putpalette([channel for i in range(256) for channel in (i, 255 - i, i // 2)])
    image.save(path)


def png(header: bytes, rows: bytes) -> bytes:
    """A PNG written from the specification: no filter, one IDAT."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def save_png16(path: Path, channels: np.ndarray) -> None:
    """A 16-bit RGB PNG."""
    height, width, _ = channels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0), rows))


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    index = DomainIndex.open(folder)
    return {index.key(i): decode_label(index.read(i).label, "") for i in range(len(index))}


def train_ids(classes: str, names: dict, native: np.ndarray) -> np.ndarray:
    """Per pixel, one at a time: the position of the class that holds the native name."""
    known = class_set(classes)
    result = np.empty(native.shape[:2], np.uint8)
    for row in range(native.shape[0]):
        for column in range(native.shape[1]):
            value = native[row, column]
            name = names[tuple(int(v) for v in value) if native.ndim == 3 else int(value)]
            holders = [k for k, members in enumerate(known.members) if name in members]
            result[row, column] = holders[0] if holders else IGNORE_INDEX
    return result


# --- native layouts, made here ---


def camvid_root(root: Path) -> np.ndarray:
    values = RNG.integers(0, 12, (H, W))
    for stem in ("0016E5_00001", "0016E5_00002", "0001TP_000003"):
        save_image(root / "images" / f"{stem}.jpg")
        save_index(root / "labels" / f"{stem}.png", values)
    return values


def test_camvid_makes_a_domain_per_sequence_and_keeps_jpeg_bytes(tmp_path: Path) -> None:
    values = camvid_root(tmp_path / "root")
    folders = prepare("camvid", tmp_path / "root", tmp_path / "out", "roads6")
    assert [(f.name, len(DomainIndex.open(f))) for f in folders] == [
        ("camvid_0001TP", 1),
        ("camvid_0016E5", 2),
    ]
    index = DomainIndex.open(folders[1])
    assert index.read(1).image == (tmp_path / "root/images/0016E5_00002.jpg").read_bytes()
    expected = train_ids("roads6", dict(enumerate(camvid.NAMES)), values)
    np.testing.assert_array_equal(labels_of(folders[1])["0016E5_00002"], expected)
    assert expected[values == 4].tolist() == [1] * int((values == 4).sum())  # pavement is sidewalk
    assert set(expected[values == 11]) <= {IGNORE_INDEX}  # void


def test_camvid_in_its_split_folders(tmp_path: Path) -> None:
    for split, stem in (("train", "0016E5_2"), ("val", "0016E5_1"), ("test", "Seq05VD_1")):
        save_image(tmp_path / split / f"{stem}.png")
        save_index(tmp_path / f"{split}annot" / f"{stem}.png", np.full((H, W), 3))
    first, second = prepare("camvid", tmp_path, tmp_path / "out", "camvid11")
    assert list(labels_of(first)) == ["0016E5_1", "0016E5_2"]
    assert (labels_of(second)["Seq05VD_1"] == class_set("camvid11").classes.index("road")).all()


def test_labelmefacade_follows_its_lists_and_colours(tmp_path: Path) -> None:
    colours = np.array(list(labelmefacade.NAMES), np.uint8)
    native = colours[RNG.integers(0, len(colours), (H, W))]
    for stem in ("b__1", "a__2"):
        save_image(tmp_path / "images" / f"{stem}.jpg")
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(native).save(tmp_path / "labels" / f"{stem}.png")
    (tmp_path / "train.txt").write_text("\ufeffb__1\n", "utf-8")  # as Notepad leaves it
    (tmp_path / "test.txt").write_text("a__2\n\n")
    train, test = prepare("labelmefacade", tmp_path, tmp_path / "out", "roads6")
    assert (train.name, test.name) == ("labelmefacade_train", "labelmefacade_test")
    np.testing.assert_array_equal(labels_of(test)["a__2"], train_ids("roads6", labelmefacade.NAMES, native))


def test_cityscapes_splits_are_domains_and_png_stays_as_it_came(tmp_path: Path) -> None:
    native = np.arange(H * W).reshape(H, W) % 34
    for split, city in (("train", "aachen"), ("val", "munster")):
        save_image(tmp_path / f"leftImg8bit/{split}/{city}/{city}_000000_000019_leftImg8bit.png")
        save_index(tmp_path / f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_labelIds.png", native)
    folders = prepare("cityscapes", tmp_path, tmp_path / "out", "cityscapes19")
    assert [folder.name for folder in folders] == ["cityscapes_train", "cityscapes_val"]
    found = labels_of(folders[1])["munster_000000_000019"]
    np.testing.assert_array_equal(found, train_ids("cityscapes19", dict(enumerate(cityscapes.NAMES)), native))
    official = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12}
    official |= {26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}
    assert [official.get(int(v), 255) for v in native.ravel()] == found.ravel().tolist()
    image = tmp_path / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    assert DomainIndex.open(folders[0]).read(0).image == image.read_bytes()
    packed = prepare("cityscapes", tmp_path, tmp_path / "packed", "cityscapes19", Options(jpeg=90))
    jpeg = Image.open(io.BytesIO(DomainIndex.open(packed[0]).read(0).image))
    assert (jpeg.format, jpeg.size) == ("JPEG", (W, H))
    assert read_domain_file(packed[0]).prepared.images == "1 of 1 encoded as JPEG of quality 90"
    assert read_domain_file(folders[0]).prepared.images == "as they came"


@pytest.mark.parametrize("form", ["palette", "grey", "colour"])
def test_gta5_in_each_form_of_its_labels(tmp_path: Path, form: str) -> None:
    save_image(tmp_path / "images/00001.png")
    if form == "colour":
        legend = np.array(list(gta5.COLOURS), np.uint8)
        native = legend[np.arange(H * W).reshape(H, W) % len(legend)]
        (tmp_path / "labels").mkdir()
        Image.fromarray(native).save(tmp_path / "labels/00001.png")
        expected = train_ids("cityscapes19", gta5.COLOURS, native)
    else:
        native = np.arange(H * W).reshape(H, W) % 35
        save_index(tmp_path / "labels/00001.png", native, palette=form == "palette")
        expected = train_ids("cityscapes19", gta5.NAMES, native)
    (folder,) = prepare("gta5", tmp_path, tmp_path / "out", "cityscapes19")
    assert folder.name == "gta5"
    np.testing.assert_array_equal(labels_of(folder)["00001"], expected)


def test_synthia_takes_the_class_from_the_first_of_16_bit_channels(tmp_path: Path) -> None:
    native = np.arange(H * W).reshape(H, W) % 23
    instance = RNG.integers(0, 40000, (H, W))
    save_image(tmp_path / "RGB/0000000.png")
    save_png16(
        tmp_path / "GT/LABELS/0000000.png", np.stack([native, instance, np.zeros_like(native)], axis=2)
    )
    (folder,) = prepare("synthia", tmp_path, tmp_path / "out", "cityscapes19")
    expected = train_ids("cityscapes19", dict(enumerate(synthia.NAMES)), native)
    np.testing.assert_array_equal(labels_of(folder)["0000000"], expected)
    usual = {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13}
    usual |= {18: 14, 19: 15, 20: 16, 12: 17, 11: 18}
    assert [usual.get(int(v), 255) for v in native.ravel()] == expected.ravel().tolist()


def test_urbansyn_train_ids_with_void_19(tmp_path: Path) -> None:
    native = np.arange(H * W).reshape(H, W) % 20
    save_image(tmp_path / "rgb/rgb_0007.png")
    save_index(tmp_path / "ss/ss_0007.png", native)
    (folder,) = prepare("urbansyn", tmp_path, tmp_path / "out", "cityscapes19")
    np.testing.assert_array_equal(labels_of(folder)["urbansyn_0007"], np.where(native == 19, 255, native))


# --- anybody's folder ---

VALUES = (
    "name: town\nimages: frames\nlabels: masks\nlabel_suffix: _m\nvalues: {0: road, 5: Pavement, 9: ignore}\n"
)


def town(root: Path, mapping: str = VALUES) -> Path:
    save_image(root / "frames/north/1.jpg")
    save_index(root / "masks/north/1_m.png", np.array([[0, 5, 9, 0]] * 3).repeat(2, 0).repeat(2, 1))
    (root / "map.yaml").write_text(mapping)
    return root / "map.yaml"


def test_folder_with_a_mapping_of_values(tmp_path: Path) -> None:
    (folder,) = prepare("folder", tmp_path, tmp_path / "out", "roads6", Options(mapping=town(tmp_path)))
    assert folder.name == "town"
    assert labels_of(folder)["north_1"][0].tolist() == [0, 0, 1, 1, 255, 255, 0, 0]


def test_folder_with_a_mapping_of_colours(tmp_path: Path) -> None:
    save_image(tmp_path / "images/1.jpg")
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (W, H), (1, 2, 3)).save(tmp_path / "labels/1.png")
    (tmp_path / "map.yaml").write_text('name: town\ncolours: {"1, 2,3": sky}\n')
    (folder,) = prepare(
        "folder", tmp_path, tmp_path / "out", "roads6", Options(mapping=tmp_path / "map.yaml")
    )
    assert (labels_of(folder)["1"] == 4).all()


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            "name: t\nvalues: {0: raod}\n",
            r"\['raod'\] are not class names; did you mean road\?; use 'ignore'",
        ),
        ("name: t\n", "either values: or colours:; keep exactly one"),
        ("name: a/b\nvalues: {0: road}\n", "name: String should match pattern"),
        ("name: t\nvalue: {0: road}\n", "value: Extra inputs are not permitted"),
        ("name: t\ncolours: {red: road}\n", "a colour is written .r,g,b. with 0..255 each, got 'red'"),
        ("name: [\n", "is not valid YAML"),
    ],
)
def test_a_wrong_mapping_file_is_refused(tmp_path: Path, mapping: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare("folder", tmp_path, tmp_path / "out", "roads6", Options(mapping=town(tmp_path, mapping)))


# --- bad input ---


def test_unknown_value_names_file_value_and_remedy(tmp_path: Path) -> None:
    camvid_root(tmp_path)
    save_index(tmp_path / "labels/0016E5_00002.png", np.full((H, W), 77))
    with pytest.raises(
        UserError, match=r"0016E5_00002.png: value 77 is not a label .*12 values, 0 to 11.*mapping"
    ):
        prepare("camvid", tmp_path, tmp_path / "out", "roads6")
    assert not (tmp_path / "out/camvid_0016E5").exists()


def test_unknown_colour_names_it(tmp_path: Path) -> None:
    save_image(tmp_path / "images/1.png")
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (W, H), (1, 2, 3)).save(tmp_path / "labels/1.png")
    with pytest.raises(UserError, match=r"labels/1.png: colour \(1, 2, 3\) is not a label of this data set"):
        prepare("gta5", tmp_path, tmp_path / "out", "cityscapes19")


def test_sizes_that_differ_are_refused(tmp_path: Path) -> None:
    camvid_root(tmp_path)
    save_image(tmp_path / "images/0016E5_00001.jpg", (H, W + 2))
    with pytest.raises(
        UserError, match=r"(?s)leave them out by --skip-bad.*0016E5_00001: image is 10x6 but label is 8x6"
    ):
        prepare("camvid", tmp_path, tmp_path / "out", "roads6")
    folders = prepare("camvid", tmp_path, tmp_path / "out", "roads6", Options(exclude=["0016E5_00001"]))
    assert list(labels_of(folders[1])) == ["0016E5_00002"]
    with pytest.raises(UserError, match=r"--exclude names samples that are not there: \['nobody'\]"):
        prepare("camvid", tmp_path, tmp_path / "out", "roads6", Options(exclude=["nobody"]))


@pytest.mark.parametrize("dataset", SOURCES)
def test_a_missing_root_says_the_layout_and_where_to_get_it(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UserError) as missing:
        prepare(dataset, tmp_path / "nowhere", tmp_path / "out", "roads6")
    assert f"--root holds {SOURCES[dataset].layout}" in str(missing.value)
    assert SOURCES[dataset].page in str(missing.value)
    with pytest.raises(UserError, match="--root holds"):
        prepare(dataset, tmp_path, tmp_path / "out", "roads6")


def test_a_missing_label_and_a_corrupt_image_are_named(tmp_path: Path) -> None:
    camvid_root(tmp_path)
    (tmp_path / "labels/0001TP_000003.png").rename(tmp_path / "kept.png")
    with pytest.raises(
        UserError,
        match=r"(?s)1 of 1 images have no label: 0001TP_000003 \(no file .*labels/0001TP_000003.png\)",
    ):
        prepare("camvid", tmp_path, tmp_path / "out", "roads6")
    (tmp_path / "kept.png").rename(tmp_path / "labels/0001TP_000003.png")
    image = tmp_path / "images/0001TP_000003.jpg"
    image.write_bytes(image.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"(?s)bad pairs: 1; .*0001TP_000003.jpg is cut off or corrupt"):
        prepare("camvid", tmp_path, tmp_path / "out", "roads6")


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown data set 'kitti'; choose from camvid, .*folder"):
        prepare("kitti", tmp_path, tmp_path, "roads6")
    with pytest.raises(UserError, match="folder needs mapping file"):
        prepare("folder", tmp_path, tmp_path, "roads6")
    with pytest.raises(UserError, match="limit is at least 1, got 0"):
        prepare("camvid", tmp_path, tmp_path, "roads6", Options(limit=0))
    camvid_root(tmp_path)
    with pytest.raises(UserError, match="unknown class set 'roads7'"):
        prepare("camvid", tmp_path, tmp_path / "out", "roads7")
    assert DATASETS[-1] == "folder"


@pytest.mark.process
def test_processes_limit_and_progress_leave_the_bytes_alone(tmp_path: Path) -> None:
    camvid_root(tmp_path)
    seen: list[tuple[str, int, int]] = []
    one = prepare("camvid", tmp_path, tmp_path / "one", "roads6", progress=lambda *step: seen.append(step))
    many = prepare("camvid", tmp_path, tmp_path / "many", "roads6", Options(processes=3))
    for a, b in zip(one, many, strict=True):
        assert DomainIndex.open(a).fingerprint == DomainIndex.open(b).fingerprint
    assert seen == [("camvid_0001TP", 1, 1), ("camvid_0016E5", 2, 2)]  # a piece holds 64
    limited = prepare("camvid", tmp_path, tmp_path / "few", "roads6", Options(limit=1))
    assert [len(DomainIndex.open(folder)) for folder in limited] == [1, 1]


# --- the real data sets ---


def test_real_camvid_has_the_sequences_in_full() -> None:
    counts = {name: len(pairs) for name, pairs in SOURCES["camvid"].parted(real_data() / "camvid").items()}
    assert counts == {"camvid_0001TP": 62, "camvid_0006R0": 101, "camvid_0016E5": 305, "camvid_Seq05VD": 171}


@pytest.mark.parametrize(
    ("dataset", "classes", "sizes"),
    [
        (
            "camvid",
            "roads6",
            {"camvid_0001TP": 2, "camvid_0006R0": 2, "camvid_0016E5": 2, "camvid_Seq05VD": 2},
        ),
        ("labelmefacade", "roads6", {"labelmefacade_train": 2, "labelmefacade_test": 2}),
        ("cityscapes", "cityscapes19", {"cityscapes_train": 2}),
    ],
)
def test_real_labels_survive_the_round_trip(tmp_path: Path, dataset: str, classes: str, sizes: dict) -> None:
    root = real_data() / dataset
    folders = prepare(dataset, root, tmp_path, classes, Options(limit=2))
    assert {folder.name: len(DomainIndex.open(folder)) for folder in folders} == sizes
    names = {
        "camvid": dict(enumerate(camvid.NAMES)),
        "labelmefacade": labelmefacade.NAMES,
        "cityscapes": dict(enumerate(cityscapes.NAMES)),
    }[dataset]
    pair = SOURCES[dataset].parted(root)[folders[0].name][1]
    native = np.asarray(Image.open(pair.label))[::5, ::5]
    found = next(label for key, label in labels_of(folders[0]).items() if key == pair.key)[::5, ::5]
    np.testing.assert_array_equal(found, train_ids(classes, names, native))
    assert len(np.unique(found)) > 4


def test_real_labelmefacade_lists_in_full() -> None:
    domains = SOURCES["labelmefacade"].domains(real_data() / "labelmefacade")
    assert {name: len(pairs) for name, pairs in domains.items()} == {
        "labelmefacade_train": 100,
        "labelmefacade_test": 150,
    }


def test_all_bad_pairs_are_listed_before_the_work_and_can_be_skipped(tmp_path: Path) -> None:
    camvid_root(tmp_path / "root")
    more = ["0016E5_00003", "0016E5_00004", "0016E5_00005", "0016E5_00006"]
    for stem in more:
        save_image(tmp_path / f"root/images/{stem}.jpg")
        save_index(tmp_path / f"root/labels/{stem}.png", np.full((H, W), 3))
    save_image(tmp_path / "root/images/0016E5_00003.jpg", (H, W + 2))
    save_index(tmp_path / "root/labels/0016E5_00004.png", np.full((H, W), 77))
    (tmp_path / "root/labels/0016E5_00005.png").unlink()
    image = tmp_path / "root/images/0016E5_00006.jpg"
    image.write_bytes(image.read_bytes()[:-40])
    with pytest.raises(UserError) as error:
        prepare("camvid", tmp_path / "root", tmp_path / "out", "roads6")
    text = str(error.value)
    assert "bad pairs: 4; nothing was converted" in text
    for part in (
        "00003: image is 10x6 but label is 8x6",
        "00004.png: value 77 is not a label",
        "1 of 6 images have no label: 0016E5_00005",
        "00006.jpg is cut off or corrupt",
    ):
        assert part in text
    assert not (tmp_path / "out").exists()
    told: list[str] = []
    skipping = Options(skip_bad=True)
    folders = prepare("camvid", tmp_path / "root", tmp_path / "out", "roads6", skipping, tell=told.append)
    assert [len(DomainIndex.open(folder)) for folder in folders] == [1, 2]
    assert len(told) == 4
    assert all(line.startswith("left out: camvid_0016E5: ") for line in told)
    left_out = read_domain_file(folders[1]).prepared.left_out
    assert sorted(key for keys in left_out.values() for key in keys) == more
    assert left_out["size_mismatch"] == ["0016E5_00003"]


def test_a_domain_without_a_good_pair_is_refused_all_the_same(tmp_path: Path) -> None:
    camvid_root(tmp_path)
    (tmp_path / "labels/0001TP_000003.png").unlink()
    with pytest.raises(UserError, match="a domain has no others"):
        prepare("camvid", tmp_path, tmp_path / "out", "roads6", Options(skip_bad=True))


@pytest.mark.process
def test_other_options_do_not_replace_a_domain_unasked(tmp_path: Path) -> None:
    camvid_root(tmp_path)
    (first, *_) = prepare("camvid", tmp_path, tmp_path / "out", "roads6")
    before = (first / "domain.json").stat().st_mtime_ns
    with pytest.raises(
        UserError,
        match=r"is there already, made with classes roads6, data set camvid; .*limit 1.*--overwrite",
    ):
        prepare("camvid", tmp_path, tmp_path / "out", "roads6", Options(limit=1))
    with pytest.raises(UserError, match="classes camvid11"):
        prepare("camvid", tmp_path, tmp_path / "out", "camvid11")
    assert (first / "domain.json").stat().st_mtime_ns == before
    prepare("camvid", tmp_path, tmp_path / "out", "roads6", Options(processes=2))
    folders = prepare("camvid", tmp_path, tmp_path / "out", "roads6", Options(limit=1, overwrite=True))
    assert [len(DomainIndex.open(folder)) for folder in folders] == [1, 1]


def test_deep_images_become_eight_bits_by_their_range(tmp_path: Path) -> None:
    camvid_root(tmp_path)
    values = np.linspace(0, 4095, H * W).reshape(H, W).astype(np.uint16)
    (tmp_path / "images/0001TP_000003.jpg").unlink()
    Image.fromarray(values).save(tmp_path / "images/0001TP_000003.png")
    with pytest.raises(UserError, match=r"0001TP_000003.png is of 16-bit values that end at 4095"):
        prepare("camvid", tmp_path, tmp_path / "out", "roads6")
    folders = prepare("camvid", tmp_path, tmp_path / "out", "roads6", Options(span=(0, 4095)))
    stored = Image.open(io.BytesIO(DomainIndex.open(folders[0]).read(0).image))
    assert (stored.format, stored.mode) == ("PNG", "RGB")
    np.testing.assert_array_equal(np.asarray(stored)[..., 0], np.rint(values * (255 / 4095)))
    assert read_domain_file(folders[0]).prepared.images == "1 of 1 encoded as PNG of 8 bits"
    assert read_domain_file(folders[0]).prepared.options == {"range": [0, 4095]}


def test_clutter_is_never_a_sample_of_any_data_set(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("train", "._a")):
        save_image(tmp_path / f"leftImg8bit/{split}/x/{name}_leftImg8bit.png")
        save_index(tmp_path / f"gtFine/{split}/x/{name}_gtFine_labelIds.png", np.zeros((H, W)))
    (folder,) = prepare("cityscapes", tmp_path, tmp_path / "out", "cityscapes19")
    assert list(labels_of(folder)) == ["a"]


def test_another_data_set_does_not_replace_a_domain_unasked(tmp_path: Path) -> None:
    for root, stems in (("one", "ab"), ("more", "bcd"), ("sizes", "ab")):
        for stem in stems:
            size = (H * 2, W * 2) if root == "sizes" else (H, W)
            save_image(tmp_path / root / f"images/{stem}.png", size)
            save_index(tmp_path / root / f"labels/{stem}.png", np.zeros(size))
    mapping = tmp_path / "map.yaml"
    mapping.write_text("name: town\nvalues: {0: road}\n")

    def make(root: str, **options: bool) -> Path:
        return prepare(
            "folder", tmp_path / root, tmp_path / "out", "roads6", Options(mapping=mapping, **options)
        )[0]

    made = make("one")
    before = (made / "domain.json").read_text()
    with pytest.raises(
        UserError,
        match=r"1 of its samples .* \(a\) and 2 of this data set are not in it \(c, d\).*--overwrite",
    ):
        make("more")
    with pytest.raises(UserError, match="files of other sizes"):
        make("sizes")
    assert (made / "domain.json").read_text() == before
    (tmp_path / "one").rename(tmp_path / "moved")
    make("moved")
    # A domain of an earlier version does not tell its files: its keys are compared.
    tree = json.loads(before)
    del tree["prepared"]["files"]
    (made / "domain.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"\(c, d\)"):
        make("more")
    make("moved")
    assert read_domain_file(made).prepared.files == json.loads(before)["prepared"]["files"]
    assert len(DomainIndex.open(make("more", overwrite=True))) == 3
    with pytest.raises(UserError, match=r"prepare` again with these --classes"):
        index_folder(made, "camvid11")


def test_synthia_labels_of_one_channel_are_read_as_stored(tmp_path: Path) -> None:
    """Four bits a pixel, written from the specification: 17 times the id is what decoders give."""
    values = RNG.integers(0, 16, (H, W)).astype(np.uint8)
    rows = b"".join(b"\0" + bytes(row[::2] << 4 | row[1::2]) for row in values)
    save_image(tmp_path / "RGB/0.png")
    (tmp_path / "GT/LABELS").mkdir(parents=True)
    (tmp_path / "GT/LABELS/0.png").write_bytes(png(struct.pack(">IIBBBBB", W, H, 4, 0, 0, 0, 0), rows))
    (folder,) = prepare("synthia", tmp_path, tmp_path / "out", "cityscapes19")
    names = dict(enumerate(synthia.NAMES))
    np.testing.assert_array_equal(labels_of(folder)["0"], train_ids("cityscapes19", names, values))


def test_a_colour_label_that_is_turned_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    save_image(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (W, H), (1, 2, 3)).save(tmp_path / "labels/a.png", exif=exif)
    (tmp_path / "map.yaml").write_text('name: town\ncolours: {"1,2,3": road}\n')
    with pytest.raises(UserError, match=r"labels/a.png is turned by an EXIF orientation.*store it upright"):
        prepare("folder", tmp_path, tmp_path / "out", "roads6", Options(mapping=tmp_path / "map.yaml"))


def test_pictures_of_a_known_layout_that_belong_to_no_pair_are_told(tmp_path: Path) -> None:
    camvid_root(tmp_path / "root")
    save_index(tmp_path / "root/labels/0016E5_00009.png", np.zeros((H, W)))
    (tmp_path / "root/images/0016E5_00009.heic").write_bytes(b"?")
    lines: list[str] = []
    prepare("camvid", tmp_path / "root", tmp_path / "out", "roads6", tell=lines.append)
    assert lines == [
        "passed over 2 pictures that belong to no pair, by name or ending: images/0016E5_00009.heic, "
        "labels/0016E5_00009.png"
    ]
