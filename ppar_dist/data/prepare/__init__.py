"""Turn data sets in their native layout into domain folders of shards.

A new data set is one file: a module with a ``SOURCE`` (see ``camvid.py``), listed in ``SOURCES``.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from ppar_dist.class_sets import class_set
from ppar_dist.data.prepare import camvid, cityscapes, folder, gta5, labelmefacade, synthia, urbansyn
from ppar_dist.data.prepare.checking import (
    AS_IT_CAME,
    ENCODED,
    BadPair,
    PairCheck,
    by_reason,
    how_stored,
    notes,
    pictures_passed_over,
    repeated_keys,
    report,
)
from ppar_dist.data.prepare.options import USUAL, Options
from ppar_dist.data.prepare.replacing import (
    files_digest,
    refuse_no_folder,
    refuse_other_files,
    refuse_other_options,
)
from ppar_dist.data.prepare.source import Decoder, Domains, Pair, Source, unusable
from ppar_dist.data.shards.manifest import AS_THEY_CAME, Prepared
from ppar_dist.data.shards.sample import encode_label
from ppar_dist.data.shards.writer import ShardSample, safe_key, write_domain
from ppar_dist.errors import DataError
from ppar_dist.pictures import PictureError, Span, is_clutter, open_picture, photo_rgb
from ppar_dist.text import guess

__all__ = ["DATASETS", "SOURCES", "Options", "prepare"]

T = TypeVar("T")

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

Progress = Callable[[str, int, int], None]  # domain, samples done, samples in all


@dataclass(frozen=True)
class _Encoder:
    """Turns a pair of files, checked before, into a shard sample."""

    dataset: str
    decode: Decoder
    span: Span | None
    jpeg: int | None

    def __call__(self, pair: Pair) -> ShardSample:
        label = encode_label(self.decode(pair.label))
        metadata = {"dataset": self.dataset, "file": pair.image.name}
        return ShardSample(safe_key(pair.key), self._image(pair.image), label, metadata)

    def _image(self, path: Path) -> bytes:
        raw = path.read_bytes()
        try:
            with open_picture(raw) as image:
                if how_stored(image, self.jpeg is not None) == AS_IT_CAME:
                    return raw
                rgb, packed = photo_rgb(image, self.span), io.BytesIO()
        except PictureError as error:
            raise unusable(path, error) from None
        if self.jpeg is not None:
            # Colour at full resolution: thin poles and signs keep theirs.
            rgb.save(packed, "JPEG", quality=self.jpeg, subsampling=0)
        else:
            rgb.save(packed, "PNG")
        return packed.getvalue()


class _Checked(NamedTuple):
    """The good pairs of a domain, and the bad."""

    pairs: list[Pair]
    bad: list[BadPair]
    encoded: int  # images of the good ones that are not stored as they came


def prepare(
    dataset: str,
    root: Path | str,
    out: Path | str,
    classes: str,
    options: Options = USUAL,
    *,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write a data set as domain folders of shards with their indexes; return the folders.

    Images are stored byte for byte, unless they are neither JPEG nor PNG, have more than 8 bits, or
    ``options.jpeg`` is given; labels become PNGs of train ids. All pairs are checked before the first is
    converted. A domain that is there already is replaced when the new one is whole.

    Args:
        dataset: one of ``DATASETS``.
        root: the data set as unpacked.
        out: parent of the domain folders.
        classes: name of the class set.
        options: what else is asked for.
        progress: called after each sample, and after each check.
        tell: gets each line about pairs and files that are left out, and about what looks like a mistake.

    Raises:
        DataError: unknown data set or class set, a missing folder, bad pairs (all of them are listed), or a
            domain that is there was made with other options or of other files.
    """
    source = _source(dataset, options.mapping)
    source.require(Path(root))
    every = source.domains(Path(root))
    domains = _select(source, Path(root), every, options.limit, frozenset(options.exclude))
    passed_over = source.passed_over(every, Path(root))
    refuse_no_folder(Path(out))
    decode = source.decoder(class_set(classes))
    for name, pairs in domains.items():
        refuse_other_options(Path(out) / name, classes, source.name, options)
        refuse_other_files(Path(out) / name, pairs, options)
    checked = _check_all(
        source, domains, PairCheck(decode, options.span, options.jpeg is not None), options, progress, tell
    )
    tell = tell or (lambda line: None)
    for line in (*pictures_passed_over(passed_over, Path(root)), *notes(every, frozenset(options.exclude))):
        tell(line)
    encode = _Encoder(source.name, decode, options.span, options.jpeg)
    folders = []
    for name, (pairs, bad, encoded) in checked.items():
        images = (
            AS_THEY_CAME if not encoded else f"{encoded} of {len(pairs)} encoded as {_form(options.jpeg)}"
        )
        prepared = Prepared(
            dataset=source.name,
            images=images,
            options=options.changing(),
            left_out=by_reason(bad),
            files=files_digest(domains[name]),
            passed_over=len(passed_over),
        )
        samples = _counted(_in_order(encode, pairs, options.workers), name, len(pairs), progress)
        index = write_domain(Path(out) / name, classes, samples, prepared=prepared)
        if not index.counts.any():
            tell(f"{name}: no pixel of any label has a class of {classes}; check the mapping of its labels")
        folders.append(Path(out) / name)
    return folders


