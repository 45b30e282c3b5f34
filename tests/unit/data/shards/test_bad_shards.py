"""Shards as strangers make them: what is bad is listed by reason, and left out where that is allowed."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppar_dist import exit_codes
from ppar_dist.cli.parser import main
from ppar_dist.data.shards.build_index import index_folder
from ppar_dist.data.shards.findings import BadSamples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.writer import write_domain
from ppar_dist.errors import UserError
from tests.ranks import encode
from tests.unit.street_shards import scene, write_tar

IMAGE, LABEL = scene(0)
GOOD = [(f"g{n}.{kind}", content) for n in range(4) for kind, content in (("jpg", IMAGE), ("png", LABEL))]
Members = list[tuple[str, bytes]]


def pair(stem: str, image: bytes = IMAGE, label: bytes = LABEL) -> Members:
    return [(f"{stem}.jpg", image), (f"{stem}.png", label)]


class Odd(bytes):
    """Content of a member that is not a regular file: its type."""


GIANT, JUNK = Odd(b"giant"), Odd(b"junk")  # a hole; what is not a header


def bomb(side: int = 20_000) -> bytes:
    import struct
    import zlib

    ihdr = LABEL[12:16] + struct.pack(">II", side, side) + LABEL[24:29]
    return LABEL[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + LABEL[33:]


# reason, bad members, bad samples they make, what the message says
BROKEN: dict[str, tuple[str, Members, int, str]] = {
    "cut jpeg": ("image_unreadable", pair("k", image=IMAGE[:-60]), 1, "a.tar sample k: the image is cut off"),
    "no jpeg": ("image_unreadable", pair("k", image=b"GIF89a"), 1, "not a readable JPEG, PNG"),
    "cut png": ("label_unreadable", pair("k", label=LABEL[:-60]), 1, "not a readable PNG"),
    "pickle as label": ("label_unreadable", pair("k", label=pickle.dumps(1)), 1, "not a readable PNG"),
    "id": (
        "label_id",
        pair("k", label=encode(np.full((36, 48), 9, np.uint8), "PNG")),
        1,
        "label id 9 is out",
    ),
    "mode": (
        "label_mode",
        pair("k", label=encode(np.zeros((36, 48, 3), np.uint8), "PNG")),
        1,
        "of mode RGB",
    ),
    "sizes": ("size_mismatch", pair("k", label=scene(0, 24, 24)[1]), 1, "image is 48x36 but label is 24x24"),
    "bomb": ("too_large", pair("k", label=bomb()), 1, "the label is too large"),
    "zero bytes": ("empty", pair("k", image=b""), 1, "the image member has no bytes"),
    "both empty": ("empty", pair("k", b"", b""), 1, "has no bytes"),
    "no image": ("incomplete", pair("k")[1:], 1, "sample k: no image member"),
    "no label": ("incomplete", pair("k")[:1], 1, "sample k: no label member"),
    "scattered": (
        "not_adjacent",
        [*pair("k")[:1], *pair("l")[:1], *pair("k")[1:], *pair("l")[1:]],
        2,
        "sample k: members of other samples are between its own",
    ),
    "late json": ("not_adjacent", [*pair("k"), *pair("good2"), ("k.json", b"{}")], 1, "sample k: members of"),
    "two images": ("repeated", [*pair("k"), ("k.jpeg", IMAGE)], 1, "sample k: two image members"),
    "twice": ("duplicate_key", [*pair("k"), *pair("l"), *pair("k")], 1, "key 'k' occurs twice"),
    "as elsewhere": ("duplicate_key", pair("first"), 1, "a.tar sample first: key 'first' occurs twice"),
    "traversal": ("name", pair("../../etc/k"), 1, "name '../../etc/k.jpg' leads out of its folder"),
    "hidden traversal": ("name", pair("a/../k"), 1, "leads out of its folder"),
    "absolute": ("name", pair("/etc/k"), 1, "name '/etc/k.jpg' leads out of its folder"),
    "control": ("name", pair("k\nx"), 1, r"name 'k\\nx.jpg' has control characters"),
    "latin-1": ("name", pair("k\udce4"), 1, "is not UTF-8"),
    "endless": ("name", pair("k" * 1100), 1, "is longer than 1024 bytes"),
    "symlink": (
        "member",
        [("k.jpg", Odd(tarfile.SYMTYPE)), pair("k")[1]],
        1,
        "'k.jpg' is not a regular file",
    ),
    "hard link": (
        "member",
        [pair("k")[0], ("k.png", Odd(tarfile.LNKTYPE))],
        1,
        "'k.png' is not a regular file",
    ),
    "device": ("member", [("k.jpg", Odd(tarfile.CHRTYPE)), pair("k")[1]], 1, "not a regular file"),
    "pipe": ("member", [("k.jpg", Odd(tarfile.FIFOTYPE)), pair("k")[1]], 1, "not a regular file"),
    "old sparse": ("member", [("k.jpg", Odd(tarfile.GNUTYPE_SPARSE)), pair("k")[1]], 1, "not a regular file"),
    "giant": (
        "too_large",
        [("k.jpg", GIANT), pair("k")[1]],
        1,
        "the image member has 269484032 bytes",
    ),
    "damaged": ("damaged", [("k", JUNK)], 1, r"a\.tar: unreadable data after byte"),
}


def write_odd_tar(path: Path, members: Members) -> None:
    """Like ``write_tar``, and members that ``tarfile`` would not write by itself."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", errors="surrogateescape", format=tarfile.GNU_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = (257 << 20) if content == GIANT else len(content)
            if content == JUNK:
                archive.fileobj.write(b"\x07" * 512)
            elif content == GIANT:
                archive.addfile(info, None)
                archive.fileobj.seek(info.size, os.SEEK_CUR)
            elif isinstance(content, Odd):
                info.type, info.linkname, info.size = bytes(content), "/etc/passwd", 0
                archive.addfile(info)
            else:
                archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A shard before the bad one and one after it, four and one good samples."""
    write_tar(tmp_path / "d" / "0.tar", [*GOOD, *pair("first")])
    write_tar(tmp_path / "d" / "z.tar", pair("last"))
    return tmp_path / "d"


def quarantined(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", BROKEN)
def test_each_fault_is_refused_by_name_or_left_out(folder: Path, case: str) -> None:
    reason, members, number, message = BROKEN[case]
    write_odd_tar(folder / "a.tar", [*pair("good"), *members])
    with pytest.raises(BadSamples, match=message) as error:
        index_folder(folder, "roads6")
    assert f"d are bad: {number} {reason} (" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "domain.json").exists()
    assert not (folder / "quarantine.jsonl").exists()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    index, findings = index_folder(folder, "roads6", max_bad_ratio=0.3)
    assert findings.bad == {reason: number}
    keys = [index.key(sample) for sample in range(len(index))]
    assert [key for key in keys if key not in ("k", "l", "good2")] == [
        "g0",
        "g1",
        "g2",
        "g3",
        "first",
        "good",
        "last",
    ]
    assert {index.read(sample).image for sample in range(len(index))} == {IMAGE}
    lines = quarantined(folder)
    assert [(line["domain"], line["shard"], line["reason"]) for line in lines] == [
        ("d", "a.tar", reason)
    ] * number
    assert DomainIndex.open(folder).fingerprint == index.fingerprint


def cut(at: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[:at])


@pytest.mark.parametrize(
    ("damage", "reason", "kept"),
    [
        (cut(512 * 9 + 100), "truncated", 1),
        (cut(512 * 8), "truncated", 1),
        (cut(0), "truncated", 0),
        (lambda path: path.write_bytes(b"\x1f\x8b" + path.read_bytes()), "damaged", 0),
        (lambda path: path.write_bytes(path.read_bytes() * 2), "damaged", 3),
    ],
    ids=["in a header", "between members", "all", "packed", "doubled"],
)
def test_a_broken_shard_keeps_what_comes_before(
    folder: Path, damage: Callable[[Path], Any], reason: str, kept: int
) -> None:
    write_tar(folder / "a.tar", [*pair("a0"), *pair("a1"), *pair("a2")])
    sizes = [-(-len(content) // 512) + 1 for _, content in pair("a0")]
    assert sum(sizes) <= 8 < sum(sizes) + sizes[0] + sizes[1], "the cuts below are meant for these sizes"
    damage(folder / "a.tar")
    with pytest.raises(BadSamples, match=rf"1 {reason} \(d/a\.tar: "):
        index_folder(folder, "roads6")
    index, findings = index_folder(folder, "roads6", max_bad_ratio=0.3)
    assert (len(index), findings.bad) == (6 + kept, {reason: 1})
    assert ("a.tar" in index.shards) == bool(kept)
    assert findings.lines()[0].startswith("broken shard a.tar: ")
    assert findings.lines()[0].endswith("whatever came after that is lost")
    assert quarantined(folder)[0]["key"] is None


def test_all_reasons_come_in_one_message_with_the_remedy(folder: Path) -> None:
    bad = [*pair("k", image=b""), *pair("l", image=b""), *pair("m", label=IMAGE), *pair("n")[:1]]
    write_tar(folder / "a.tar", bad)
    with pytest.raises(BadSamples) as error:
        index_folder(folder, "roads6")
    text = str(error.value)
    assert text.startswith("4 of 10 samples of domain d are bad: 2 empty (d/a.tar sample k: ")
    assert "; 1 label_unreadable (d/a.tar sample m: " in text
    assert "; 1 incomplete (d/a.tar sample n: " in text
    assert "`ppar-dist index --max-bad-ratio 0.4` keeps the other 6" in text
    assert len(index_folder(folder, "roads6", max_bad_ratio=0.4)[0]) == 6
    with pytest.raises(BadSamples, match="4 of 10 samples"):
        index_folder(folder, "roads6", max_bad_ratio=0.39)
    assert len(DomainIndex.open(folder)) == 6  # what was there before a refusal stays


def test_indexing_again_forgets_what_has_been_repaired(folder: Path) -> None:
    write_tar(folder / "a.tar", pair("k", image=b""))
    index_folder(folder, "roads6", max_bad_ratio=1)
    assert len(quarantined(folder)) == 1
    write_tar(folder / "a.tar", pair("k"))
    assert len(index_folder(folder, "roads6")[0]) == 7
    assert not (folder / "quarantine.jsonl").exists()


def test_nothing_good_is_never_an_index(tmp_path: Path) -> None:
    write_tar(tmp_path / "d" / "a.tar", pair("k", image=b""))
    with pytest.raises(
        UserError, match=r"1 of 1 samples of domain d are bad: .*Repair them: there are no others"
    ):
        index_folder(tmp_path / "d", "roads6")
    with pytest.raises(UserError, match="holds no samples"):
        index_folder(tmp_path / "d", "roads6", max_bad_ratio=1)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_odd_but_honest_names_work(tmp_path: Path, form: int) -> None:
    stems = ["./x", "ü/straße", "日本　語", "a b", "p" * 90, "d" * 90 + "/" + "f" * 40]
    if form != tarfile.USTAR_FORMAT:
        stems += ["é" * 200, "q" * 1024]
    write_tar(tmp_path / "d" / "a.tar", [each for stem in stems for each in pair(stem)], form)
    index = index_folder(tmp_path / "d", "roads6")[0]
    assert [index.key(sample) for sample in range(len(index))] == stems
    assert {index.read(sample).label for sample in range(len(index))} == {LABEL}


def test_other_members_are_counted_and_never_read(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (folder / "sprung",)

    members = [
        ("k.pkl", pickle.dumps(Trap())),
        ("k.pyd", b""),
        *pair("k"),
        ("k.depth.png", b"?"),
        ("README", b""),
    ]
    write_tar(folder / "a.tar", members)
    index, findings = index_folder(folder, "roads6")
    assert len(index) == 7
    assert findings.ignored == {"pkl": 1, "pyd": 1, "depth.png": 1, "none": 1}
    assert "ignored members of other kinds: .pkl 1" in findings.lines()[-1]
    assert findings.lines()[-1].endswith("pickles are never read")
    assert not (folder / "sprung").exists()


def test_kinds_of_ignored_members_are_bounded(folder: Path) -> None:
    write_tar(folder / "a.tar", [(f"k.{n}" + "x" * 90, b"") for n in range(500)])
    findings = index_folder(folder, "roads6")[1]
    assert len(findings.ignored) <= 21
    assert findings.ignored.total() == 500
    assert max(map(len, findings.ignored)) <= 16


def test_an_empty_shard_is_mentioned_and_left_out(folder: Path) -> None:
    write_tar(folder / "a.tar", [])
    index, findings = index_folder(folder, "roads6")
    assert index.shards == ("0.tar", "z.tar")
    assert findings.lines() == ["no good sample in a.tar"]


def test_writers_stay_strict_and_name_their_own_remedy(tmp_path: Path) -> None:
    rows = [("a", IMAGE, LABEL, {}), ("b", b"", LABEL, {})]
    with pytest.raises(BadSamples, match=r"1 of 2 samples of domain d .*sample b: .*--exclude KEY") as error:
        write_domain(tmp_path / "d", "roads6", rows)
    assert "max-bad-ratio" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_command_leaves_bad_samples_out_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(folder / "a.tar", [*pair("k", image=b""), ("k.pkl", b"")])
    (folder / "b.tar").write_bytes((folder / "0.tar").read_bytes()[:700])
    command = ["index", str(folder), "--classes", "roads6"]
    assert main(command) == exit_codes.CONFIG
    refusal = capsys.readouterr().err
    assert "1 empty (d/a.tar sample k" in refusal
    assert "1 truncated (d/b.tar" in refusal
    assert "--max-bad-ratio 0.25" in refusal
    assert main([*command, "--max-bad-ratio", "0.25"]) == exit_codes.DONE
    out, err = capsys.readouterr()
    assert "6 samples in 2 shards" in out
    assert "broken shard b.tar: it ends inside" in err
    assert "left out 2 bad samples (empty 1, truncated 1), listed in quarantine.jsonl" in err
    assert "pickles are never read" in err
    assert main([*command, "--max-bad-ratio", "1.5"]) == exit_codes.CONFIG
    assert "--max-bad-ratio is a share from 0 to 1, got 1.5" in capsys.readouterr().err
