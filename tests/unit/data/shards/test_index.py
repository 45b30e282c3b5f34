"""Shards and their index: what is written is read back, what others wrote is checked, nothing is trusted."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset

from ppar_dist.data.shards.build_index import index_folder
from ppar_dist.data.shards.findings import BadSamples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.data.shards.writer import safe_key, write_domain
from ppar_dist.errors import UserError
from tests.ranks import encode
from tests.unit.street_shards import write_tar

Sample = tuple[str, bytes, bytes, dict[str, object]]


def label_of(number: int) -> np.ndarray:
    """(12, 16) train ids of roads6, and one row of 255."""
    label = np.random.default_rng(number).integers(0, 6, (12, 16)).astype(np.uint8)
    label[0] = 255
    return label


def samples(count: int) -> Iterator[Sample]:
    for number in range(count):
        image = np.full((12, 16, 3), 20 * number % 256, np.uint8)
        yield f"street_{number}", encode(image, "JPEG"), encode(label_of(number), "PNG"), {"n": number}


@pytest.fixture
def domain(tmp_path: Path) -> DomainIndex:
    return write_domain(tmp_path / "day", "roads6", samples(7), samples_per_shard=3)


def test_what_is_written_is_read_back(domain: DomainIndex) -> None:
    assert (domain.name, domain.class_set, len(domain)) == ("day", "roads6", 7)
    assert domain.shards == ("shard-000000.tar", "shard-000001.tar", "shard-000002.tar")
    assert domain.records["shard"].tolist() == [0, 0, 0, 1, 1, 1, 2]
    for number, (key, image, label, metadata) in enumerate(samples(7)):
        raw = domain.read(number)
        assert (domain.key(number), raw.key, raw.image, raw.label) == (key, key, image, label)
        assert domain.metadata(number) == metadata
        expected = [int((label_of(number) == k).sum()) for k in range(6)]
        assert domain.counts[number].tolist() == expected
        assert (domain.records[number]["height"], domain.records[number]["width"]) == (12, 16)


def test_stock_webdataset_reads_our_shards(domain: DomainIndex) -> None:
    urls = [str(domain.path / shard) for shard in domain.shards]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [f"street_{n}" for n in range(7)]
    assert [sample["png"] for sample in found] == [label for _, _, label, _ in samples(7)]


def test_arrays_are_mapped_not_loaded(domain: DomainIndex) -> None:
    assert all(isinstance(array, np.memmap) for array in (domain.records, domain.counts, domain.keys))


def test_workers_get_a_working_copy(domain: DomainIndex) -> None:
    domain.read(0)
    copy = pickle.loads(pickle.dumps(domain))
    assert copy.read(6) == domain.read(6)
    assert copy.fingerprint == domain.fingerprint


def test_many_shards_need_few_files(tmp_path: Path) -> None:
    index = write_domain(tmp_path / "a", "roads6", samples(40), samples_per_shard=1)
    assert [index.read(n).key for n in (*range(40), 0)] == [f"street_{n % 40}" for n in range(41)]
    assert index.reader.num_open <= 32


def test_the_fingerprint_depends_on_the_content_alone(domain: DomainIndex, tmp_path: Path) -> None:
    same = write_domain(tmp_path / "again", "roads6", samples(7), samples_per_shard=3)
    other = write_domain(tmp_path / "other", "roads6", samples(6), samples_per_shard=3)
    assert same.fingerprint == domain.fingerprint != other.fingerprint


def test_shards_of_others_are_indexed(tmp_path: Path) -> None:
    """.jpeg, members in another order, unknown members, folders in keys, long names, no json."""
    _, image, label, _ = next(samples(1))
    long = "x" * 150
    members = {
        "a/one.png": label,
        "a/one.jpeg": image,
        "a/one.cls": b"7",
        "b/one.jpg": image,
        "b/one.png": label,
        f"{long}.JPG": image,
        f"{long}.PNG": label,
    }
    write_tar(tmp_path / "theirs" / "part.tar", members.items())
    seen: list[tuple[str, int]] = []
    index = index_folder(tmp_path / "theirs", "roads6", progress=lambda *each: seen.append(each))[0]
    assert [index.key(n) for n in range(3)] == ["a/one", "b/one", long]
    assert {index.read(n).image for n in range(3)} == {image}
    assert index.metadata(0) == {}
    assert index.name == "theirs"
    assert seen == [("part.tar", 3)]


def test_links_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as archive:
        info = tarfile.TarInfo("one.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(BadSamples, match=r"1 member \(d/a\.tar: 'one.jpg' is not a regular file"):
        index_folder(folder, "roads6")


def test_writing_is_atomic(tmp_path: Path) -> None:
    def breaks() -> Iterator[Sample]:
        yield from samples(2)
        raise RuntimeError("the disk of the data set went away")

    with pytest.raises(RuntimeError, match=r"went away"):
        write_domain(tmp_path / "day", "roads6", breaks())
    assert list(tmp_path.iterdir()) == []
    before = write_domain(tmp_path / "day", "roads6", samples(3))
    with pytest.raises(RuntimeError, match=r"went away"):
        write_domain(tmp_path / "day", "roads6", breaks())
    assert DomainIndex.open(tmp_path / "day").fingerprint == before.fingerprint
    assert len(write_domain(tmp_path / "day", "roads6", samples(5))) == 5  # replaces a domain
    assert [path.name for path in tmp_path.iterdir()] == ["day"]


def test_other_folders_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"exists and is not a domain folder"):
        write_domain(tmp_path, "roads6", samples(1))
    assert (tmp_path / "thesis.tex").exists()


def test_folder_names_with_percent_signs(tmp_path: Path) -> None:
    assert len(write_domain(tmp_path / "100%d", "roads6", samples(2))) == 2


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "a\u0308", "a b"])
def test_malformed_keys(tmp_path: Path, key: str) -> None:
    _, image, label, _ = next(samples(1))
    with pytest.raises(UserError, match=r"may hold letters, digits"):
        write_domain(tmp_path / "d", "roads6", [(key, image, label, {})])
    assert len(write_domain(tmp_path / "d", "roads6", [(safe_key(key), image, label, {})])) == 1


def test_repeated_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'street_0' occurs twice"):
        write_domain(tmp_path / "d", "roads6", [*samples(2), *samples(1)])
    pairs = list(samples(1)) * 2
    for number, (key, image, label, _) in enumerate(pairs):
        write_tar(tmp_path / "e" / f"{number}.tar", [(f"{key}.jpg", image), (f"{key}.png", label)])
    with pytest.raises(BadSamples, match=r"e/1.tar sample street_0: key 'street_0' occurs twice"):
        index_folder(tmp_path / "e", "roads6")


def one(image: tuple[int, int] = (12, 16), label: np.ndarray | None = None) -> dict[str, bytes]:
    picture = encode(np.zeros((*image, 3), np.uint8), "JPEG")
    return {"k.jpg": picture, "k.png": encode(label_of(0) if label is None else label, "PNG")}


def members_end(raw: bytes) -> int:
    """Where the last member of a tar ends, in whole blocks of 512 bytes."""
    return -(-len(raw.rstrip(b"\0")) // 512) * 512


BAD_SAMPLES = {
    "id": (one(label=np.full((12, 16), 6, np.uint8)), r"d/a\.tar sample k: label id 6 .* 0\.\.5 or 255"),
    "sizes": (one(image=(24, 32)), "sample k: image is 32x24 but label is 16x12"),
    "rgb": (
        one(label=np.zeros((12, 16, 3), np.uint8)),
        "sample k: .* of mode RGB; a label is a PNG of one channel",
    ),
    "16 bit": (
        one(label=np.full((12, 16), 256, np.uint16)),
        "sample k: label id 256 of a 16-bit PNG is above",
    ),
    "no image": ({"k.png": one()["k.png"]}, "sample k: no image member"),
    "no label": ({"k.jpg": one()["k.jpg"], "l.jpg": one()["k.jpg"]}, "sample k: no label member"),
    "no jpeg": ({**one(), "k.jpg": b"GIF89a"}, "sample k: the image is not a readable JPEG"),
    "cut png": ({**one(), "k.png": one()["k.png"][:60]}, "sample k: the label is not a readable PNG"),
    "pickle": ({**one(), "k.png": pickle.dumps(1)}, "sample k: the label is not a readable PNG"),
    "two images": ({**one(), "k.jpeg": one()["k.jpg"]}, "sample k: two image members"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_bad_samples_are_named(tmp_path: Path, case: str) -> None:
    members, message = BAD_SAMPLES[case]
    ordered = dict(sorted(members.items()))
    write_tar(tmp_path / "d" / "a.tar", ordered.items())
    with pytest.raises(BadSamples, match=message) as error:
        index_folder(tmp_path / "d", "roads6")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "d" / "domain.json").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: members_end(raw) - 300], r"a\.tar: .*end.*; copy it again"),
        (lambda raw: raw[: members_end(raw)], r"a\.tar: it ends at byte \d+ without an end mark"),
        (lambda raw: raw[: members_end(raw)] + b"garbage!" * 200, r"a\.tar: unreadable data after byte"),
        (lambda raw: raw + raw, r"a\.tar: unreadable data after byte"),
        (lambda raw: b"", r"a\.tar: not a complete, uncompressed tar"),
        (lambda raw: b"\x1f\x8b" + raw, r"a\.tar: it is compressed and damaged"),
    ],
)
def test_damaged_tars_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "d" / "a.tar"
    write_tar(path, one().items())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadSamples, match=message):
        index_folder(tmp_path / "d", "roads6")


def test_missing_folder_and_index(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no domain folder .*nowhere; run `ppar-dist prepare`.*`ppar-dist index`"
    ):
        DomainIndex.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no domain.json, so it is not indexed; run `ppar-dist prepare`"):
        DomainIndex.open(tmp_path)
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        index_folder(tmp_path / "nowhere", "roads6")
    with pytest.raises(UserError, match=r"holds no samples"):
        index_folder(tmp_path, "roads6")


def test_missing_and_shortened_shards(domain: DomainIndex) -> None:
    shard = domain.path / domain.shards[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"shard-000001\.tar has \d+ bytes, its index says \d+"):
        DomainIndex.open(domain.path)
    shard.unlink()
    with pytest.raises(UserError, match=r"shard .*shard-000001\.tar is missing"):
        DomainIndex.open(domain.path)
    with pytest.raises(SampleError, match=r"day/shard-000001.tar sample street_3: cannot read the shard"):
        domain.read(3)


def test_a_shard_cut_while_in_use(domain: DomainIndex) -> None:
    shard = domain.path / domain.shards[2]
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(SampleError, match=r"sample street_6: the shard ends .* bytes early"):
        domain.read(6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "index version 99, this program reads version 2"),
        ({"num_samples": 8}, "the index does not belong to its domain.json"),
        ({"classes": ["a"]}, "counts.npy is not 7 samples by 1 classes"),
    ],
)
def test_foreign_meta(domain: DomainIndex, change: dict[str, object], message: str) -> None:
    path = domain.path / "domain.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        DomainIndex.open(domain.path)


def test_shard_names_cannot_leave_the_folder(domain: DomainIndex) -> None:
    path = domain.path / "domain.json"
    path.write_text(path.read_text().replace("shard-000000.tar", "../shard.tar"))
    with pytest.raises(UserError, match=r"'../shard.tar' leaves the domain folder"):
        DomainIndex.open(domain.path)


def test_pickled_arrays_are_not_loaded(domain: DomainIndex) -> None:
    np.save(domain.path / "keys.npy", np.array([{"a": 1}] * 7, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"cannot read .*keys\.npy"):
        DomainIndex.open(domain.path)


def test_unlabelled_samples_are_allowed(tmp_path: Path) -> None:
    write_tar(tmp_path / "d" / "a.tar", one(label=np.full((12, 16), 255, np.uint8)).items())
    assert index_folder(tmp_path / "d", "roads6")[0].counts.sum() == 0
