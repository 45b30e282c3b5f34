"""Spoils labels as it happens in life: a legend mapped in haste, two classes exchanged, labels out of place.

Each makes a new domain of an existing one; images are copied byte for byte. Beside the shards are

    truth.npz      key → PNG of the true label, as bytes: which pixels are spoiled follows from it
    spoiled.json   keys with at least one spoiled pixel; written last, so that a folder which has it is whole
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harmful.spoil import encode, samples_of, write_spoiled
from benchmarks.streets import prepare_mapped
from ppar_dist.class_sets import IGNORE_INDEX
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import decode_label
from ppar_dist.data.shards.writer import ShardSample

TRUTH = "truth.npz"
Label = npt.NDArray[np.uint8]


def true_labels(folder: Path) -> dict[str, bytes]:
    """Key → PNG of the true label of a spoiled domain; `decode_label` makes (H, W) class ids of it."""
    with np.load(folder / TRUTH, allow_pickle=False) as found:
        return {key: found[key].tobytes() for key in found.files}


def spoiled_pixels(label: Label, truth: Label) -> npt.NDArray[np.bool_]:
    """Pixels (H, W) that are trained on under a class that is not the true one, or where none is known."""
    wrong: npt.NDArray[np.bool_] = (label != truth) & (label != IGNORE_INDEX)
    return wrong


def exchange_classes(index: DomainIndex, folder: Path, one: str, other: str) -> DomainIndex:
    """Write the domain with two classes exchanged wherever they occur."""
    table = np.arange(256, dtype=np.uint8)
    pair = [index.classes.index(one), index.classes.index(other)]
    table[pair] = table[pair[::-1]]
    return _relabel(index, folder, lambda label: table[label], {"exchanged": [one, other]})


def shift_labels(index: DomainIndex, folder: Path, pixels: int, size: int) -> DomainIndex:
    """Write the domain with its labels shifted to the right against the images.

    Args:
        index: the domain.
        folder: of the new one.
        pixels: of the shift at the size of training, before random scaling (which scales it along).
        size: ``data.size`` of that training, the shorter side of an image: stored labels are shifted by
            ``pixels`` · shorter side / ``size``. The strip that becomes free is ignored.
    """

    def shifted(label: Label) -> Label:
        by = round(pixels * min(label.shape) / size)
        moved = np.full_like(label, IGNORE_INDEX)
        moved[:, by:] = label[:, : label.shape[1] - by]
        return moved

    return _relabel(index, folder, shifted, {"shift": pixels, "size": size})


def wrong_legend(shards: Path, folder: Path, limit: int | None = None) -> DomainIndex:
    """Write IDD-Lite with its label 5, building and vegetation together, as vegetation.

    ``idd_lite_train`` in ``shards`` has the true labels (label 5 is ignored there) and the same ``limit``.
    """
    truth = {sample.key: sample.label for sample in samples_of(DomainIndex.open(shards / "idd_lite_train"))}
    with tempfile.TemporaryDirectory(dir=shards, prefix=".") as scratch:
        prepare_mapped(Path(scratch), "idd_lite_wrong_legend", limit)
        index = DomainIndex.open(Path(scratch) / "idd_lite_wrong_legend")
        return _write(index, folder, samples_of(index), truth, {"legend": "idd_lite_wrong_legend.yaml"})


def _relabel(
    index: DomainIndex, folder: Path, change: Callable[[Label], Label], facts: dict[str, Any]
) -> DomainIndex:
    truth: dict[str, bytes] = {}

    def samples() -> Iterator[ShardSample]:
        for sample in samples_of(index):
            truth[sample.key] = sample.label
            label = change(decode_label(sample.label, sample.key))
            yield sample._replace(label=encode(label, "PNG"))

    return _write(index, folder, samples(), truth, facts)


def _write(
    index: DomainIndex,
    folder: Path,
    samples: Iterator[ShardSample],
    truth: Mapping[str, bytes],
    facts: dict[str, Any],
) -> DomainIndex:
    """Write the spoiled ``samples``, then the truth, then which keys are spoiled."""
    spoiled: list[str] = []

    def noted() -> Iterator[ShardSample]:
        for sample in samples:
            labels = [decode_label(png, sample.key) for png in (sample.label, truth[sample.key])]
            if spoiled_pixels(*labels).any():
                spoiled.append(sample.key)
            yield sample

    def finish() -> None:
        arrays: dict[str, Any] = {key: np.frombuffer(png, np.uint8) for key, png in truth.items()}
        np.savez(folder / TRUTH, **arrays)

    return write_spoiled(folder, index.class_set, noted(), spoiled, {"source": index.name, **facts}, finish)
