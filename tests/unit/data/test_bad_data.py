"""Every fault a sample can have when its turn comes: found, named, replaced, and bounded."""

from __future__ import annotations

import multiprocessing
import os
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ppar_dist.data.reading import read_sample
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.data.sources import open_sources
from ppar_dist.pictures import MAX_PIXELS
from tests.bucket import follow
from tests.ranks import encode
from tests.unit.street_shards import (
    LENIENT,
    change_record,
    config,
    drain,
    note_bytes,
    overwrite,
    rewrite_member,
    scene,
    shard_of,
    write_domains,
)

BAD = 2  # the sample that is spoiled

BAD = 2  # the sample that is spoiled


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_domains(tmp_path)


def claim_size(raw: bytes, height: int, width: int) -> bytes:
    """A JPEG or PNG whose header gives another size."""
    if raw.startswith(b"\x89PNG"):
        ihdr = raw[12:16] + struct.pack(">II", width, height) + raw[24:29]
        return raw[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + raw[33:]
    start = raw.index(b"\xff\xc0") + 5
    return raw[:start] + struct.pack(">HH", height, width) + raw[start + 4 :]


def giant(index: DomainIndex) -> None:
    """A record of 300 MiB in a shard that has them, as a hole."""
    path = shard_of(index, BAD)
    os.truncate(path, 400 << 20)
    note_bytes(index, path)
    change_record(index, BAD, image_offset=0, image_size=300 << 20)


def flip_a_bit(index: DomainIndex) -> None:
    raw = index.read(BAD).image
    overwrite(index, BAD, "image", raw[:-20] + bytes([raw[-20] ^ 4]))


def cut_the_shard(index: DomainIndex) -> None:
    record = index.records[BAD]
    os.truncate(shard_of(index, BAD), int(record["label_offset"]) + int(record["label_size"]) - 10)
    follow(shard_of(index, BAD))


def lengthen_and_change(index: DomainIndex) -> None:
    overwrite(index, BAD, "label", b"other bytes")
    with shard_of(index, BAD).open("ab") as shard:
        shard.write(b"\0" * 512)
    follow(shard_of(index, BAD))


def spoil_the_key(index: DomainIndex) -> None:
    keys = np.lib.format.open_memmap(index.path / "keys.npy", mode="r+")
    keys[BAD] = b"\xff\xfe"
    keys.flush()


def no_file(index: DomainIndex) -> None:
    shard_of(index, BAD).unlink()


def a_folder(index: DomainIndex) -> None:
    shard_of(index, BAD).unlink()
    shard_of(index, BAD).mkdir()


def a_pipe(index: DomainIndex) -> None:
    shard_of(index, BAD).unlink()
    os.mkfifo(shard_of(index, BAD))


def member(kind: str, content: bytes) -> Callable[[DomainIndex], None]:
    return lambda index: rewrite_member(index, BAD, kind, content)


def record(**fields: int) -> Callable[[DomainIndex], None]:
    def change(index: DomainIndex) -> None:
        shard = shard_of(index, BAD)
        change_record(index, BAD, **fields)
        note_bytes(index, shard)

    return change


IMAGE, LABEL = scene(BAD)
RGB = encode(np.zeros((36, 48, 3), np.uint8), "PNG")
DEEP = encode(np.full((36, 48), 65535, np.uint16), "PNG")
FAULTS: dict[str, tuple[str, Callable[[DomainIndex], None], str]] = {
    "missing": ("shard_missing", no_file, "cannot read the shard: No such file|no such object"),
    "folder": ("shard_unreadable", a_folder, "not a regular file"),
    "pipe": ("shard_unreadable", a_pipe, "not a regular file"),
    "cut shard": ("truncated", cut_the_shard, "the (shard|object) ends 10 bytes early"),
    "rewritten": ("shard_changed", lengthen_and_change, r"has \d+ bytes, its index says \d+"),
    "bit": ("checksum", flip_a_bit, "the image is not what was indexed"),
    "label bits": ("checksum", lambda i: overwrite(i, BAD, "label", b"\0"), "the label is not what was"),
    "no such shard": ("index", record(shard=99), "points outside its shards"),
    "beyond": ("index", record(image_offset=1 << 40), "points outside its shards"),
    "wrapping": ("index", record(image_offset=2**64 - 1), "points outside its shards"),
    "key": ("index", spoil_the_key, "is not UTF-8"),
    "no image bytes": ("empty", record(image_size=0), "the image member has no bytes"),
    "no label bytes": ("empty", record(label_size=0), "the label member has no bytes"),
    "giant": ("too_large", giant, "the image member has 314572800 bytes, at most"),
    "image bomb": ("too_large", member("image", claim_size(IMAGE, 30_000, 30_000)), "the image is too large"),
    "label bomb": ("too_large", member("label", claim_size(LABEL, 10_000, 10_000)), "the label is too large"),
    "no jpeg": ("image_unreadable", member("image", b"not a jpeg"), "not a readable JPEG"),
    "16 bits": ("image_depth", member("image", DEEP), "an image has 8 bits a channel, got more"),
    "cut jpeg": ("image_unreadable", member("image", IMAGE[:-60]), "cut off or corrupt"),
    "cut png": ("label_unreadable", member("label", LABEL[: len(LABEL) // 2]), "not a readable PNG"),
    "rgb": ("label_mode", member("label", RGB), "a PNG of one channel"),
    "id": ("label_id", member("label", encode(np.full((36, 48), 9, np.uint8), "PNG")), "label id 9 is out"),
    "sizes": ("size_mismatch", member("label", scene(0, 24, 24)[1]), "image is 48x36 but label is 24x24"),
}


LOCAL = {
    "folder": "an object is no folder",
    "pipe": "an object is no pipe",
    "key": "keys that are not those of domain.json are refused when they are fetched",
    "giant": "a hole of a file has no bytes, an object has",
}
CASES = [
    pytest.param(case, marks=pytest.mark.local_data(LOCAL[case])) if case in LOCAL else case
    for case in FAULTS
]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_named_and_its_sample_replaced(root: Path, case: str) -> None:
    reason, spoil, message = FAULTS[case]
    spoil(DomainIndex.open(root / "rain"))
    cfg = config(root, LENIENT)
    rain = open_sources(cfg)[1]
    with pytest.raises(SampleError, match=message) as error:
        read_sample(rain, BAD)
    assert error.value.reason == reason
    assert "\n" not in str(error.value)
    batches = drain(cfg, stop=60)
    assert [batch.positions.tolist() for batch in batches] == [list(range(s, s + 6)) for s in range(0, 60, 6)]
    trained = {(int(d), int(s)) for b in batches for d, s in zip(b.domains, b.samples, strict=True)}
    found = [bad for batch in batches for bad in batch.bad if bad.sample == BAD]
    assert (1, BAD) not in trained
    assert found
    for bad in found:
        assert (bad.domain, bad.reason) == (1, reason)
        assert bad.detail in str(error.value)
        assert bad.position in range(60)
    if reason != "index":
        assert (found[0].shard, found[0].key) == ("shard-000000.tar", "rain_2")


def test_a_json_member_that_is_none(root: Path) -> None:
    for content, message in (
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid"),
        (b"[]", "not an object"),
    ):
        rewrite_member(DomainIndex.open(root / "rain"), BAD, "json", content)
        with pytest.raises(SampleError, match=message) as error:
            DomainIndex.open(root / "rain").metadata(BAD)
        assert error.value.reason == "json"


def test_sizes_are_compared_before_a_label_is_decoded(root: Path) -> None:
    """The label claims 80 megapixels and its pixels are garbage: it is refused for its header alone."""
    label = claim_size(LABEL, 8_000, 10_000)
    assert MAX_PIXELS > 8_000 * 10_000
    rewrite_member(DomainIndex.open(root / "rain"), BAD, "label", label)
    with pytest.raises(SampleError, match="image is 48x36 but label is 10000x8000"):
        read_sample(DomainIndex.open(root / "rain"), BAD)


@pytest.mark.process
def test_a_bomb_is_not_unpacked(root: Path) -> None:
    """A real bomb of 400 megapixels in two megabytes costs no memory."""
    side = 20_000
    head, tail = claim_size(LABEL, side, side)[:33], LABEL[-12:]
    pixels = b"IDAT" + zlib.compress(bytes((side + 1) * side), 1)
    data = struct.pack(">I", len(pixels) - 4) + pixels + struct.pack(">I", zlib.crc32(pixels))
    rewrite_member(DomainIndex.open(root / "rain"), BAD, "label", head + data + tail)
    index = DomainIndex.open(root / "rain")
    code = multiprocessing.get_context("fork").Process(target=_read_in_little_memory, args=(index,))
    code.start()
    code.join(240)
    assert code.exitcode == 0


def _read_in_little_memory(index: DomainIndex) -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (200 << 20), -1))
    with pytest.raises(SampleError) as error:
        read_sample(index, BAD)
    assert error.value.reason == "too_large"
