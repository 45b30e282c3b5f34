"""Sample keys from file names: readable, never merged, the same for stock readers of a shard."""

from __future__ import annotations

import os
import re
import tarfile
import unicodedata
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from ppar_dist.data.prepare import SOURCES, folder
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.writer import safe_key, write_domain
from ppar_dist.errors import UserError
from tests.unit.data.prepare.test_prepare import real_data
from tests.unit.street_shards import scene

PLAIN = {  # native name: key, as it is
    "0001TP_006690": "0001TP_006690",
    "a-b_C9": "a-b_C9",
    "街道": "街道",
    "caf\u00e9": "caf\u00e9",
    "улица_12": "улица_12",
    "रास्ता": "रास्ता",  # vowel signs and the virama are marks, no letters
    "ถนนใหญ่": "ถนนใหญ่",
    "שדרות": "שדרות",
    "شارع": "شارع",
    "٣٤": "٣٤",
}
HASHED = {  # native name: what the key begins with
    "cafe\u0301": "caf\u00e9",
    "街道 1": "街道_1",
    "街道.1": "街道_1",
    "🚗": "_",
    "🚙": "_",
    "👩‍👧": "___",
    "❤\ufe0f": "__",
    "\u212a": "K",  # the Kelvin sign is a K to Unicode
    "شارع\u200f": "شارع_",
    "caf\udce9": "caf_",  # a name of bytes that are not UTF-8
}


@pytest.mark.parametrize("name", PLAIN)
def test_letters_of_any_script_stay(name: str) -> None:
    assert safe_key(name) == PLAIN[name]


@pytest.mark.parametrize("name", HASHED)
def test_what_is_lost_leaves_a_hash(name: str) -> None:
    assert re.fullmatch(re.escape(HASHED[name]) + "_[0-9a-f]{10}", safe_key(name))


def test_the_hash_is_the_same_everywhere() -> None:
    assert safe_key("🚗") == "__3a3fbeedf9"


def test_names_that_look_alike_have_different_keys() -> None:
    names = [*PLAIN, *HASHED, "街道_1", "街道-1", "街道　1", "x" * 2000, "x" * 2001, "路" * 400, "路" * 401]
    assert len({safe_key(name) for name in names}) == len(names)


@given(st.text(st.characters(max_codepoint=127), max_size=300))
def test_keys_of_ascii_names_are_as_they_always_were(name: str) -> None:
    assert safe_key(name) == (re.sub(r"[^A-Za-z0-9_-]", "_", name) or "_")


@given(st.text(st.characters(), max_size=600))
def test_a_key_is_valid_whatever_the_name(name: str) -> None:
    key = safe_key(name)
    assert safe_key(key) == key
    assert 1 <= len(key.encode("utf-8")) <= 1024
    assert not set(key) & set("./\\ \0\n")
    assert key == unicodedata.normalize("NFC", key)


def written(folder_: Path, names: list[str]) -> Path:
    image, label = scene(0)
    write_domain(folder_, "roads6", [(safe_key(name), image, label, {"file": name}) for name in names])
    return folder_


def test_stock_readers_see_the_keys(tmp_path: Path) -> None:
    names = [*PLAIN, *HASHED, "街" * 80, "x" * 1024, "路" * 500]
    domain = written(tmp_path / "d", names)
    keys = [safe_key(name) for name in names]
    index = DomainIndex.open(domain)
    assert [index.key(i) for i in range(len(index))] == keys
    shard = domain / "shard-000000.tar"
    read = [sample["__key__"] for sample in webdataset.WebDataset(str(shard), shardshuffle=False)]
    assert read == keys
    with tarfile.open(shard) as tar:
        assert list(dict.fromkeys(name.partition(".")[0] for name in tar.getnames())) == keys


def test_a_shard_of_any_script_can_be_unpacked(tmp_path: Path) -> None:
    names = [*PLAIN, *HASHED]
    domain = written(tmp_path / "d", names)
    with tarfile.open(domain / "shard-000000.tar") as tar:
        tar.extractall(tmp_path / "out")
    unpacked = {path.stem for path in (tmp_path / "out").glob("*.jpg")}
    assert unpacked == {safe_key(name) for name in names}


@pytest.mark.parametrize("key", ["cafe\u0301", "街 道", "a.b", "x" * 1025, "🚗"])
def test_keys_that_the_writer_refuses(tmp_path: Path, key: str) -> None:
    image, label = scene(0)
    with pytest.raises(UserError, match=r"may hold letters, digits, _ and - only, and 1024 bytes at most"):
        write_domain(tmp_path / "d", "roads6", [(key, image, label, {})])


def test_the_writer_names_both_files_of_a_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'a_b' occurs twice \(a b and a.b\)"):
        written(tmp_path / "d", ["a b", "a.b"])


def as_before(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name) or "_"


@pytest.mark.parametrize("dataset", ["camvid", "labelmefacade"])
def test_keys_of_real_data_sets_are_as_they_were(dataset: str) -> None:
    root = real_data() / dataset
    for pairs in SOURCES[dataset].domains(root).values():
        assert [safe_key(pair.key) for pair in pairs] == [as_before(pair.image.stem) for pair in pairs]
        assert all(pair.label.is_file() for pair in pairs)


def test_keys_of_real_idd_lite_are_as_they_were(tmp_path: Path) -> None:
    root = real_data() / "idd_lite"
    mapping = tmp_path / "map.yaml"
    mapping.write_text("name: idd\nimages: images/val\nlabels: labels/val\nvalues: {0: road}\n")
    ((_, pairs),) = folder.source(mapping).domains(root).items()
    images = sorted(path for path in (root / "images/val").rglob("*") if path.suffix == ".jpg")
    assert [pair.key for pair in pairs] == [as_before(path.stem) for path in images]
    assert [pair.image for pair in pairs] == images
    assert {os.path.dirname(pair.label) for pair in pairs} == {str(root / "labels/val")}
