"""A user's file of classes: what it says is what data and runs get, and an edited one is not taken for it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppar_dist.class_sets import class_set
from ppar_dist.config.class_file import pinned
from ppar_dist.config.identity import config_changes, config_hash
from ppar_dist.config.load import dump_config, load_config, parse_config
from ppar_dist.config.schema import Config
from ppar_dist.config.yaml import read_yaml
from ppar_dist.data.prepare import Options, prepare
from ppar_dist.data.shards.build_index import index_folder
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.sources import check_classes
from ppar_dist.errors import ConfigError, DataError

ROADS = Path(__file__).parents[3] / "configs" / "roads.yaml"
TEXT = """\
classes:
  - {name: Way, colour: [1, 2, 3], labels: [Road, pavement], texts: [street, way]}
  - {name: lorry, colour: [4, 5, 6]}
"""


def file_of(folder: Path, text: str = TEXT, name: str = "mine.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_a_file_is_read_as_written(tmp_path: Path) -> None:
    mine = class_set(str(file_of(tmp_path)))
    assert mine.classes == ("way", "lorry")
    assert mine.palette == ((1, 2, 3), (4, 5, 6))
    assert mine.prompts == (("street", "way"), ("lorry",))
    assert [mine.train_id(name) for name in ("Road", "pavement", "WAY", "lorry", "sky")] == [0, 0, 0, 1, 255]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lorry", "WAY", "each name belongs to one class, twice there: way"),
        ("[4, 5, 6]", "[1, 2, 3]", "each colour belongs to one class"),
        ("lorry, ", "lorry, labels: [ROAD], ", "each label belongs to one class, twice there: road"),
        ("[4, 5, 6]", "[4, 5, 256]", "colour"),
        ("[4, 5, 6]", "[4, 5]", "colour"),
        ("name: lorry", "title: lorry", "title"),
        (
            "colour: [4",
            "color: [4",
            r"unknown key classes\.1\.color; did you mean colour\?; the file has the list",
        ),
        ("[4, 5, 6]", "red", r"classes\.1\.colour is a list, got 'red'"),
        ("name: lorry", "name: ' '", "name"),
        ("name: lorry", "name: 5", "name"),
        ("[4, 5, 6]", "[4, 5, 6], native: {idd: []}", "native.idd"),
        ("[4, 5, 6]", "[4, 5, 6], native: [van]", "native"),
        ("[4, 5, 6]", "[4, 5, 6], natives: {idd: [van]}", "unknown key classes.1.natives"),
        (
            TEXT,
            TEXT.replace("]}", "], native: {idd: [Van]}}", 1).replace("6]}", "6], native: {idd: [van]}}"),
            "each native name belongs to one class, twice there: idd: van",
        ),
        ("classes:", "klasses:", "klasses"),
        (TEXT, "classes: []", "classes has at least 1 values, got"),
        (TEXT, "", "mine.yaml"),
        (TEXT, "classes: {", "not valid YAML"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(ConfigError, match=message):
        class_set(str(file_of(tmp_path, TEXT.replace(old, new))))


def test_hashes_without_names_of_single_data_sets_are_what_they_were(tmp_path: Path) -> None:
    """Runs and shards that exist carry them."""
    file = file_of(tmp_path)
    assert class_set(str(file)).name == "mine@0ca58d6dd828a55c"
    assert pinned(str(file)).endswith("@c1b97dcbd651a552")
    other = tmp_path / "other"
    one, two = (
        "native: {idd: [truck, bus], cityscapes: [bus]}",
        "native: {cityscapes: [bus], idd: [BUS, truck]}",
    )
    first, second = (
        file_of(other / n[8:11], TEXT.replace("[4, 5, 6]", f"[4, 5, 6], {n}")) for n in (one, two)
    )
    assert class_set(str(first)) == class_set(str(second)), "order and case do not count"


@pytest.mark.parametrize(("number", "fits"), [(255, True), (256, False)])
def test_train_ids_are_bytes_and_255_is_no_class(tmp_path: Path, number: int, fits: bool) -> None:
    rows = "".join(f"  - {{name: c{at}, colour: [{at % 256}, {at // 256}, 0]}}\n" for at in range(number))
    path = str(file_of(tmp_path, f"classes:\n{rows}"))
    if fits:
        assert class_set(path).num_classes == number
    else:
        with pytest.raises(ConfigError, match="255"):
            class_set(path)


@pytest.mark.parametrize(
    ("old", "new", "same_labels", "same_result"),
    [
        ("[4, 5, 6]", "[7, 8, 9]", True, True),
        ("[street, way]", "[street]", True, False),
        ("[Road, pavement]", "[pavement, Road]", True, True),
        ("[Road, pavement]", "[Road]", False, False),
        ("lorry", "truck", False, False),
        ("[4, 5, 6]", "[4, 5, 6], native: {idd: [truck]}", False, False),
    ],
)
def test_what_a_change_changes(
    tmp_path: Path, old: str, new: str, same_labels: bool, same_result: bool
) -> None:
    before = str(file_of(tmp_path / "a"))
    after = str(file_of(tmp_path / "b", TEXT.replace(old, new)))
    assert (class_set(before).name == class_set(after).name) is same_labels
    assert (config_hash(config(before)) == config_hash(config(after))) is same_result
    assert (not config_changes(config(before), config(after))) is same_result


def config(classes: str) -> Config:
    return load_config(
        ROADS, [f"data.classes={classes}", "run.dir=run", "data.root=shards", "text.file=t.npz"]
    )


def test_a_run_keeps_the_content_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(tmp_path)
    monkeypatch.chdir(tmp_path)
    noted = read_yaml(dump_config(config("mine.yaml")))
    assert noted["data"]["classes"] == pinned(str(path))
    monkeypatch.chdir("/")  # a run is resumed from anywhere
    assert class_set(noted["data"]["classes"]).classes == ("way", "lorry")
    file_of(tmp_path, TEXT.replace("lorry", "truck"))
    assert parse_config(noted) is not None  # status and report of the run still work
    with pytest.raises(ConfigError, match="has changed"):
        class_set(noted["data"]["classes"])
    path.unlink()
    with pytest.raises(ConfigError, match="put the file back there"):
        class_set(noted["data"]["classes"])
    with pytest.raises(ConfigError, match=r"mine\.yaml: No such file"):
        config(str(path))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Two pictures whose label 7 is a name of the user's file alone."""
    root = tmp_path / "native"
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (8, 6), (number, 90, 0)).save(root / "images" / f"{number}.jpg")
        Image.fromarray(np.full((6, 8), 7, np.uint8)).save(root / "labels" / f"{number}.png")
    (tmp_path / "folder.yaml").write_text("name: own\nvalues: {7: lorry}\n")
    return root


