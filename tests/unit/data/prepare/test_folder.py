"""``prepare folder``: how a mapping file says which files belong together, and what label values mean."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ppar_dist.class_sets import IGNORE_INDEX
from ppar_dist.data.prepare import Options, folder, prepare
from ppar_dist.data.prepare.finding import images_below, labels_on_disk
from ppar_dist.data.prepare.source import Pair
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.manifest import read_domain_file
from ppar_dist.data.shards.writer import write_domain
from ppar_dist.errors import UserError

VALUES = "values: {0: sky, 3: road, 255: ignore}\n"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def picture(path: Path, value: int | tuple[int, int, int] = 3, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(value, int) else "RGB", size, value).save(path)


def mapping(root: Path, text: str) -> Path:
    (root / "map.yaml").write_text(text + (VALUES if "values" not in text and "colours" not in text else ""))
    return root / "map.yaml"


def domains(root: Path, text: str) -> dict[str, list[Pair]]:
    return dict(folder.source(mapping(root, text)).domains(root))


def made(root: Path, text: str) -> DomainIndex:
    options = Options(mapping=mapping(root, text), overwrite=True)
    (out,) = prepare("folder", root, root.parent / "out", "roads6", options)
    return DomainIndex.open(out)


def names(pairs: list[Pair], root: Path) -> list[tuple[str, str, str]]:
    return [(key, *(str(path.relative_to(root)) for path in files)) for key, *files in pairs]


# --- layouts of data sets, with their real file names ---

LAYOUTS = {
    "acdc": (
        'name: "acdc_{condition}"\n'
        'images: "rgb_anon/{condition}/train/{seq}/{frame}_rgb_anon.png"\n'
        'labels: "gt/{condition}/train/{seq}/{frame}_gt_labelIds.png"\n',
        [
            "rgb_anon/fog/train_ref/GOPR0475/GOPR0475_frame_000041_rgb_ref_anon.png",
            "gt/fog/train/GOPR0475/GOPR0475_frame_000041_gt_labelTrainIds.png",
            "gt/night/train/GOPR0351/GOPR0351_frame_000159_gt_labelColor.png",
        ],
        {
            "acdc_fog": {
                "rgb_anon/fog/train/GOPR0475/GOPR0475_frame_000041_rgb_anon.png": (
                    "gt/fog/train/GOPR0475/GOPR0475_frame_000041_gt_labelIds.png"
                )
            },
            "acdc_night": {
                "rgb_anon/night/train/GOPR0351/GOPR0351_frame_000159_rgb_anon.png": (
                    "gt/night/train/GOPR0351/GOPR0351_frame_000159_gt_labelIds.png"
                ),
                "rgb_anon/night/train/GOPR0351/GOPR0351_frame_000160_rgb_anon.png": (
                    "gt/night/train/GOPR0351/GOPR0351_frame_000160_gt_labelIds.png"
                ),
            },
        },
    ),
    "dark_zurich": (
        "name: dark_zurich_val\n"
        'images: "rgb_anon/val/night/{seq}/{frame}_rgb_anon.png"\n'
        'labels: "gt/val/night/{seq}/{frame}_gt_labelIds.png"\n',
        ["rgb_anon/val_ref/day/GOPR0356_ref/GOPR0356_frame_000321_ref_rgb_anon.png"],
        {
            "dark_zurich_val": {
                "rgb_anon/val/night/GOPR0356/GOPR0356_frame_000321_rgb_anon.png": (
                    "gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelIds.png"
                )
            }
        },
    ),
    "idd": (  # part I holds PNG images, part II JPEG
        'name: "idd_{split}"\n'
        'images: "leftImg8bit/{split}/{drive}/{frame}_leftImg8bit.{ending}"\n'
        'labels: "gtFine/{split}/{drive}/{frame}_gtFine_labelcsTrainIds.png"\n',
        ["gtFine/train/0/frame0029_gtFine_polygons.json"],
        {
            "idd_train": {
                "leftImg8bit/train/0/frame0029_leftImg8bit.png": (
                    "gtFine/train/0/frame0029_gtFine_labelcsTrainIds.png"
                ),
                "leftImg8bit/train/201/frame0029_leftImg8bit.jpg": (
                    "gtFine/train/201/frame0029_gtFine_labelcsTrainIds.png"
                ),
            },
            "idd_val": {
                "leftImg8bit/val/119/902541_leftImg8bit.png": (
                    "gtFine/val/119/902541_gtFine_labelcsTrainIds.png"
                )
            },
        },
    ),
    "foggy_cityscapes": (  # three densities of fog, one label
        "name: foggy_train\n"
        'images: "leftImg8bit_foggy/train/{city}/{city}_{frame}_leftImg8bit_foggy_beta_{beta}.png"\n'
        'labels: "gtFine/train/{city}/{city}_{frame}_gtFine_labelIds.png"\n',
        [],
        {
            "foggy_train": {
                f"leftImg8bit_foggy/train/aachen/aachen_000000_000019_leftImg8bit_foggy_beta_{beta}.png": (
                    "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
                )
                for beta in ("0.005", "0.01", "0.02")
            }
        },
    ),
    "mapillary": (
        'name: "mapillary_{split}"\n'
        'images: "{split}/images/{id}.jpg"\n'
        'labels: "{split}/v1.2/labels/{id}.png"\n',
        ["training/v2.0/labels/00qclUcInksIYnm19b1Xfw.png", "training/v1.2/panoptic/a.png"],
        {
            "mapillary_training": {
                "training/images/00qclUcInksIYnm19b1Xfw.jpg": (
                    "training/v1.2/labels/00qclUcInksIYnm19b1Xfw.png"
                )
            },
            "mapillary_validation": {
                "validation/images/_-XUnoT97ZYlNH-2KUpk5A.jpg": (
                    "validation/v1.2/labels/_-XUnoT97ZYlNH-2KUpk5A.png"
                )
            },
        },
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_data_sets(tmp_path: Path, name: str) -> None:
    text, others, expected = LAYOUTS[name]
    touch(tmp_path, *others)
    for pairs in expected.values():
        touch(tmp_path, *pairs, *pairs.values())
    found = domains(tmp_path, text)
    assert {
        domain: {image: label for _, image, label in names(pairs, tmp_path)}
        for domain, pairs in found.items()
    } == expected
    assert list(found) == sorted(found)


def test_keys_hold_what_the_placeholders_stand_for(tmp_path: Path) -> None:
    text, _, expected = LAYOUTS["foggy_cityscapes"]
    for image, label in expected["foggy_train"].items():
        touch(tmp_path, image, label)
    keys = [pair.key for pair in domains(tmp_path, text)["foggy_train"]]
    assert keys == [f"aachen_000000_000019_0_{beta}" for beta in ("005", "01", "02")]


# --- patterns ---


@pytest.mark.parametrize(
    ("images", "labels", "image", "label"),
    [
        # The first takes as much as it can; literal text is found by backtracking.
        ("{a}_{b}.png", "gt/{a}/{b}.png", "x_y_z.png", "gt/x_y/z.png"),
        ("i/{frame}00_rgb.png", "gt/{frame}.png", "i/10000_rgb.png", "gt/100.png"),
        # Whatever has a meaning in regular expressions is literal.
        ("i (1)+[a]/{f}.v1$.png", "gt^/{f}.*.png", "i (1)+[a]/a.v1$.png", "gt^/a.*.png"),
        ("{f}.png", "gt/{f}.PNG", "a.PNG", "gt/a.PNG"),
        ("./i//{f}.jpg", "gt/./{f}.png", "i/a.JPG", "gt/a.png"),
        ("{f}.jpeg", "{f}.png", "街道 1.jpeg", "街道 1.png"),
    ],
)
def test_a_pattern_finds_its_label(tmp_path: Path, images: str, labels: str, image: str, label: str) -> None:
    touch(tmp_path, image, label)
    (pairs,) = domains(tmp_path, f"name: t\nimages: '{images}'\nlabels: '{labels}'\n").values()
    assert [pair[1:] for pair in names(pairs, tmp_path)] == [(image, label)]


@pytest.mark.parametrize("other", ["i/xa.png", "i/a/b.png", "i/b/a_c.png", "j/a/a_b.png", "i/a/a_.png"])
def test_a_repeated_placeholder_stands_for_the_same_text(tmp_path: Path, other: str) -> None:
    text = 'name: t\nimages: "i/{c}/{c}_{f}.png"\nlabels: "gt/{c}_{f}.png"\n'
    touch(tmp_path, "i/a/a_b.png", "gt/a_b.png", other)
    (pairs,) = domains(tmp_path, text).values()
    assert names(pairs, tmp_path) == [("a_b", "i/a/a_b.png", "gt/a_b.png")]


def test_labels_beside_their_images_are_not_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a_mask.png", "b.png", "b_mask.png")
    (pairs,) = domains(tmp_path, 'name: t\nimages: "{f}.png"\nlabels: "{f}_mask.png"\n').values()
    assert names(pairs, tmp_path) == [("a", "a.png", "a_mask.png"), ("b", "b.png", "b_mask.png")]
    with pytest.raises(UserError, match=r"images: and labels: name the same files, a.png for one"):
        domains(tmp_path, 'name: t\nimages: "{f}.png"\nlabels: "{f}.png"\n')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images: '{f}.png'", "images: has placeholders and labels: has none; write both"),
        ("labels: 'gt/{f}.png'", r"labels: has {f}, which images: lacks"),
        ("images: '{f}.png'\nlabels: '{f}/{g}.png'", r"labels: has {g}, which images: lacks"),
        ("images: 'i{'", r"images: has a brace that is not of a placeholder such as {frame}.*got 'i{'"),
        ("images: 'i/{a b}.png'\nlabels: l", "images: has a brace"),
        ("images: 'i/{{f}}.png'\nlabels: l", "images: has a brace"),
        ("images: 'i/{}.png'\nlabels: l", "images: has a brace"),
        ("images: '{a}{b}.png'\nlabels: l", "images: has two placeholders side by side"),
        ("images: '../i/{f}.png'\nlabels: 'l/{f}.png'", "images: is a path below --root, without '..'"),
        ("images: 'i/{f}.png'\nlabels: '/l/{f}.png'", "labels: is a path below --root.* got '/l/{f}.png'"),
        ("images: ../i", "images: is a path below --root"),
        ("images: 'i/{f}.png'\nlabels: 'l/{f}.png'\nlabel_suffix: _m", "label_suffix: belongs to folders"),
        ("images: 'i/{f}.jpg'\nlabels: 'l/{f}.tif'", r"labels are PNG files, labels: ends in .png, got"),
        ("images: i\nlabels: l\nvalues: {'*': ignore}", "lists no value or colour"),
        ("values: {-1: road}", "values.-1"),
        ("values: {0: road, '*': raod}", r"\['raod'\] are not class names"),
        ("values: {0: road, 0: sky}", "key '0' in line 2 is in line 2 too; keep one"),
        ("colours: {'1,2,3': road, '1, 2, 3': sky}", "lists a colour twice; keep one"),
        ("name: 't_{city}'\nimages: i", r"name: has {city}, which images: lacks"),
    ],
)
def test_contradictions_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    name = "" if "name:" in text else "name: t\n"
    with pytest.raises(UserError, match=message) as refused:
        folder.source(mapping(tmp_path, f"{name}{text}\n"))
    assert "\n" not in str(refused.value)
    assert "map.yaml" in str(refused.value)


def test_a_domain_name_from_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    touch(tmp_path, "i/a b/1.png", "l/a b/1.png")
    with pytest.raises(
        UserError, match=r"holds letters, digits, _ and - only, got 't_a b' for .*i/a b/1.png"
    ):
        domains(tmp_path, 'name: "t_{c}"\nimages: "i/{c}/{f}.png"\nlabels: "l/{c}/{f}.png"\n')


# --- what is not there ---

ACDC = "name: t\nimages: rgb_anon/train\nlabels: gt/train\nlabel_suffix: _gt_labelIds\n"


def test_no_label_at_all_shows_an_example_and_the_patterns_that_find_them(tmp_path: Path) -> None:
    frames = [f"train/GOPR0351/GOPR0351_frame_00016{number}" for number in range(3)]
    for frame in frames:
        touch(tmp_path, f"rgb_anon/{frame}_rgb_anon.png")
        touch(tmp_path, *(f"gt/{frame}_gt_label{kind}.png" for kind in ("Color", "Ids", "TrainIds")))
    with pytest.raises(UserError) as refused:
        domains(tmp_path, ACDC)
    message = str(refused.value)
    assert f"of rgb_anon/{frames[0]}_rgb_anon.png would be gt/{frames[0]}_rgb_anon_gt_labelIds.png" in message
    assert f"the nearest is gt/{frames[0]}_gt_labelIds.png" in message
    assert "(finds 3 of 3)" in message
    patterns = re.search(r'images: "(.*)" and labels: "(.*)"', message)
    assert patterns is not None
    text = f'name: t\nimages: "{patterns[1]}"\nlabels: "{patterns[2]}"\n'
    assert [pair.label for pair in domains(tmp_path, text)["t"]] == [
        tmp_path / f"gt/{frame}_gt_labelIds.png" for frame in frames
    ]


def test_no_label_and_shared_endings(tmp_path: Path) -> None:
    touch(tmp_path, "images/rgb_0001.png", "images/rgb_0002.png", "labels/ss_0001.png", "labels/ss_0002.png")
    with pytest.raises(
        UserError, match=r'images: "images/rgb_{frame}.png" and labels: "labels/ss_{frame}.png"'
    ):
        domains(tmp_path, "name: t\n")


@pytest.mark.parametrize("label", ["labels/0002_gt.png", "labels/x/0001_gt.png", "labels/0001.tif", None])
def test_no_label_and_nothing_that_fits_gives_the_form_alone(tmp_path: Path, label: str | None) -> None:
    touch(tmp_path, "images/0001_rgb.png", *([label] if label else []))
    (tmp_path / "labels").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=r"0001_rgb.png would be labels/0001_rgb.png") as refused:
        domains(tmp_path, "name: t\n")
    assert 'such as images: "images/{frame}_rgb.png" and labels: "labels/{frame}_gt.png"' in str(
        refused.value
    )
    near = label in {"labels/x/0001_gt.png", "labels/0001.tif"}
    assert (f"the nearest is {label}" in str(refused.value)) == near


def test_some_images_without_a_label_keep_the_path_that_was_looked_for(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "labels/b.png")
    assert names(domains(tmp_path, "name: t\n")["t"], tmp_path) == [
        ("a", "images/a.jpg", "labels/a.png"),
        ("b", "images/b.jpg", "labels/b.png"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: t\n", r"no image \(.bmp, .jpeg, .*\) below .*images; set images: in"),
        (
            'name: t\nimages: "{f}.jpg"\nlabels: "labels/{f}.png"\n',
            r"called '{f}.jpg', there is labels/a.png",
        ),
        (
            "name: t\nimages: pictures\n",
            r"no .*pictures; --root holds pictures/<name>.jpg and labels/<name>.png",
        ),
    ],
)
def test_no_image(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "labels/a.png", "images/a.txt")
    with pytest.raises(UserError, match=message):
        domains(tmp_path, text)


# --- names of files ---


def test_any_ending_in_any_case(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.Png", "c.tif", "d.bmp", "e.webp", "f.jpeg", "g.TIFF", "h.ppm"):
        picture(tmp_path / "r/images" / name, (1, 2, 3))
    for name in "abcdefgh":
        picture(tmp_path / "r/labels" / f"{name}.{'PNG' if name < 'c' else 'png'}")
    index = made(tmp_path / "r", "name: t\n")
    assert [index.key(i) for i in range(len(index))] == list("abcdefgh")


def test_the_exact_name_comes_first_and_no_label_serves_two_images(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/B.jpg", "images/b.jpg", "images/c.jpg", "images/D.jpg")
    touch(tmp_path, "labels/a.png", "labels/A.PNG", "labels/b.png", "labels/C.png", "labels/c.Png")
    (pairs,) = domains(tmp_path, "name: t\n").values()
    assert [path.name for _, _, path in pairs] == ["B.png", "D.png", "a.png", "b.png", "c.png"]
    assert labels_on_disk([tmp_path / "labels/D.png", tmp_path / "none/x.png"]) == [
        tmp_path / "labels/D.png",
        tmp_path / "none/x.png",
    ]
    touch(tmp_path, "labels/d.PNG")
    assert labels_on_disk([tmp_path / "labels/D.png"]) == [tmp_path / "labels/d.PNG"]


def test_each_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(f"{split}/{number}.PNG" for split in "ab" for number in range(50)))
    listed: list[Path] = []
    listdir = os.listdir

    def counted(path: Path) -> list[str]:
        listed.append(path)
        return listdir(path)

    monkeypatch.setattr("os.listdir", counted)
    wanted = [tmp_path / f"{split}/{number}.png" for split in "ab" for number in range(50)]
    assert all(path.suffix == ".PNG" for path in labels_on_disk(wanted))
    assert sorted(listed) == [tmp_path / "a", tmp_path / "b"]


def test_a_label_in_the_other_unicode_form_is_found(tmp_path: Path) -> None:
    touch(tmp_path, "images/cafe\u0301.jpg", "labels/caf\u00e9.png")
    (pairs,) = domains(tmp_path, "name: t\n").values()
    assert pairs[0].label.is_file()


def test_clutter_is_left_out_and_links_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "i/._a.jpg", "i/.ipynb_checkpoints/a.jpg", "i/__MACOSX/b.jpg", "i/Thumbs.db", "i/a.txt")
    touch(tmp_path, "i/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "i/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "i/loop").symlink_to(tmp_path)
    assert images_below(tmp_path / "i") == [tmp_path / "i/a.jpg", tmp_path / "i/link/b.jpg"]


def test_a_folder_that_cannot_be_listed_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    touch(tmp_path, "i/a.jpg")
    monkeypatch.setattr("os.scandir", refuse)
    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(UserError, match=r"cannot list folder .*/i: Permission denied"):
        images_below(tmp_path / "i")
    with pytest.raises(UserError, match=r"cannot list folder .*/i: Permission denied"):
        labels_on_disk([tmp_path / "i/a.png"])


@pytest.mark.parametrize(
    ("one", "other"), [("a b.jpg", "a_b.jpg"), ("a.jpg", "a.png"), ("x/y_z.jpg", "x_y/z.jpg")]
)
def test_two_files_of_one_key_are_refused_before_the_work(tmp_path: Path, one: str, other: str) -> None:
    touch(tmp_path, *(f"images/{name}" for name in (one, other)), "labels/a.png")
    with pytest.raises(UserError, match=f"images/{one} and .*images/{other} would both have the key"):
        domains(tmp_path, "name: t\n")


def test_names_of_any_script_become_samples(tmp_path: Path) -> None:
    stems = ["街道", "公园", "улица", "café", "cafe\u0301", "رصيف", "🚗 1", "🚙 1", "सड़क", "ถนน", "x" * 200]
    for number, stem in enumerate(stems):
        picture(tmp_path / f"r/images/{stem}.jpg", (number, 0, 0))
        picture(tmp_path / f"r/labels/{stem}.png")
    index = made(tmp_path / "r", "name: t\n")
    keys = {index.key(i) for i in range(len(index))}
    assert len(keys) == len(stems)
    assert {"街道", "公园", "улица", "caf\u00e9", "رصيف", "ถนน", "x" * 200} < keys


# --- values that are not listed ---


def colour_label(path: Path, stray: int) -> None:
    pixels = np.full((6, 8, 3), (70, 130, 180), np.uint8)
    pixels.reshape(-1, 3)[:stray] = (1, 2, 3)
    pixels[-1, -1] = (4, 5, 6)
    path.parent.mkdir(parents=True)
    Image.fromarray(pixels).save(path)


LEGEND = "name: t\ncolours: {'70,130,180': sky"


def test_a_stray_colour_is_refused_with_the_number_of_its_pixels(tmp_path: Path) -> None:
    picture(tmp_path / "r/images/a.jpg", (1, 2, 3))
    colour_label(tmp_path / "r/labels/a.png", 2)
    with pytest.raises(UserError, match=r"colour \(1, 2, 3\).*2 of 48 pixels have it, 3 one that") as refused:
        made(tmp_path / "r", LEGEND + "}\n")
    assert '`"*": ignore`' in str(refused.value)


@pytest.mark.parametrize(("rest", "train_id"), [("ignore", IGNORE_INDEX), ("road", 0)])
def test_all_other_colours_and_values_count_as_the_rest(tmp_path: Path, rest: str, train_id: int) -> None:
    picture(tmp_path / "r/images/a.jpg", (1, 2, 3))
    colour_label(tmp_path / "r/labels/a.png", 2)
    index = made(tmp_path / "r", f'{LEGEND}, "*": {rest}}}\n')
    sky, other = 4, np.asarray(index.counts[0])
    assert other[sky] == 45
    assert other.sum() == (48 if train_id == 0 else 45)
    picture(tmp_path / "r/labels/a.png", 77)
    index = made(tmp_path / "r", f'name: t\nvalues: {{3: sky, "*": {rest}}}\n')
    assert np.asarray(index.counts[0]).sum() == (48 if train_id == 0 else 0)
    with pytest.raises(
        UserError, match=r"value 77 is not a label .* 48 of 48 pixels have it\. .*\"\*\": ignore"
    ):
        made(tmp_path / "r", "name: t\nvalues: {3: sky}\n")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ('{0: sky, 3: road, "0": road}', "lists one value twice, as 0 and '0'; keep one"),
        ("{0: sky, 0x0: road}", "key '0x0' in line 3 is in line 3 too as '0'; keep one"),
        ("{0: sky, 0.0: road}", "key '0.0' in line 3 is in line 3 too as '0'; keep one"),
        ("{0: sky, false: road}", "key 'false' in line 3 is in line 3 too as '0'; keep one"),
        ("{no: sky, 3: road}", "a label value is a number, got False"),
        ("{010: sky, 3: road}", "'010' is octal in YAML"),
    ],
)
def test_keys_that_mean_one_value_or_none_are_refused(tmp_path: Path, values: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        folder.read_mapping(mapping(tmp_path, f"name: c\n\nvalues: {values}\n"))


def test_each_real_folder_is_searched_once(tmp_path: Path) -> None:
    touch(tmp_path, "in/x/a.jpg", "in/y/b.jpg", "elsewhere/c.jpg")
    for link, target in (("x/ty", "../y"), ("y/tx", "../x"), ("e1", "../elsewhere"), ("e2", "../elsewhere")):
        (tmp_path / "in" / link).symlink_to(target)
    found = [str(path.relative_to(tmp_path / "in")) for path in images_below(tmp_path / "in")]
    assert found == ["e1/c.jpg", "x/a.jpg", "y/b.jpg"]


def told(root: Path, text: str, **options: Any) -> tuple[Path, list[str]]:
    lines: list[str] = []
    chosen = Options(mapping=mapping(root, text), **options)
    (out,) = prepare("folder", root, root.parent / "out", "roads6", chosen, tell=lines.append)
    return out, lines


def test_pictures_that_are_passed_over_are_told_and_counted(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("images/a_rgb.png", "images/b_rbg.png", "images/c_rgb.jpeg", "labels/a.png", "labels/b.png"):
        picture(root / name)
    touch(root, "images/d_rgb.HEIC", "images/readme.txt")
    out, lines = told(root, 'name: c\nimages: "images/{f}_rgb.png"\nlabels: "labels/{f}.png"\n')
    assert lines == [
        "passed over 4 pictures that belong to no pair, by name or ending: images/b_rbg.png, "
        "images/c_rgb.jpeg, images/d_rgb.HEIC, …"
    ]
    assert read_domain_file(out).prepared.passed_over == 4


def test_shared_labels_broad_excludes_and_labels_without_a_class_are_told(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("images/s/a.png", "images/t/a.png", "images/t/b.png", "labels/a.png", "labels/b.png"):
        picture(root / name, 255)
    _, lines = told(root, 'name: c\nimages: "images/{s}/{f}.png"\nlabels: "labels/{f}.png"\n', exclude=("a",))
    assert lines == [
        "2 images share a label with another: s_a, t_a",
        "--exclude a leaves out 2 samples: s_a, t_a",
        "c: no pixel of any label has a class of roads6; check the mapping of its labels",
    ]


def test_where_a_domain_cannot_be_is_refused_before_the_work(tmp_path: Path) -> None:
    picture(tmp_path / "in/images/a.png")
    picture(tmp_path / "in/labels/a.png")
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"--out is a folder to write to, got .*/out: .*/out is not a folder"):
        told(tmp_path / "in", "name: c\n")
    with pytest.raises(UserError, match="name: String should have at most 200 characters"):
        told(tmp_path / "in", f"name: {'c' * 260}\n")
    with pytest.raises(UserError, match=r"cannot complete .*/out/c \(.*File exists"):
        write_domain(tmp_path / "out/c", "roads6", [])
    chosen = Options(mapping=mapping(tmp_path / "in", "name: c\n"))
    with pytest.raises(UserError, match=r"cannot complete .*File name too long"):
        prepare("folder", tmp_path / "in", tmp_path / ("o" * 300), "roads6", chosen)
