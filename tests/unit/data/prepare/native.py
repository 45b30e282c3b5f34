"""Files of data sets as their publishers lay them out, and what their labels become."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ppar_dist.data.prepare import Options, prepare
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import decode_label

WIDTH = 16


def save_pair(image: Path, label: Path, values: Iterable[int]) -> None:
    """An image, and a label PNG that holds each of the values, each once or more, in rows of 16."""
    listed = list(values)
    native = np.resize(np.array(listed, np.uint8), (-(-len(listed) // WIDTH), WIDTH))  # (H, W)
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(native).save(label)
    pixels = np.random.default_rng(0).integers(0, 255, (*native.shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)


def domains(dataset: str, root: Path, out: Path, classes: str, **options: object) -> dict[str, list[str]]:
    """Prepare a data set; the keys of each domain, by the domain's name."""
    folders = prepare(dataset, root, out, classes, Options(**options))  # type: ignore[arg-type]
    return {folder.name: list(_labels(folder)) for folder in folders}


def became(folder: Path, key: str, values: Iterable[int]) -> dict[int, int]:
    """What each of the values of a label from ``save_pair`` became in a domain."""
    listed = list(values)
    found = _labels(folder)[key].ravel()
    assert (found == np.resize(found[: len(listed)], found.size)).all()
    return {value: int(train_id) for value, train_id in zip(listed, found, strict=False)}


def _labels(folder: Path) -> dict[str, np.ndarray]:
    index = DomainIndex.open(folder)
    return {index.key(i): decode_label(index.read(i).label, "") for i in range(len(index))}


def by_name(ids: Mapping[int, str], train_ids: Mapping[str, int]) -> dict[int, int]:
    """Label value → train id by way of native names; names that are not listed are 255."""
    return {value: train_ids.get(name, 255) for value, name in ids.items()}
