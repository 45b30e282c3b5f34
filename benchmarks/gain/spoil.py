"""Spoils a known part of prepared shards, to measure the effect of reweighting.

    python -m benchmarks.gain.spoil --shards shards

`<domain>_permuted`: in a third of a domain's images the class ids of the label are permuted by a random
derangement of the K classes, drawn per image. `<domain>_kept`: the same domain without that third.
`irrelevant`: textures that show no street, under random piecewise-constant labels.

Images are copied byte for byte. What was spoiled is written to `spoiled.json` beside the shards, last, so
that a folder which has it is whole. Which images are spoiled follows from (seed, key) alone.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

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
        for sample in _samples(index):
            if sample.key in permutations:
                label = _permuted(sample.label, permutations[sample.key])
                sample = sample._replace(label=_encode(label, "PNG"))
            yield sample

    table = {key: drawn.tolist() for key, drawn in permutations.items()}
    facts = {"source": index.name, "seed": seed, "fraction": fraction, "permutations": table}
    return _write(folder, index.class_set, samples(), sorted(chosen), facts)


def keep_clean(index: DomainIndex, folder: Path, fraction: float = 1 / 3, seed: int = 0) -> DomainIndex:
    """Write the domain without the samples that `permute_labels` spoils with the same arguments."""
    chosen = chosen_keys(index, fraction, seed)
    kept = (sample for sample in _samples(index) if sample.key not in chosen)
    facts = {"source": index.name, "seed": seed, "removed": sorted(chosen)}
    return _write(folder, index.class_set, kept, [], facts)


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
            yield ShardSample(key, _encode(image, "JPEG", quality=90), _encode(label, "PNG"), {})

    return _write(folder, classes, samples(), keys, {"seed": seed})


def random_label(rng: np.random.Generator, height: int, width: int, classes: int) -> Array:
    """Voronoi regions of 6 to 24 random points, each of a random class, (H, W) uint8."""
    points = int(rng.integers(6, 25))
    owner: Array = _distances(rng, height, width, points).argmin(0)
    return rng.integers(0, classes, points).astype(np.uint8)[owner]


# Pictures: (rng, height, width) to (H, W, 3) uint8.


def gradient(rng: np.random.Generator, height: int, width: int) -> Array:
    """A blend of two colours along a random direction."""
    along = _projection(rng, height, width)
    return _blend(rng, (along - along.min()) / np.ptp(along))


def stripes(rng: np.random.Generator, height: int, width: int) -> Array:
    """Waves of one direction, smooth or hard."""
    wave = np.sin(_projection(rng, height, width) * rng.uniform(10, 80) + rng.uniform(0, 7))
    return _blend(rng, (wave > 0).astype(float) if rng.random() < 0.5 else (wave + 1) / 2)


def noise(rng: np.random.Generator, height: int, width: int) -> Array:
    """Coloured noise of several scales."""
    picture = np.zeros((height, width, 3))
    for cells in (3, 9, 27, 81):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
        picture += rng.random() * (fine - 127.5)
    return _pixels(127.5 + picture)


def blobs(rng: np.random.Generator, height: int, width: int) -> Array:
    """Soft discs of random colours, added up."""
    distances = _distances(rng, height, width, 12)
    radii = rng.uniform(0.03, 0.25, (12, 1, 1))
    colours = rng.uniform(-200, 200, (12, 3))
    return _pixels(rng.uniform(60, 200, 3) + np.tensordot(np.exp(-distances / radii**2), colours, (0, 0)))


def tiles(rng: np.random.Generator, height: int, width: int) -> Array:
    """Voronoi tiles of random colours, with grain."""
    owner = _distances(rng, height, width, 60).argmin(0)
    grain = rng.normal(0, rng.uniform(0, 25), (height, width, 1))
    return _pixels(rng.integers(0, 256, (60, 3))[owner] + grain)


PICTURES: tuple[Callable[[np.random.Generator, int, int], Array], ...]
PICTURES = (gradient, stripes, noise, blobs, tiles)


def _projection(rng: np.random.Generator, height: int, width: int) -> Array:
    """Position along a random direction, (H, W)."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    along: Array = rows * np.sin(angle) + columns * np.cos(angle)
    return along


def _distances(rng: np.random.Generator, height: int, width: int, points: int) -> Array:
    """Squared distances of pixels to random points, (points, H, W); the longer side is 1."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    y, x = rng.random((2, points, 1, 1)) * np.array([rows.max(), columns.max()]).reshape(2, 1, 1, 1)
    squared: Array = (rows - y) ** 2 + (columns - x) ** 2
    return squared


def _blend(rng: np.random.Generator, share: Array) -> Array:
    one, other = rng.integers(0, 256, (2, 3))
    return _pixels(one + share[..., None] * (other - one))


def _pixels(values: Array) -> Array:
    return values.clip(0, 255).astype(np.uint8)


# Shards.


def _samples(index: DomainIndex) -> Iterator[ShardSample]:
    for number in range(len(index)):
        raw = index.read(number)
        yield ShardSample(raw.key, raw.image, raw.label, index.metadata(number))


def _permuted(label: bytes, permutation: Array) -> Array:
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    table[: len(permutation)] = permutation
    return table[decode_label(label, "label to be permuted")]


def _write(
    folder: Path, classes: str, samples: Iterator[ShardSample], spoiled: list[str], facts: dict[str, Any]
) -> DomainIndex:
    index = write_domain(folder, classes, samples)
    (folder / RECORD).write_text(json.dumps({"spoiled": spoiled, **facts}, indent=1))
    return index


def _encode(array: Array, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def _digest(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}/{key}".encode()).digest()


def _generator(seed: int, key: str) -> np.random.Generator:
    return np.random.default_rng(list(_digest(seed, key)))


def spoil(shards: Path, domain: str, others: tuple[str, ...], fraction: float, irrelevant: float) -> None:
    """Write the three spoiled folders beside the clean ones, unless they are there.

    Args:
        shards: holds the clean domains.
        domain: the one of which ``fraction`` is spoiled.
        others: the other clean sources.
        irrelevant: irrelevant images, as a share of all clean source images.
    """
    index = DomainIndex.open(shards / domain)
    total = len(index) + sum(len(DomainIndex.open(shards / other)) for other in others)
    makers: dict[str, Callable[[Path], DomainIndex]] = {
        f"{domain}_permuted": lambda folder: permute_labels(index, folder, fraction),
        f"{domain}_kept": lambda folder: keep_clean(index, folder, fraction),
        "irrelevant": lambda folder: irrelevant_domain(folder, index.class_set, round(irrelevant * total)),
    }
    for name, make in makers.items():
        folder = shards / name
        if not (folder / RECORD).exists():
            made = make(folder)
            print(f"{folder}: {len(made)} images, {len(spoiled_keys(folder))} of them spoiled", flush=True)


def main() -> None:
    """Spoil prepared shards from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, default=Path("shards"))
    parser.add_argument("--domain", default="camvid_0016E5")
    parser.add_argument("--others", nargs="*", default=["camvid_0006R0", "camvid_Seq05VD"])
    parser.add_argument("--fraction", type=float, default=1 / 3)
    parser.add_argument("--irrelevant", type=float, default=0.27, help="share of the clean sources' images")
    options = parser.parse_args()
    spoil(options.shards, options.domain, tuple(options.others), options.fraction, options.irrelevant)


if __name__ == "__main__":
    main()
