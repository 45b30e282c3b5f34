"""Spoils a known part of prepared shards at random; from_life.py has what happens in life.

`<domain>_permuted`: in a third of a domain's images the class ids of the label are permuted by a random
derangement of the K classes, drawn per image.
`irrelevant`: textures that show no street, under random piecewise-constant labels.

Images are copied byte for byte. What was spoiled is written to `spoiled.json` beside the shards, last, so
that a folder which has it is whole. Which images are spoiled follows from (seed, key) alone.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.harmful.pictures import PICTURES, squared_distances
from ppar_dist.class_sets import IGNORE_INDEX, class_set
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import decode_label
from ppar_dist.data.shards.writer import ShardSample, write_domain

Array = npt.NDArray[Any]
RECORD = "spoiled.json"


def spoiled_keys(folder: Path) -> frozenset[str]:
    """Keys of the spoiled samples of a domain folder; none where nothing was recorded."""
    path = folder / RECORD
    return frozenset(json.loads(path.read_text())["spoiled"]) if path.exists() else frozenset()


def chosen_keys(index: DomainIndex, fraction: float, seed: int) -> frozenset[str]:
    """The round(fraction · N) keys whose hash with ``seed`` comes first, independent of their order."""
    keys = sorted((index.key(sample) for sample in range(len(index))), key=lambda key: _digest(seed, key))
    return frozenset(keys[: round(fraction * len(keys))])


def derangement(classes: int, rng: np.random.Generator) -> Array:
    """A uniformly drawn permutation of K ≥ 2 classes that leaves none in its place, (K,) uint8."""
    while True:  # one draw in e succeeds
        drawn = rng.permutation(classes)
        if not np.any(drawn == np.arange(classes)):
            return drawn.astype(np.uint8)


def permute_labels(index: DomainIndex, folder: Path, fraction: float = 1 / 3, seed: int = 0) -> DomainIndex:
    """Write the domain with ``fraction`` of its labels permuted; ignored pixels stay ignored."""
    classes = len(index.classes)
    chosen = chosen_keys(index, fraction, seed)
    permutations = {key: derangement(classes, _generator(seed, key)) for key in sorted(chosen)}

    def samples() -> Iterator[ShardSample]:
        for sample in samples_of(index):
            if sample.key in permutations:
                label = _permuted(sample.label, permutations[sample.key])
                sample = sample._replace(label=encode(label, "PNG"))
            yield sample

    table = {key: drawn.tolist() for key, drawn in permutations.items()}
    facts = {"source": index.name, "seed": seed, "fraction": fraction, "permutations": table}
    return write_spoiled(folder, index.class_set, samples(), sorted(chosen), facts)


def irrelevant_domain(
    folder: Path, classes: str, count: int, size: tuple[int, int] = (360, 480), seed: int = 0
) -> DomainIndex:
    """Write ``count`` images of ``size`` (height, width) that show no street, under random labels."""
    keys = [f"irrelevant_{number:05d}" for number in range(count)]

    def samples() -> Iterator[ShardSample]:
        for number, key in enumerate(keys):
            rng = _generator(seed, key)
            image = PICTURES[number % len(PICTURES)](rng, *size)
            label = random_label(rng, *size, class_set(classes).num_classes)
            yield ShardSample(key, encode(image, "JPEG", quality=90), encode(label, "PNG"), {})

    return write_spoiled(folder, classes, samples(), keys, {"seed": seed})


def random_label(rng: np.random.Generator, height: int, width: int, classes: int) -> Array:
    """Voronoi regions of 6 to 24 random points, each of a random class, (H, W) uint8."""
    points = int(rng.integers(6, 25))
    owner: Array = squared_distances(rng, height, width, points).argmin(0)
    return rng.integers(0, classes, points).astype(np.uint8)[owner]


def samples_of(index: DomainIndex) -> Iterator[ShardSample]:
    """The samples of a domain as they are."""
    for number in range(len(index)):
        raw = index.read(number)
        yield ShardSample(raw.key, raw.image, raw.label, index.metadata(number))


def shuffle_domains(
    clean: Sequence[DomainIndex], spoiled: DomainIndex, folders: Sequence[Path], share: float, seed: int = 0
) -> None:
    """Deal the samples of all sources out to domains at random, so that none of them has a policy of its own.

    Of the spoiled source as many samples are taken, at random, as give it its share.

    Args:
        clean: all of their samples are dealt out.
        spoiled: the source that has ``share`` of the samples.
        folders: of the domains to write; the last one is there when all are.
        share: 0 to 1.
        seed: of the dealing.
    """
    wanted = round(share / (1 - share) * sum(len(index) for index in clean))
    rng = np.random.default_rng(seed)
    taken = rng.permutation(len(spoiled))[:wanted].tolist()
    pool = [(index, number) for index in clean for number in range(len(index))]
    pool += [(spoiled, number) for number in taken]
    order = rng.permutation(len(pool)).tolist()
    for part, folder in enumerate(folders):
        mine = [pool[at] for at in order[part :: len(folders)]]
        own = (_renamed(index, number) for index, number in mine)
        write_domain(folder, spoiled.class_set, own)


def _renamed(index: DomainIndex, number: int) -> ShardSample:
    raw = index.read(number)  # keys of different sources may be the same
    return ShardSample(f"{index.name}_{raw.key}", raw.image, raw.label, index.metadata(number))


def _permuted(label: bytes, permutation: Array) -> Array:
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    table[: len(permutation)] = permutation
    return table[decode_label(label, "label to be permuted")]


def write_spoiled(
    folder: Path,
    classes: str,
    samples: Iterable[ShardSample],
    spoiled: list[str],
    facts: dict[str, Any],
    before: Callable[[], None] = lambda: None,
) -> DomainIndex:
    """Write a domain and which of its keys are spoiled.

    Args:
        folder: of the domain.
        classes: its class set.
        samples: what is written.
        spoiled: the keys, read when the samples are written.
        facts: noted beside the keys.
        before: called between the shards and the note.
    """
    index = write_domain(folder, classes, samples)
    before()
    (folder / RECORD).write_text(json.dumps({"spoiled": spoiled, **facts}, indent=1))
    return index


def encode(array: Array, kind: str, **options: Any) -> bytes:
    """A picture of uint8 pixels (H, W) or (H, W, 3) in a file format of Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def _digest(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}/{key}".encode()).digest()


def _generator(seed: int, key: str) -> np.random.Generator:
    return np.random.default_rng(list(_digest(seed, key)))
