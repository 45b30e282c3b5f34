"""Turn data sets in their native layout into domain folders of shards.

A new data set is one file: a module with a ``SOURCE``, mostly a table (see ``bdd100k.py``), listed in
``known.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ppar_dist.class_sets import class_set
from ppar_dist.data.prepare.assembling import assemble
from ppar_dist.data.prepare.checking import (
    BadPair,
    by_reason,
    notes,
    pictures_passed_over,
    repeated_keys,
    report,
)
from ppar_dist.data.prepare.encoding import how_encoded
from ppar_dist.data.prepare.known import DATASETS, SOURCES, find_source
from ppar_dist.data.prepare.native_names import check_native_names, names_not_told_apart, unknown_labels
from ppar_dist.data.prepare.options import USUAL, Options
from ppar_dist.data.prepare.pieces import Done, Piece, Setting, made_piece, make_piece, pieces_of
from ppar_dist.data.prepare.replacing import (
    files_digest,
    refuse_no_folder,
    refuse_other_files,
    refuse_other_options,
)
from ppar_dist.data.prepare.source import Domains, Pair, Source
from ppar_dist.data.prepare.working import Progress, kept, unfinished
from ppar_dist.data.shards.manifest import Prepared
from ppar_dist.data.shards.parts import Part
from ppar_dist.data.shards.writer import publish_domain, refuse_foreign
from ppar_dist.errors import DataError
from ppar_dist.pictures import is_clutter
from ppar_dist.processes.pool import Pool, usable_cores
from ppar_dist.text import some

__all__ = ["DATASETS", "SOURCES", "Options", "prepare", "prepare_part"]

Tell = Callable[[str], None]


class _Checked(NamedTuple):
    """The pieces of a domain, and what became of its pairs."""

    pieces: list[Piece]
    good: int
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
    every: Domains  # also what is left out
    domains: Domains
    pieces: dict[str, list[Piece]]

    @property
    def total(self) -> int:
        """Pairs of all domains."""
        return sum(map(len, self.domains.values()))


def prepare(
    dataset: str,
    root: Path | str,
    out: Path | str,
    classes: str,
    options: Options = USUAL,
    *,
    progress: Progress | None = None,
    tell: Tell | None = None,
    merge: bool = False,
) -> list[Path]:
    """Write a data set as domain folders of shards with their indexes; return the folders.

    Images are stored byte for byte, unless they are neither JPEG nor PNG, have more than 8 bits, or
    ``options.jpeg`` is given; labels become PNGs of train ids. No domain appears while one of its pairs is
    bad. A domain that is there already is replaced when the new one is whole. What a killed process or
    ``prepare_part`` has done is not done again; the bytes are the same.

    Args:
        dataset: one of ``DATASETS``.
        root: the data set as unpacked.
        out: parent of the domain folders.
        classes: name of the class set, or the path of a file of classes.
        options: what else is asked for.
        progress: called after each piece of a domain.
        merge: work on no pair, all parts have been done by ``prepare_part``.
        tell: gets each line about pairs and files that are left out, and about what looks like a mistake.

    Raises:
        DataError: unknown data set or class set, native names that there are not, a missing folder, bad pairs
            (all of them are listed), or a domain that is there was made with other options or of other files.
    """
    task = _begin(dataset, root, out, classes, options, progress, tell)
    passed_over = task.source.passed_over(task.every, task.root)
    with unfinished(task.out, task.domains, task.total, alone=True, of_parts=merge):
        checked = _check_all(task, _results(task, merge))
        known = class_set(classes)
        for line in (
            *unknown_labels(classes, known, task.source),
            *names_not_told_apart(classes, known, task.source, task.domains),
            *pictures_passed_over(passed_over, task.root),
            *notes(task.every, frozenset(options.exclude)),
        ):
            task.tell(line)
        return [_write(task, name, found, len(passed_over)) for name, found in checked.items()]


def prepare_part(
    dataset: str,
    root: Path | str,
    out: Path | str,
    classes: str,
    part: Part,
    options: Options = USUAL,
    *,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> str:
    """Do one part of the work on a data set, for ``prepare`` to merge; returns what was done.

    Args:
        dataset: as for ``prepare``, and so are the others.
        root: as there.
        out: as there; on storage that all machines share, or brought together later.
        classes: as there.
        part: which pieces of the domains.
        options: as there, the same for all parts.
        progress: as there.
        tell: as there.

    Raises:
        DataError: as ``prepare``; bad pairs are told, and refused when the parts are merged.
    """
    task = _begin(dataset, root, out, classes, options, progress, tell)
    with unfinished(task.out, task.domains, task.total, alone=False, of_parts=True):
        pieces = [piece for each in task.pieces.values() for piece in each]
        own = part.of(pieces)
        done = _made(task, own)
    for piece, found in zip(own, done, strict=True):
        for line in report(piece.setting.domain, found.bad, len(piece.pairs)):
            task.tell(f"bad: {line}")
    samples, bad = sum(each.samples for each in done), sum(len(each.bad) for each in done)
    return f"part {part}: {len(own)} of {len(pieces)} pieces are done, {samples} samples, {bad} bad pairs"


def _begin(
    dataset: str,
    root: Path | str,
    out: Path | str,
    classes: str,
    options: Options,
    progress: Progress | None,
    tell: Tell | None,
) -> _Task:
    source = find_source(dataset, options.mapping, classes)
    check_native_names(classes, class_set(classes))
    task = _task(source, Path(root), Path(out), classes, options, progress, tell or _silent)
    _refuse_to_replace(task)
    return task


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
    class_set(classes)  # must be known
    pieces = {
        name: pieces_of(
            Setting(source.name, classes, name, options), kept(out, name), pairs, repeated_keys(pairs)
        )
        for name, pairs in domains.items()
    }
    return _Task(source, root, out, classes, options, progress, tell, every, domains, pieces)


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
        refuse_foreign(task.out / name)
        refuse_other_options(task.out / name, class_set(task.classes).name, task.source.name, task.options)
        refuse_other_files(task.out / name, pairs, task.options)


def _made(task: _Task, pieces: Sequence[Piece]) -> list[Done]:
    """Make pieces, or find them made."""
    found: list[Done] = []
    counted: Counter[str] = Counter()
    with Pool(make_piece, _processes(task, len(pieces))) as pool:
        for piece, done in zip(pieces, pool.in_order(pieces), strict=True):
            found.append(done)
            domain = piece.setting.domain
            counted[domain] += len(piece.pairs)
            if task.progress is not None:
                task.progress(domain, counted[domain], len(task.domains[domain]))
    return found


def _processes(task: _Task, pieces: int) -> int:
    wanted = usable_cores() if task.options.processes is None else task.options.processes
    return max(min(wanted, pieces), 1)


def _results(task: _Task, merge: bool) -> dict[str, _Checked]:
    """What became of the pairs of each domain."""
    pieces = [piece for each in task.pieces.values() for piece in each]
    if merge:
        found = {piece.stem: made_piece(piece) for piece in pieces}
        if missing := [str(stem) for stem, done in found.items() if done is None]:
            raise DataError(
                f"{len(missing)} of {len(pieces)} pieces are not there as asked for ({some(missing)}); run "
                "the parts (`--part i/n`) that lack, with the same options, or leave out --merge: then they "
                "are made here"
            )
    else:
        found = dict(zip((piece.stem for piece in pieces), _made(task, pieces), strict=True))
    checked = {}
    for name, each in task.pieces.items():
        done = [result for piece in each if (result := found[piece.stem]) is not None]
        bad = [pair for result in done for pair in result.bad]
        good, encoded = (sum(values) for values in zip(*((d.samples, d.encoded) for d in done), strict=True))
        checked[name] = _Checked(each, good, bad, encoded)
    return checked


def _check_all(task: _Task, checked: dict[str, _Checked]) -> dict[str, _Checked]:
    """The same; raises DataError with all pairs that are bad, unless they may be."""
    lines = [
        line for name, found in checked.items() for line in report(name, found.bad, len(task.domains[name]))
    ]
    can_skip = all(found.good for found in checked.values())
    if lines and not (task.options.skip_bad and can_skip):
        total = sum(len(found.bad) for found in checked.values())
        remedy = ", or leave them out by --skip-bad" if can_skip else ": a domain has no others"
        head = f"{task.source.name}: bad pairs: {total}; nothing was converted. Repair them{remedy}"
        raise DataError("\n".join([head, *lines]))
    for line in lines:
        task.tell(f"left out: {line}")
    return checked


def _write(task: _Task, name: str, found: _Checked, passed_over: int) -> Path:
    """Write a domain; returns its folder."""
    options = task.options
    prepared = Prepared(
        dataset=task.source.name,
        images=how_encoded(options.jpeg, found.encoded, found.good),
        options=options.changing(),
        left_out=by_reason(found.bad),
        files=files_digest(task.domains[name]),
        passed_over=passed_over,
    )
    processes = _processes(task, len(found.pieces))
    made, any_class = assemble(found.pieces, kept(task.out, name), prepared, processes)
    publish_domain(made, task.out / name)
    if not any_class:
        task.tell(
            f"{name}: no pixel of any label has a class of {task.classes}; check the mapping of its labels"
        )
    return task.out / name
