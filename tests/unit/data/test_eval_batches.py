"""Batches of whole images: the same whatever the number of ranks and workers, and what is read one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ppar_dist.data.eval_batches import EvalBatch, EvalLoading
from ppar_dist.data.reading import eval_samples
from ppar_dist.data.shards.index import DomainIndex
from tests.unit.street_shards import overwrite
from tests.unit.tiny_run import make_domain


def sizes(height: int, width: int) -> tuple[tuple[tuple[int, int], ...], tuple[int, int]]:
    """A shorter side of 16 pixels, and twice that."""
    return ((16, int(16 * width / height)), (32, int(32 * width / height))), (height, width)


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> DomainIndex:
    """Images of three sizes in turn; samples 4 and 9 are spoiled."""
    index = make_domain(tmp_path_factory.mktemp("shards") / "night", 23, seed=2)
    for sample in (4, 9):
        overwrite(index, sample, "image", b"spoiled")
    return index


def read(index: DomainIndex, samples: range, **loading: int) -> tuple[list[EvalBatch], list[int]]:
    blocks = list(EvalLoading(sizes, **loading).blocks(index, samples))
    bad = [number for block in blocks for number, error in block.bad if error.reason == "checksum"]
    return [batch for block in blocks for batch in block.batches], bad


def test_images_and_labels_are_those_read_one_by_one(domain: DomainIndex) -> None:
    expected = {sample.sample: sample for sample in eval_samples(domain, 2, 20, 16, skipped=lambda *_: None)}
    batches, bad = read(domain, range(2, 20), batch=7)
    assert bad == [4, 9]
    seen = [sample for batch in batches for sample in batch.samples]
    assert sorted(seen) == sorted(expected)
    assert max(len(batch.keys) for batch in batches) > 1
    for batch in batches:
        for at, sample in enumerate(batch.samples):
            assert torch.equal(batch.images[0][at], expected[sample].image)
            assert batch.images[1].shape[2] == 32
            assert torch.equal(batch.labels[at], expected[sample].label)
            assert batch.keys[at] == expected[sample].key


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_what_is_seen_together_does_not_depend_on_the_ranks(domain: DomainIndex, batch: int) -> None:
    whole, _ = read(domain, range(23), batch=batch)
    for ranks in (2, 3, 5):
        parts = [read(domain, range(23), batch=batch, rank=rank, ranks=ranks) for rank in range(ranks)]
        shared = [each.samples for batches, _ in parts for each in batches]
        assert shared == [each.samples for each in whole]


@pytest.mark.process
def test_workers_make_the_same_in_the_same_order(domain: DomainIndex) -> None:
    alone, bad = read(domain, range(23), batch=1)
    together, too = read(domain, range(23), batch=1, workers=2)
    assert bad == too == [4, 9]
    assert [each.samples for each in together] == [each.samples for each in alone]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.images[0], other.images[0])
        assert torch.equal(one.labels, other.labels)


def test_labels_shrink_by_the_nearest_pixel(tmp_path: Path) -> None:
    index = make_domain(tmp_path / "d", 1)
    halves = EvalLoading(lambda height, width: (((16, 24),), (height // 2, width // 2)))
    (block,) = halves.blocks(index, range(1))
    (whole,) = eval_samples(index, 0, 1, 16)
    label = block.batches[0].labels[0]
    assert label.shape == (12, 18)
    assert torch.equal(label, whole.label[1::2, 1::2])