def test_prepared_data_are_known_by_content(tmp_path: Path, labels: Path) -> None:
    mine, other = file_of(tmp_path), file_of(tmp_path / "other", TEXT.replace("pavement", "kerb"))
    options = Options(mapping=tmp_path / "folder.yaml")
    [folder] = prepare("folder", labels, tmp_path / "shards", str(mine), options)
    index = DomainIndex.open(folder)
    assert index.counts.sum(0).tolist()[:2] == [0, 96], "lorry is class 1"
    check_classes(index, class_set(str(mine)))
    assert os.path.basename(mine) == os.path.basename(other)
    with pytest.raises(DataError, match=r"prepare it with --classes mine\.yaml"):
        check_classes(index, class_set(str(other)))
    with pytest.raises(DataError, match="is there already"):
        prepare("folder", labels, tmp_path / "shards", str(other), options)
    with pytest.raises(DataError, match="indexing does not make"):
        index_folder(folder, str(other))
    prepare("folder", labels, tmp_path / "shards", str(mine), options)  # the same again


def test_parts_of_cityscapes_are_those_of_synthia() -> None:
    sixteen, thirteen = class_set("cityscapes16").classes, class_set("cityscapes13").classes
    assert set(class_set("cityscapes19").classes) - set(sixteen) == {"terrain", "truck", "train"}
    assert " ".join(thirteen) == (
        "road sidewalk building traffic light traffic sign vegetation sky "
        "person rider car bus motorcycle bicycle"
    )