def _form(jpeg: int | None) -> str:
    return "PNG of 8 bits" if jpeg is None else f"JPEG of quality {jpeg}"


def _source(dataset: str, mapping: Path | None) -> Source:
    if dataset not in DATASETS:
        hint = guess(dataset, DATASETS)
        raise DataError(f"unknown data set {dataset!r}{hint}; choose from {', '.join(DATASETS)}")
    if (dataset == "folder") != (mapping is not None):
        rule = "needs" if dataset == "folder" else "takes no"
        raise DataError(f"data set {dataset} {rule} mapping file; --mapping FILE belongs to `prepare folder`")
    return folder.source(mapping) if mapping is not None else SOURCES[dataset]


def _select(
    source: Source, root: Path, domains: Domains, limit: int | None, exclude: frozenset[str]
) -> Domains:
    """The domains without excluded pairs and clutter."""
    names = {name for pairs in domains.values() for pair in pairs for name in (pair.key, pair.image.stem)}
    if exclude - names:
        raise DataError(f"--exclude names samples that are not there: {sorted(exclude - names)}; drop them")
    chosen: dict[str, list[Pair]] = {}
    for name, pairs in domains.items():
        kept = [
            pair
            for pair in pairs
            if not exclude & {pair.key, pair.image.stem} and not is_clutter(pair.image.relative_to(root))
        ][:limit]
        if kept:
            chosen[name] = kept
    if not chosen:
        raise DataError(f"{source.name}: no samples in {root}; --root holds {source.layout}")
    return chosen


def _check_all(
    source: Source,
    domains: Domains,
    check: PairCheck,
    options: Options,
    progress: Progress | None,
    tell: Callable[[str], None] | None,
) -> dict[str, _Checked]:
    """The good and bad pairs of each domain; raises DataError with all that are bad, unless they may be."""
    checked, lines = {}, []
    for name, pairs in domains.items():
        twice = repeated_keys(pairs)
        results = _counted(_in_order(check, pairs, options.workers), f"{name}, checked", len(pairs), progress)
        found = [(pair, twice.get(pair.key, result)) for pair, result in zip(pairs, results, strict=True)]
        bad = [result for _, result in found if isinstance(result, BadPair)]
        good = [pair for pair, result in found if not isinstance(result, BadPair)]
        checked[name] = _Checked(good, bad, sum(result == ENCODED for _, result in found))
        lines += report(name, bad, len(pairs))
    can_skip = all(each.pairs for each in checked.values())
    if lines and not (options.skip_bad and can_skip):
        total = sum(len(each.bad) for each in checked.values())
        remedy = ", or leave them out by --skip-bad" if can_skip else ": a domain has no others"
        head = f"{source.name}: bad pairs: {total}; nothing was converted. Repair them{remedy}"
        raise DataError("\n".join([head, *lines]))
    if tell is not None:
        for line in lines:
            tell(f"left out: {line}")
    return checked


def _in_order(work: Callable[[Pair], T], pairs: Iterable[Pair], workers: int) -> Iterator[T]:
    """Work in threads, a few ahead, and yield in the order of the pairs."""
    if workers == 1:
        yield from map(work, pairs)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[T]] = deque()
        try:
            for pair in pairs:
                ahead.append(pool.submit(work, pair))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _counted(items: Iterable[T], domain: str, total: int, progress: Progress | None) -> Iterator[T]:
    for done, item in enumerate(items, start=1):
        yield item
        if progress is not None:
            progress(domain, done, total)
