"""The resume benchmark: what its rows say of tiny shards. Its times are not tested."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks.speed import resume
from benchmarks.speed.loader import BATCH
from ppar_dist.data.loader import Batch
from ppar_dist.data.shards.index import DomainIndex
from tests.ranks import write_blocks_domain

FAR = 50 * BATCH


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "street"
    write_blocks_domain(folder, samples=12, seed=3, rare_in=None)
    return folder


@pytest.fixture(scope="module")
def rows(domain: Path) -> list[resume.Row]:
    return resume.compare(domain, (0, BATCH, FAR), rounds=2, patience=1e9)


def reads(rows: list[resume.Row], name: str) -> list[int]:
    return [row.rounds[0].read for row in rows if row.name == name]


def members(index: DomainIndex, batch: Batch) -> int:
    """Bytes of the batch's images and labels."""
    chosen = index.records[batch.samples.numpy()]
    return int(chosen["image_size"].sum() + chosen["label_size"].sum())


def test_every_contestant_stands_at_every_position(rows: list[resume.Row]) -> None:
    found = [(row.position, row.name, len(row.rounds)) for row in rows]
    assert found == [(p, name, 2) for p in (0, BATCH, FAR) for name in resume.CONTESTANTS]
    assert all(row.ratio == 1.0 for row in rows if row.name == "loader")


def test_what_the_loader_reads_does_not_depend_on_the_position(domain: Path, rows: list[resume.Row]) -> None:
    index = DomainIndex.open(domain)
    beside = []
    for row in rows:
        if row.name == "loader":
            batch = row.rounds[0].batch
            assert batch.positions.tolist() == list(range(row.position, row.position + BATCH))
            beside += [each.read - members(index, each.batch) for each in row.rounds]
    assert len(set(beside)) == 1  # index and open files: the same at 0 and far into the run
    assert 0 < beside[0] < 10_000


def test_stock_pipelines_read_all_they_skip(domain: Path, rows: list[resume.Row]) -> None:
    index = DomainIndex.open(domain)
    smallest = min(int(record["image_size"]) for record in index.records)
    for name in ("stock, raw", "stock, decoded"):
        start, _, far = reads(rows, name)
        assert far - start > (FAR - 100 - BATCH) * smallest  # but for what the shuffle buffer held anyway
        images, labels = next(row for row in rows if row.name == name).rounds[0].batch
        assert len(images) == len(labels) == BATCH


def test_a_skip_discards_exactly_its_number() -> None:
    assert list(resume.skip(3)(iter(range(5)))) == [3, 4]


def test_a_contestant_beyond_patience_is_left_out_and_said_so(domain: Path) -> None:
    rows = resume.compare(domain, (0, BATCH), rounds=1, patience=0.0)
    text = resume.table(rows, 0.0)
    assert [len(row.rounds) for row in rows] == [1, 1, 1, 1, 0, 0]
    assert text.count("left out: more than 0 s") == 2
    assert len({line.count("|") for line in text.splitlines()}) == 1


@pytest.mark.parametrize("text", ["-8", "12"])
def test_a_position_is_a_whole_number_of_batches(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="multiple of the batch size 8"):
        resume.whole_batches(text)
