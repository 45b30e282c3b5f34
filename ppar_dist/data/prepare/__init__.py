"""Turn data sets in their native layout into domain folders of shards.

A new data set is one file: a module with a ``SOURCE``, mostly a table (see ``bdd100k.py``), listed in
``known.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ppar_dist.class_sets import class_set
from ppar_dist.data.prepare.checking import (
    ENCODED,
    BadPair,
    PairCheck,
    by_reason,
    notes,
    pictures_passed_over,
    repeated_keys,
    report,
)
from ppar_dist.data.prepare.encoding import Encoder
from ppar_dist.data.prepare.known import DATASETS, SOURCES, find_source
from ppar_dist.data.prepare.legend import Decoder
from ppar_dist.data.prepare.native_names import check_native_names, names_not_told_apart, unknown_labels
from ppar_dist.data.prepare.options import USUAL, Options
from ppar_dist.data.prepare.replacing import (
    files_digest,
    refuse_no_folder,
    refuse_other_files,
    refuse_other_options,
)
from ppar_dist.data.prepare.source import Domains, Pair, Source
from ppar_dist.data.prepare.working import Progress, counted, in_order
from ppar_dist.data.shards.manifest import Prepared
from ppar_dist.data.shards.writer import write_domain
from ppar_dist.errors import DataError
from ppar_dist.pictures import is_clutter

__all__ = ["DATASETS", "SOURCES", "Options", "prepare"]

Tell = Callable[[str], None]


class _Checked(NamedTuple):
    """The good pairs of a domain, and the bad."""

    pairs: list[Pair]
    bad: list[BadPair]
    encoded: int  # images of the good ones that are not stored as they came


@dataclass(frozen=True)
class _Task:
    """What is to be done: the data set as it was found, and what was asked for."""

    source: Source
    root: Path
    out: Path
    classes: str
    options: Options
    progress: Progress | None
    tell: Tell
    decode: Decoder
    every: Domains  # also what is left out
    domains: Domains


def prepare(
    dataset: str,
    root: Path | str,
    out: Path | str,
    classes: str,
    options: Options = USUAL,
    *,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> list[Path]:
    """Write a data set as domain folders of shards with their indexes; return the folders.

    Images are stored byte for byte, unless they are neither JPEG nor PNG, have more than 8 bits, or
    ``options.jpeg`` is given; labels become PNGs of train ids. All pairs are checked before the first is
    converted. A domain that is there already is replaced when the new one is whole.

    Args:
        dataset: one of ``DATASETS``.
        root: the data set as unpacked.
        out: parent of the domain folders.
        classes: name of the class set, or the path of a file of classes.
        options: what else is asked for.
        progress: called after each sample, and after each check.
        tell: gets each line about pairs and files that are left out, and about what looks like a mistake.

    Raises:
        DataError: unknown data set or class set, native names that there are not, a missing folder, bad pairs
            (all of them are listed), or a domain that is there was made with other options or of other files.
    """
    source = find_source(dataset, options.mapping, classes)
    check_native_names(classes, class_set(classes))
    task = _task(source, Path(root), Path(out), classes, options, progress, tell or _silent)
    passed_over = source.passed_over(task.every, task.root)
    _refuse_to_replace(task)
    checked = _check_all(task)
    known = class_set(classes)
    for line in (
        *unknown_labels(classes, known, source),
        *names_not_told_apart(classes, known, source, task.domains),
        *pictures_passed_over(passed_over, task.root),
        *notes(task.every, frozenset(options.exclude)),
    ):
        task.tell(line)
    return [_write(task, name, found, len(passed_over)) for name, found in checked.items()]


def _silent(line: str) -> None:
    pass


def _task(
    source: Source,
    root: Path,
    out: Path,
    classes: str,
    options: Options,
    progress: Progress | None,
    tell: Tell,
) -> _Task:
    source.require(root)
    every = source.parted(root, options.split_by)
    domains = _select(source, root, every, options)
    refuse_no_folder(out)
    decode = source.decoder(class_set(classes))
    return _Task(source, root, out, classes, options, progress, tell, decode, every, domains)


def _select(source: Source, root: Path, domains: Domains, options: Options) -> Domains:
    """The domains without excluded pairs and clutter."""
    exclude = frozenset(options.exclude)
    names = {name for pairs in domains.values() for pair in pairs for name in (pair.key, pair.image.stem)}
    if exclude - names:
        raise DataError(f"--exclude names samples that are not there: {sorted(exclude - names)}; drop them")
    chosen: dict[str, list[Pair]] = {}
    for name, pairs in domains.items():
        kept = [
            pair
            for pair in pairs
            if not exclude & {pair.key, pair.image.stem} and not is_clutter(pair.image.relative_to(root))
        ][: options.limit]
        if kept:
            chosen[name] = kept
    if not chosen:
        raise source.empty(root)
    return chosen


def _refuse_to_replace(task: _Task) -> None:
    for name, pairs in task.domains.items():
        refuse_other_options(task.out / name, class_set(task.classes).name, task.source.name, task.options)
        refuse_other_files(task.out / name, pairs, task.options)


def _check_all(task: _Task) -> dict[str, _Checked]:
    """The good and bad pairs of each domain; raises DataError with all that are bad, unless they may be."""
    checked = {name: _check(task, name, pairs) for name, pairs in task.domains.items()}
    lines = [
        line for name, found in checked.items() for line in report(name, found.bad, len(task.domains[name]))
    ]
    can_skip = all(found.pairs for found in checked.values())
    if lines and not (task.options.skip_bad and can_skip):
        total = sum(len(found.bad) for found in checked.values())
        remedy = ", or leave them out by --skip-bad" if can_skip else ": a domain has no others"
        head = f"{task.source.name}: bad pairs: {total}; nothing was converted. Repair them{remedy}"
        raise DataError("\n".join([head, *lines]))
    for line in lines:
        task.tell(f"left out: {line}")
    return checked


def _check(task: _Task, name: str, pairs: list[Pair]) -> _Checked:
    options, twice = task.options, repeated_keys(pairs)
    check = PairCheck(task.decode, options.span, options.jpeg is not None)
    results = counted(in_order(check, pairs, options.workers), f"{name}, checked", len(pairs), task.progress)
    found = [(pair, twice.get(pair.key, result)) for pair, result in zip(pairs, results, strict=True)]
    bad = [result for _, result in found if isinstance(result, BadPair)]
    good = [pair for pair, result in found if not isinstance(result, BadPair)]
    return _Checked(good, bad, sum(result == ENCODED for _, result in found))


def _write(task: _Task, name: str, found: _Checked, passed_over: int) -> Path:
    """Write a domain; returns its folder."""
    options, total = task.options, len(found.pairs)
    encode = Encoder(task.source.name, task.decode, options.span, options.jpeg)
    prepared = Prepared(
        dataset=task.source.name,
        images=encode.told(found.encoded, total),
        options=options.changing(),
        left_out=by_reason(found.bad),
        files=files_digest(task.domains[name]),
        passed_over=passed_over,
    )
    samples = counted(in_order(encode, found.pairs, options.workers), name, total, task.progress)
    index = write_domain(task.out / name, task.classes, samples, prepared=prepared)
    if not index.counts.any():
        task.tell(
            f"{name}: no pixel of any label has a class of {task.classes}; check the mapping of its labels"
        )
    return task.out / name
