"""Data sets that are labelled like Cityscapes, in their native layouts, against Cityscapes' own scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from cityscapesscripts.helpers.labels import labels as OFFICIAL

from ppar_dist.data.prepare import SOURCES, Options, prepare
from ppar_dist.errors import UserError
from tests.unit.data.prepare.native import became, domains, save_pair

IDS = {label.id: label.trainId if label.trainId >= 0 else 255 for label in OFFICIAL if label.id >= 0}
TRAIN_IDS = {number: number for number in (*range(19), 255)}


def acdc(root: Path, ending: str = "labelIds", values: tuple[int, ...] = tuple(IDS)) -> None:
    for condition, split, frame in (
        ("fog", "train", "GOPR0475_frame_000041"),
        ("fog", "val", "GOPR0476_frame_000854"),
        ("night", "train", "GOPR0351_frame_000159"),
        ("rain", "val", "GOPR0400_frame_000243"),
        ("snow", "val", "GOPR0122_frame_000161"),
    ):
        below = f"{condition}/{split}/{frame.split('_')[0]}"
        save_pair(
            root / f"rgb_anon/{below}/{frame}_rgb_anon.png",
            root / f"gt/{below}/{frame}_gt_{ending}.png",
            values,
        )
    # What has no label: the reference images, and the split test.
    for below in ("fog/train_ref/GOPR0475", "fog/test/GOPR0475"):
        (root / f"rgb_anon/{below}").mkdir(parents=True)
        (root / f"rgb_anon/{below}/GOPR0475_frame_1_rgb_anon.png").write_bytes(b"not read")


def test_acdc_has_a_domain_for_each_condition_and_split(tmp_path: Path) -> None:
    acdc(tmp_path / "acdc")
    made = domains("acdc", tmp_path / "acdc", tmp_path / "out", "cityscapes19")
    assert made == {
        "acdc_fog_train": ["GOPR0475_frame_000041"],
        "acdc_fog_val": ["GOPR0476_frame_000854"],
        "acdc_night_train": ["GOPR0351_frame_000159"],
        "acdc_rain_val": ["GOPR0400_frame_000243"],
        "acdc_snow_val": ["GOPR0122_frame_000161"],
    }
    assert became(tmp_path / "out/acdc_fog_val", "GOPR0476_frame_000854", IDS) == IDS


def test_acdc_in_other_parts(tmp_path: Path) -> None:
    acdc(tmp_path / "acdc")
    whole = domains("acdc", tmp_path / "acdc", tmp_path / "out", "cityscapes19", split_by="none")
    assert {name: len(keys) for name, keys in whole.items()} == {"acdc_train": 2, "acdc_val": 3}
    sequences = domains("acdc", tmp_path / "acdc", tmp_path / "out", "cityscapes19", split_by="sequence")
    assert "acdc_fog_GOPR0475_train" in sequences
    assert len(sequences) == 5


def test_acdc_with_train_ids_alone(tmp_path: Path) -> None:
    acdc(tmp_path / "acdc", "labelTrainIds", tuple(TRAIN_IDS))
    domains("acdc", tmp_path / "acdc", tmp_path / "out", "cityscapes19")
    assert became(tmp_path / "out/acdc_snow_val", "GOPR0122_frame_000161", TRAIN_IDS) == TRAIN_IDS


def test_label_ids_are_preferred_to_train_ids(tmp_path: Path) -> None:
    acdc(tmp_path / "acdc")
    train_ids = tmp_path / "acdc/gt/fog/val/GOPR0476/GOPR0476_frame_000854_gt_labelTrainIds.png"
    save_pair(tmp_path / "unused.png", train_ids, [3])
    domains("acdc", tmp_path / "acdc", tmp_path / "out", "cityscapes19")
    assert became(tmp_path / "out/acdc_fog_val", "GOPR0476_frame_000854", IDS) == IDS


def test_dark_zurich(tmp_path: Path) -> None:
    stem = "val/night/GOPR0356/GOPR0356_frame_000321"
    save_pair(tmp_path / f"rgb_anon/{stem}_rgb_anon.png", tmp_path / f"gt/{stem}_gt_labelIds.png", IDS)
    save_pair(tmp_path / f"gt/{stem}_gt_labelColor.png", tmp_path / f"gt/{stem}_gt_invGray.png", [0])
    day = tmp_path / "rgb_anon/val_ref/day/GOPR0356_ref"
    day.mkdir(parents=True)
    (day / "GOPR0356_frame_000321_ref_rgb_anon.png").write_bytes(b"not read")
    made = domains("dark_zurich", tmp_path, tmp_path / "out", "cityscapes19")
    assert made == {"dark_zurich_val": ["GOPR0356_frame_000321"]}
    assert became(tmp_path / "out/dark_zurich_val", "GOPR0356_frame_000321", IDS) == IDS


@pytest.mark.parametrize(("ending", "ids"), [("labelIds", IDS), ("labelTrainIds", TRAIN_IDS)])
def test_nighttime_driving(tmp_path: Path, ending: str, ids: dict[int, int]) -> None:
    save_pair(
        tmp_path / "leftImg8bit/test/night/0_00012_leftImg8bit.png",
        tmp_path / f"gtCoarse_daytime_trainvaltest/test/night/0_00012_gtCoarse_{ending}.png",
        ids,
    )
    made = domains("nighttime_driving", tmp_path, tmp_path / "out", "cityscapes19")
    assert made == {"nighttime_driving_test": ["0_00012"]}
    assert became(tmp_path / "out/nighttime_driving_test", "0_00012", ids) == ids


def foggy(root: Path) -> None:
    for split, frame in (("train", "aachen_000000_000019"), ("val", "munster_000000_000019")):
        city = frame.split("_")[0]
        label = root / f"gtFine/{split}/{city}/{frame}_gtFine_labelIds.png"
        for beta in ("0.005", "0.01", "0.02"):
            image = root / f"leftImg8bit_foggy/{split}/{city}/{frame}_leftImg8bit_foggy_beta_{beta}.png"
            save_pair(image, label, IDS)


@pytest.mark.parametrize(
    ("dataset", "beta"),
    [
        ("foggy_cityscapes", "0.02"),
        ("foggy_cityscapes_0_01", "0.01"),
        ("foggy_cityscapes_0_005", "0.005"),
    ],
)
def test_each_density_of_foggy_cityscapes_is_a_data_set(tmp_path: Path, dataset: str, beta: str) -> None:
    foggy(tmp_path)
    told: list[str] = []
    (train, val) = prepare(dataset, tmp_path, tmp_path / "out", "cityscapes19", tell=told.append)
    assert (train.name, val.name) == (f"{dataset}_train", f"{dataset}_val")
    assert became(val, "munster_000000_000019", IDS) == IDS
    assert told == []  # the other densities are no mistake
    files = {pair.image.name for pair in SOURCES[dataset].domains(tmp_path)[val.name]}
    assert files == {f"munster_000000_000019_leftImg8bit_foggy_beta_{beta}.png"}


def test_cityscapes_and_its_fog_by_city(tmp_path: Path) -> None:
    foggy(tmp_path)
    made = domains("foggy_cityscapes", tmp_path, tmp_path / "out", "cityscapes19", split_by="city")
    assert made == {
        "foggy_cityscapes_aachen_train": ["aachen_000000_000019"],
        "foggy_cityscapes_munster_val": ["munster_000000_000019"],
    }


def test_a_rule_that_a_data_set_does_not_have_is_refused(tmp_path: Path) -> None:
    acdc(tmp_path)
    with pytest.raises(
        UserError,
        match=r"--split-by city: acdc can be split by condition, sequence, none \(usually condition\)",
    ):
        prepare("acdc", tmp_path, tmp_path / "out", "roads6", Options(split_by="city"))
    save_pair(tmp_path / "images/1.png", tmp_path / "labels/1.png", [0])
    with pytest.raises(UserError, match="gta5 has no parts to split by; leave the option out"):
        prepare("gta5", tmp_path, tmp_path / "out", "roads6", Options(split_by="city"))


def test_a_folder_that_no_domain_can_be_called_after_is_refused(tmp_path: Path) -> None:
    foggy(tmp_path)
    for below in ("leftImg8bit_foggy/train", "gtFine/train"):
        (tmp_path / below / "aachen").rename(tmp_path / below / "aachen (1)")
    with pytest.raises(UserError, match=r"got 'foggy_cityscapes_aachen \(1\)_train' .*rename the folder"):
        prepare("foggy_cityscapes", tmp_path, tmp_path / "out", "roads6", Options(split_by="city"))


def test_a_domain_split_by_another_rule_is_not_replaced_unasked(tmp_path: Path) -> None:
    foggy(tmp_path)
    prepare("foggy_cityscapes", tmp_path, tmp_path / "out", "roads6", Options(split_by="none"))
    with pytest.raises(UserError, match=r"made with .*split_by none; .*--overwrite"):
        prepare("foggy_cityscapes", tmp_path, tmp_path / "out", "roads6")


def test_an_unknown_value_and_a_missing_label_are_named(tmp_path: Path) -> None:
    acdc(tmp_path)
    fog = tmp_path / "gt/fog/val/GOPR0476/GOPR0476_frame_000854_gt_labelIds.png"
    save_pair(tmp_path / "unused.png", fog, [*IDS, 77])
    (tmp_path / "gt/rain/val/GOPR0400/GOPR0400_frame_000243_gt_labelIds.png").unlink()
    with pytest.raises(UserError) as refused:
        prepare("acdc", tmp_path, tmp_path / "out", "cityscapes19")
    assert "bad pairs: 2; nothing was converted" in str(refused.value)
    assert "GOPR0476_frame_000854_gt_labelIds.png: value 77 is not a label" in str(refused.value)
    assert "acdc_rain_val: 1 of 1 images have no label" in str(refused.value)


def test_images_of_a_split_that_no_pair_holds_are_told(tmp_path: Path) -> None:
    acdc(tmp_path / "acdc")
    (tmp_path / "acdc/rgb_anon/fog/val/GOPR0476/stray.png").write_bytes(b"?")
    told: list[str] = []
    prepare("acdc", tmp_path / "acdc", tmp_path / "out", "cityscapes19", tell=told.append)
    assert told == [
        "passed over 1 pictures that belong to no pair, by name or ending: "
        "rgb_anon/fog/val/GOPR0476/stray.png"
    ]
