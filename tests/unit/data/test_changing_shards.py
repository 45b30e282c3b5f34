"""Shards that change or go while the loader runs, or were deleted before it starts."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from ppar_dist.data.loader import Batch, train_loader
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.data.shards.writer import write_domain
from ppar_dist.data.sources import open_sources
from ppar_dist.errors import UserError
from tests.bucket import follow
from tests.unit.street_shards import (
    LENIENT,
    all_bad,
    config,
    flat,
    overwrite,
    scenes,
    shard_of,
    write_domains,
)

BAD = 2  # the sample that is spoiled


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_domains(tmp_path)


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


@pytest.mark.local_data("what was read ahead stays good on the node")
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


@pytest.mark.local_data("what was read ahead stays good on the node")
@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_rewritten_while_in_use(tmp_path: Path, workers: int) -> None:
    index, loader = single(tmp_path, per_shard=48, workers=workers)
    next(loader)
    for sample in range(10, 14):
        overwrite(index, sample, "image", b"\xff\xd8 something else")
    bad = {(each.sample, each.reason) for batch in rest(loader) for each in batch.bad}
    assert bad == {(sample, "shard_changed") for sample in range(10, 14)}


@pytest.mark.local_data("what was read ahead stays good on the node")
@pytest.mark.process
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


@pytest.mark.local_data("about a folder's shards")
def test_a_shard_that_comes_back_is_used_again(root: Path) -> None:
    rain = DomainIndex.open(root / "rain")
    shard = shard_of(rain, 2)
    content = shard.read_bytes()
    os.truncate(shard, 700)
    with pytest.raises(SampleError, match=r"ends .* bytes early"):
        rain.read(2)
    shard.unlink()
    with pytest.raises(SampleError, match="No such file"):
        rain.read(2)
    shard.write_bytes(content)
    assert rain.read(2).key == "rain_2"


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
        UserError, match=r"rain: shard-000000\.tar is missing.*: 3 of 11 samples lost, more th"
    ):
        open_sources(config(root, {"max_bad_ratio": 0.2}))
    with pytest.raises(UserError, match=r"shard .*shard-000000\.tar is missing"):
        DomainIndex.open(root / "rain")


def test_a_shard_that_went_before_a_resume_gives_the_same_as_one_that_went_just_now(root: Path) -> None:
    cfg = config(root, LENIENT)
    opened = open_sources(cfg)
    cut, gone = shard_of(opened[0], 0), shard_of(opened[1], 4)
    os.truncate(cut, int(opened[0].records[1]["image_offset"]))
    gone.unlink()
    follow(cut)
    follow(gone)
    one, other = (list(train_loader(cfg, each, 0, 1, 12, 60)) for each in (opened, open_sources(cfg)))
    assert flat(one) == flat(other)
    assert [bad[:5] for bad in all_bad(one)] == [bad[:5] for bad in all_bad(other)] != []


def test_spawned_workers_open_an_index_with_missing_shards(root: Path) -> None:
    import pickle

    shard_of(DomainIndex.open(root / "rain"), 0).unlink()
    index = open_sources(config(root, LENIENT))[1]
    copy = pickle.loads(pickle.dumps(index))
    assert copy.read(5) == index.read(5)
    with pytest.raises(SampleError, match=r"No such file|no such object"):
        copy.read(0)
