"""Turn data sets in their native layout into domain folders of shards.

A new data set is one file: a module with a ``SOURCE`` (see ``camvid.py``), listed in ``SOURCES``.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ppar_dist.class_sets import class_set
from ppar_dist.data.prepare import camvid, cityscapes, folder, gta5, labelmefacade, synthia, urbansyn
from ppar_dist.data.prepare.source import Decoder, Domains, Pair, Source, open_file
from ppar_dist.data.shards.writer import ShardSample, safe_key, write_domain
from ppar_dist.errors import DataError

__all__ = ["DATASETS", "SOURCES", "prepare"]

SOURCES: dict[str, Source] = {
    "camvid": camvid.SOURCE,
    "labelmefacade": labelmefacade.SOURCE,
    "cityscapes": cityscapes.SOURCE,
    "gta5": gta5.SOURCE,
    "synthia": synthia.SOURCE,
    "urbansyn": urbansyn.SOURCE,
}
"""Data sets with a known layout."""

DATASETS: tuple[str, ...] = (*SOURCES, "folder")
"""Every name that ``prepare`` takes."""

_JPEG_QUALITY = 95  # of images that were not JPEG

Progress = Callable[[str, int, int], None]  # domain, samples done, samples in all


@dataclass(frozen=True)
class _Encoder:
    """Turns a pair of files into a shard sample."""

    dataset: str
    decode: Decoder

    def __call__(self, pair: Pair) -> ShardSample:
        label = self.decode(pair.label)
        image = open_file(pair.image)
        if image.size != (label.shape[1], label.shape[0]):
            raise DataError(
                f"{self.dataset} sample {pair.key}: image is {image.width}x{image.height} but label is "
                f"{label.shape[1]}x{label.shape[0]} (width x height); repair the pair, or leave it out by "
                f"--exclude {pair.key}"
            )
        packed = io.BytesIO()
        Image.fromarray(label).save(packed, "PNG")
        metadata = {"dataset": self.dataset, "file": pair.image.name}
        return ShardSample(safe_key(pair.key), self._jpeg(pair.image, image), packed.getvalue(), metadata)

    def _jpeg(self, path: Path, image: Image.Image) -> bytes:
        if image.format == "JPEG":
            return path.read_bytes()
        packed = io.BytesIO()
        # Colour at full resolution: thin poles and signs keep theirs.
        image.convert("RGB").save(packed, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return packed.getvalue()


def prepare(
    dataset: str,
    root: Path | str,
    out: Path | str,
    classes: str,
    limit: int | None = None,
    *,
    mapping: Path | str | None = None,
    exclude: Collection[str] = (),
    workers: int = 1,
    progress: Progress | None = None,
) -> list[Path]:
    """Write a data set as domain folders of shards with their indexes; return the folders.

    JPEG images are stored byte for byte, PNG images as JPEG; labels become PNGs of train ids.

    Args:
        dataset: one of ``DATASETS``.
        root: the data set as unpacked.
        out: parent of the domain folders; a domain that is there already is
            replaced when the new one is whole.
        classes: name of the class set.
        limit: at most so many samples per domain, for a try.
        mapping: the mapping file of ``folder`` (see ``folder.py``).
        exclude: keys or file stems to leave out.
        workers: threads that decode and encode; the result does not depend on it.
        progress: called after each sample.

    Raises:
        DataError: unknown data set or class set, a missing folder or file, a label value that the
            data set does not have, or image and label of different sizes.
    """
    source = _source(dataset, mapping)
    _check_counts(limit, workers)
    domains = _select(source, Path(root), limit, frozenset(exclude))
    encode = _Encoder(source.name, source.decoder(class_set(classes)))
    folders = []
    for name, pairs in domains.items():
        samples = _in_order(encode, pairs, workers)
        write_domain(Path(out) / name, classes, _counted(samples, name, len(pairs), progress))
        folders.append(Path(out) / name)
    return folders


def _source(dataset: str, mapping: Path | str | None) -> Source:
    if dataset not in DATASETS:
        raise DataError(f"unknown data set {dataset!r}; choose from {', '.join(DATASETS)}")
    if (dataset == "folder") != (mapping is not None):
        rule = "needs" if dataset == "folder" else "takes no"
        raise DataError(f"data set {dataset} {rule} mapping file; --mapping FILE belongs to `prepare folder`")
    return folder.source(Path(mapping)) if mapping is not None else SOURCES[dataset]


def _check_counts(limit: int | None, workers: int) -> None:
    for name, value in (("limit", limit), ("workers", workers)):
        if value is not None and value < 1:
            raise DataError(f"{name} is at least 1, got {value}")


def _select(source: Source, root: Path, limit: int | None, exclude: frozenset[str]) -> Domains:
    """The domains without excluded pairs; every file is looked for before any is converted."""
    source.require(root)
    domains = source.domains(root)
    names = {name for pairs in domains.values() for pair in pairs for name in (pair.key, pair.image.stem)}
    if exclude - names:
        raise DataError(f"--exclude names samples that are not there: {sorted(exclude - names)}; drop them")
    chosen: dict[str, list[Pair]] = {}
    for name, pairs in domains.items():
        kept = [pair for pair in pairs if not exclude & {pair.key, pair.image.stem}][:limit]
        for path in (path for pair in kept for path in (pair.image, pair.label)):
            if not path.is_file():
                raise DataError(
                    f"{source.name}: no file {path}; unpack the data set again ({source.page}), or leave the "
                    f"sample out by --exclude"
                )
        if kept:
            chosen[name] = kept
    if not chosen:
        raise DataError(f"{source.name}: no samples in {root}; --root holds {source.layout}")
    return chosen


def _in_order(
    encode: Callable[[Pair], ShardSample], pairs: Iterable[Pair], workers: int
) -> Iterator[ShardSample]:
    """Encode in threads, a few ahead, and yield in the order of the pairs."""
    if workers == 1:
        yield from map(encode, pairs)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[ShardSample]] = deque()
        try:
            for pair in pairs:
                ahead.append(pool.submit(encode, pair))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _counted(
    samples: Iterable[ShardSample], domain: str, total: int, progress: Progress | None
) -> Iterator[ShardSample]:
    for done, sample in enumerate(samples, start=1):
        yield sample
        if progress is not None:
            progress(domain, done, total)
