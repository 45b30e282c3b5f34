"""Every fault a shard can have when its turn comes: found, named, replaced by rule, and bounded."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppar_dist.config import ConfigError
from ppar_dist.data.index import DomainIndex
from ppar_dist.data.order import Order
from ppar_dist.data.pipeline import (
    ATTEMPTS,
    Batch,
    eval_samples,
    open_sources,
    read_sample,
    train_loader,
    training_shares,
)
from ppar_dist.data.samples import MAX_PIXELS, DataError
from ppar_dist.data.shards import write_domain
from tests.unit.street_shards import (
    SIZES,
    change_record,
    config,
    drain,
    encode,
    flat,
    note_bytes,
    overwrite,
    rewrite_member,
    scene,
    scenes,
    shard_of,
)

BAD = 2  # the sample that is spoiled
LENIENT = {"holdout": 0, "max_bad_ratio": 1.0}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, count in SIZES.items():
        write_domain(tmp_path / name, "roads6", scenes(name, count), samples_per_shard=3)
    return tmp_path


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


def lengthen_and_change(index: DomainIndex) -> None:
    overwrite(index, BAD, "label", b"other bytes")
    with shard_of(index, BAD).open("ab") as shard:
        shard.write(b"\0" * 512)


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
    return lambda index: change_record(index, BAD, **fields)


IMAGE, LABEL = scene(BAD)
RGB = encode(np.zeros((36, 48, 3), np.uint8), "PNG")
FAULTS: dict[str, tuple[str, Callable[[DomainIndex], None], str]] = {
    "missing": ("shard_missing", no_file, "cannot read the shard: No such file"),
    "folder": ("shard_unreadable", a_folder, "no plain file"),
    "pipe": ("shard_unreadable", a_pipe, "no plain file"),
    "cut shard": ("truncated", cut_the_shard, "the shard ends 10 bytes early"),
    "rewritten": ("shard_changed", lengthen_and_change, r"has \d+ bytes, its index says \d+"),
    "bit": ("checksum", flip_a_bit, "the image is not what was indexed"),
    "label bits": ("checksum", lambda i: overwrite(i, BAD, "label", b"\0"), "the label is not what was"),
    "no such shard": ("index", record(shard=99), "points outside its shards"),
    "beyond": ("index", record(image_offset=1 << 40), "points outside its shards"),
    "wrapping": ("index", record(image_offset=2**64 - 1), "points outside its shards"),
    "key": ("index", spoil_the_key, "is no UTF-8"),
    "no image bytes": ("empty", record(image_size=0), "the image member has no bytes"),
    "no label bytes": ("empty", record(label_size=0), "the label member has no bytes"),
    "giant": ("too_large", giant, "the image member has 314572800 bytes, at most"),
    "image bomb": ("too_large", member("image", claim_size(IMAGE, 30_000, 30_000)), "the image is too large"),
    "label bomb": ("too_large", member("label", claim_size(LABEL, 10_000, 10_000)), "the label is too large"),
    "no jpeg": ("image_unreadable", member("image", b"not a jpeg"), "no readable JPEG"),
    "png for jpeg": ("image_unreadable", member("image", LABEL), "no readable JPEG"),
    "cut jpeg": ("image_unreadable", member("image", IMAGE[:-60]), "cut off or corrupt"),
    "cut png": ("label_unreadable", member("label", LABEL[: len(LABEL) // 2]), "no readable PNG"),
    "rgb": ("label_mode", member("label", RGB), "single-channel PNG, got mode RGB"),
    "id": ("label_id", member("label", encode(np.full((36, 48), 9, np.uint8), "PNG")), "label id 9 is out"),
    "sizes": ("size_mismatch", member("label", scene(0, 24, 24)[1]), "image is 48x36 but label is 24x24"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_is_named_and_its_sample_replaced(root: Path, case: str) -> None:
    reason, spoil, message = FAULTS[case]
    spoil(DomainIndex.open(root / "rain"))
    cfg = config(root, LENIENT)
    rain = open_sources(cfg)[1]
    with pytest.raises(DataError, match=message) as error:
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
    for content, message in ((b"{", "not valid JSON"), (b"[" * 100_000, "not valid"), (b"[]", "no object")):
        rewrite_member(DomainIndex.open(root / "rain"), BAD, "json", content)
        with pytest.raises(DataError, match=message) as error:
            DomainIndex.open(root / "rain").metadata(BAD)
        assert error.value.reason == "json"


def test_sizes_are_compared_before_a_label_is_decoded(root: Path) -> None:
    """The label claims 80 megapixels and its pixels are garbage: it is refused for its header alone."""
    label = claim_size(LABEL, 8_000, 10_000)
    assert MAX_PIXELS > 8_000 * 10_000
    rewrite_member(DomainIndex.open(root / "rain"), BAD, "label", label)
    with pytest.raises(DataError, match="image is 48x36 but label is 10000x8000"):
        read_sample(DomainIndex.open(root / "rain"), BAD)


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
    code.join(60)
    assert code.exitcode == 0


def _read_in_little_memory(index: DomainIndex) -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (200 << 20), -1))
    with pytest.raises(DataError) as error:
        read_sample(index, BAD)
    assert error.value.reason == "too_large"


def spoil_some(root: Path) -> None:
    """Five bad samples of 31, two of them side by side in their shard."""
    day, rain = (DomainIndex.open(root / name) for name in SIZES)
    for sample in (4, 5, 11):
        overwrite(day, sample, "image", b"spoiled")
    for sample in (0, 7):
        overwrite(rain, sample, "label", b"spoiled")


def all_bad(batches: list[Batch]) -> list[Any]:
    return sorted(bad for batch in batches for bad in batch.bad)


def test_the_replacement_is_the_next_good_one_of_the_domain(root: Path) -> None:
    """Against the plain sequence of the domain, written down position by position."""
    spoil_some(root)
    cfg = config(root, LENIENT)
    indexes = open_sources(cfg)
    order = Order(training_shares(cfg, indexes), cfg.seed, cfg.data.block, cfg.data.window)
    plain = [order.locate(position) for position in range(400)]
    spoiled = {(0, 4), (0, 5), (0, 11), (1, 0), (1, 7)}
    met = set()
    for batch in drain(cfg, stop=120):
        for i, position in enumerate(batch.positions.tolist()):
            domain = plain[position].domain
            coming = [place.sample for place in plain[position:] if place.domain == domain]
            good = next(sample for sample in coming if (domain, sample) not in spoiled)
            assert (int(batch.domains[i]), int(batch.samples[i])) == (domain, good)
            assert batch.keys[i] == indexes[domain].key(good)
            met |= {(position, sample) for sample in coming[: coming.index(good)]}
        assert {(bad.position, bad.sample) for bad in batch.bad} == {
            m for m in met if m[0] in batch.positions
        }
    assert len({sample for _, sample in met}) == 5


def test_a_replaced_picture_is_augmented_as_its_position_says(root: Path) -> None:
    cfg = config(root, LENIENT)
    whole = flat(drain(cfg))
    spoil_some(root)
    spoiled = flat(drain(cfg))
    changed = {position for position in whole if whole[position] != spoiled[position]}
    assert changed == {
        p for p, (*_, key) in whole.items() if key in ("day_4", "day_5", "day_11", "rain_0", "rain_7")
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_ranks_and_workers_agree_on_replacements(root: Path, workers: int) -> None:
    spoil_some(root)
    alone = drain(config(root, LENIENT))
    data = LENIENT | {"workers": workers}
    parts = [drain(config(root, data, micro_batch=1), rank, 2) for rank in range(2)]
    assert [len(part) for part in parts] == [30, 30]
    assert {p: s for part in parts for p, s in flat(part).items()} == flat(alone)
    assert all_bad(parts[0] + parts[1]) == all_bad(alone) != []


def test_a_resume_within_bad_samples_changes_nothing(root: Path) -> None:
    spoil_some(root)
    whole = drain(config(root, LENIENT), stop=66)
    parts = drain(config(root, LENIENT), stop=24)
    for rank in range(2):
        parts += drain(config(root, LENIENT, global_batch=14), rank, 2, start=24, stop=66)
    assert flat(parts) == flat(whole)
    assert all_bad(parts) == all_bad(whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_position_gives_up_after_sixteen_bad_samples(root: Path, workers: int) -> None:
    for sample in range(SIZES["rain"]):
        overwrite(DomainIndex.open(root / "rain"), sample, "image", b"spoiled")
    cfg = config(root, LENIENT | {"sources": ["rain"], "workers": workers})
    with pytest.raises(
        DataError, match=r"domain rain: all 16 samples tried for position 0 .*16 checksum"
    ) as e:
        drain(cfg)
    assert (e.value.reason, ATTEMPTS) == ("exhausted", 16)
    assert "\n" not in str(e.value)


def test_batches_keep_their_bad_samples_when_they_move(root: Path) -> None:
    spoil_some(root)
    batch = next(batch for batch in drain(config(root, LENIENT)) if batch.bad)
    assert batch.to("cpu").bad == batch.bad


def test_evaluation_is_strict_unless_told_otherwise(root: Path) -> None:
    spoil_some(root)
    day = DomainIndex.open(root / "day")
    with pytest.raises(DataError, match="sample day_4: the image is not what was indexed"):
        list(eval_samples(day, 3, 7, size=18))
    skipped: list[tuple[int, str]] = []
    samples = eval_samples(day, 3, 7, 18, skipped=lambda n, error: skipped.append((n, error.reason)))
    assert [each.sample for each in samples] == [3, 6]
    assert skipped == [(4, "checksum"), (5, "checksum")]


# Shards that change while the loader runs.


def single(root: Path, per_shard: int, workers: int = 0) -> tuple[DomainIndex, Any]:
    """A domain of 48 samples, and an unstarted loader over two epochs of it."""
    write_domain(root / "snow", "roads6", scenes("snow", 48), samples_per_shard=per_shard)
    cfg = config(root, LENIENT | {"sources": ["snow"], "workers": workers})
    index = open_sources(cfg)[0]
    return index, train_loader(cfg, [index], 0, 1, 0, 96)


def rest(loader: Any) -> list[Batch]:
    """What is left, after a look that every batch is full."""
    batches = list(loader)
    assert {len(batch) for batch in batches} == {6}
    return batches


def test_a_shard_that_vanishes_while_in_use(tmp_path: Path) -> None:
    """What has not been opened is replaced; an open file goes on giving its bytes."""
    index, loader = single(tmp_path, per_shard=1)
    used = set(next(loader).samples.tolist())
    gone = next(sample for sample in range(48) if sample not in used)
    for sample in (gone, min(used)):
        shard_of(index, sample).unlink()
    batches = rest(loader)
    bad = {(each.sample, each.reason) for batch in batches for each in batch.bad}
    assert (gone, "shard_missing") in bad
    assert bad <= {(gone, "shard_missing"), (min(used), "shard_missing")}  # 32 files are kept open
    assert gone not in {int(s) for batch in batches for s in batch.samples}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_rewritten_while_in_use(tmp_path: Path, workers: int) -> None:
    index, loader = single(tmp_path, per_shard=48, workers=workers)
    next(loader)
    for sample in range(10, 14):
        overwrite(index, sample, "image", b"\xff\xd8 something else")
    bad = {(each.sample, each.reason) for batch in rest(loader) for each in batch.bad}
    assert bad == {(sample, "shard_changed") for sample in range(10, 14)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_cut_while_in_use(tmp_path: Path, workers: int) -> None:
    """Samples before the cut stay in use."""
    index, loader = single(tmp_path, per_shard=48, workers=workers)
    next(loader)
    os.truncate(shard_of(index, 0), int(index.records[46]["label_offset"]))
    batches = rest(loader)
    bad = {(each.sample, each.reason) for batch in batches for each in batch.bad}
    assert bad == {(46, "shard_changed"), (47, "shard_changed")}
    assert {int(s) for batch in batches[7:] for s in batch.samples} == set(range(46))


def test_a_shard_that_comes_back_is_used_again(root: Path) -> None:
    rain = DomainIndex.open(root / "rain")
    shard = shard_of(rain, BAD)
    content = shard.read_bytes()
    os.truncate(shard, 700)
    with pytest.raises(DataError, match=r"ends .* bytes early"):
        rain.read(BAD)
    shard.unlink()
    with pytest.raises(DataError, match="No such file"):
        rain.read(BAD)
    shard.write_bytes(content)
    assert rain.read(BAD).key == "rain_2"


# Shards that are missing from the start.


def test_missing_shards_are_warnings_up_to_the_limit(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = [index.fingerprint for index in open_sources(config(root))]
    shard_of(DomainIndex.open(root / "rain"), 0).unlink()
    day = DomainIndex.open(root / "day")
    with shard_of(day, 0).open("ab") as shard:
        shard.write(b"\0")
    os.truncate(shard_of(day, 18), int(day.records[19]["label_offset"]) + 1)
    with caplog.at_level(logging.WARNING):
        indexes = open_sources(config(root, {"max_bad_ratio": 0.3}))
    assert [index.fingerprint for index in indexes] == before
    texts = [each.getMessage() for each in caplog.records]
    assert any("rain: shard-000000.tar is missing" in t and "3 of 11 samples lost" in t for t in texts)
    assert any("shard-000006.tar has" in t and "1 of 20 samples lost" in t for t in texts)
    with pytest.raises(
        ConfigError, match=r"rain: shard-000000\.tar is missing.*: 3 of 11 samples lost, more th"
    ):
        open_sources(config(root, {"max_bad_ratio": 0.2}))
    with pytest.raises(ConfigError, match=r"shard .*shard-000000\.tar is missing"):
        DomainIndex.open(root / "rain")


def test_a_shard_that_went_before_a_resume_gives_the_same_as_one_that_went_just_now(root: Path) -> None:
    cfg = config(root, LENIENT)
    opened = open_sources(cfg)
    os.truncate(shard_of(opened[0], 0), int(opened[0].records[1]["image_offset"]))
    shard_of(opened[1], 4).unlink()
    one, other = (list(train_loader(cfg, each, 0, 1, 12, 60)) for each in (opened, open_sources(cfg)))
    assert flat(one) == flat(other)
    assert [bad[:5] for bad in all_bad(one)] == [bad[:5] for bad in all_bad(other)] != []


def test_spawned_workers_open_an_index_with_missing_shards(root: Path) -> None:
    import pickle

    shard_of(DomainIndex.open(root / "rain"), 0).unlink()
    index = open_sources(config(root, LENIENT))[1]
    copy = pickle.loads(pickle.dumps(index))
    assert copy.read(5) == index.read(5)
    with pytest.raises(DataError, match="No such file"):
        copy.read(0)


# Starting anywhere.


@pytest.mark.parametrize("start", [0, 6, 600, 6 * 10**9])
def test_nothing_before_the_start_is_read(root: Path, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(root, LENIENT)
    indexes = open_sources(cfg)
    order = Order(training_shares(cfg, indexes), cfg.seed, cfg.data.block, cfg.data.window)
    reads: list[tuple[str, int]] = []
    read = DomainIndex.read

    def spy(index: DomainIndex, sample: int) -> Any:
        reads.append((index.name, sample))
        return read(index, sample)

    monkeypatch.setattr(DomainIndex, "read", spy)
    next(train_loader(cfg, indexes, 0, 1, start, start + 6 * 1000))
    places = [order.locate(position) for position in range(start, start + 6)]
    assert Counter(reads) == Counter((indexes[p.domain].name, p.sample) for p in places)


def test_bytes_read_do_not_depend_on_the_start(root: Path) -> None:
    """By the kernel's count of what this process has read."""
    cfg = config(root, LENIENT)
    indexes = open_sources(cfg)

    def bytes_read(start: int) -> int:
        before = _rchar()
        next(train_loader(cfg, indexes, 0, 1, start, start + 6 * 1000))
        return _rchar() - before

    bytes_read(0)
    assert max(bytes_read(start) for start in (0, 6 * 10**6)) < 100_000


def _rchar() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])
