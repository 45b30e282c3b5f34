"""What stands in for a bad sample: the same for any ranks, workers and resumes; and nothing else is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ppar_dist.data.loader import train_loader
from ppar_dist.data.order import Order
from ppar_dist.data.reading import ATTEMPTS, eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.data.sources import open_sources, training_shares
from tests.unit.street_shards import (
    LENIENT,
    SIZES,
    all_bad,
    config,
    drain,
    flat,
    overwrite,
    write_domains,
)

BAD = 2  # the sample that is spoiled


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_domains(tmp_path)


def spoil_some(root: Path) -> None:
    """Five bad samples of 31, two of them side by side in their shard."""
    day, rain = (DomainIndex.open(root / name) for name in SIZES)
    for sample in (4, 5, 11):
        overwrite(day, sample, "image", b"spoiled")
    for sample in (0, 7):
        overwrite(rain, sample, "label", b"spoiled")


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


@pytest.mark.local_data("the node holds what it has read: what changes then is not met")
def test_a_replaced_picture_is_augmented_as_its_position_says(root: Path) -> None:
    cfg = config(root, LENIENT)
    whole = flat(drain(cfg))
    spoil_some(root)
    spoiled = flat(drain(cfg))
    changed = {position for position in whole if whole[position] != spoiled[position]}
    assert changed == {
        p for p, (*_, key) in whole.items() if key in ("day_4", "day_5", "day_11", "rain_0", "rain_7")
    }


@pytest.mark.process
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


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_a_position_gives_up_after_sixteen_bad_samples(root: Path, workers: int) -> None:
    for sample in range(SIZES["rain"]):
        overwrite(DomainIndex.open(root / "rain"), sample, "image", b"spoiled")
    cfg = config(root, LENIENT | {"sources": ["rain"], "workers": workers})
    with pytest.raises(
        SampleError, match=r"domain rain: all 16 samples tried for position 0 .*16 checksum"
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
    with pytest.raises(SampleError, match="sample day_4: the image is not what was indexed"):
        list(eval_samples(day, 3, 7, size=18))
    skipped: list[tuple[int, str]] = []
    samples = eval_samples(day, 3, 7, 18, skipped=lambda n, error: skipped.append((n, error.reason)))
    assert [each.sample for each in samples] == [3, 6]
    assert skipped == [(4, "checksum"), (5, "checksum")]


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


@pytest.mark.local_data("the kernel counts the driver of object storage too")
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
