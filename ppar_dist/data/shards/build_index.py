"""Make the index of a folder of shards; what is bad is listed by reason, and left out where allowed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ppar_dist.class_sets import ClassSet
from ppar_dist.class_sets import class_set as find_class_set
from ppar_dist.data.shards.arrays import ArrayWriter, RepeatedKeys
from ppar_dist.data.shards.check import Fault, repeated_key
from ppar_dist.data.shards.compressed import passed_over, shard_files
from ppar_dist.data.shards.findings import QUARANTINE, BadSamples, Findings
from ppar_dist.data.shards.grouping import USUAL, Endings, count_kind
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.manifest import (
    ARRAYS,
    NAME,
    REMEDY,
    VERSION,
    DomainFile,
    Prepared,
    read_domain_file,
)
from ppar_dist.data.shards.parts import Part
from ppar_dist.data.shards.rows import Rows, load
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.data.shards.scan import Scan, kept_rows, scan
from ppar_dist.errors import DataError, UserError
from ppar_dist.files.durable import fingerprint
from ppar_dist.processes.pool import Pool, usable_cores
from ppar_dist.text import one_line, printable, some

KEPT = ".indexing"
"""The folder of unfinished work in that of a domain."""
_WORTH_KEEPING = 1000  # samples; fewer are checked again within seconds
_WORTH_A_POOL = 8 << 20  # bytes of shards


class _Work(NamedTuple):
    """What is asked for: the shards of a folder, and where their rows are kept meanwhile."""

    folder: Path
    classes: ClassSet
    findings: Findings
    kept: Path
    tasks: list[Scan]


def index_folder(
    folder: Path | str,
    class_set: str,
    name: str | None = None,
    progress: Callable[[str, int], None] | None = None,
    max_bad_ratio: float = 0.0,
    endings: Endings = USUAL,
    prepared: Prepared | None = None,
    processes: int | None = 1,
    merge: bool = False,
) -> tuple[DomainIndex, Findings]:
    """Index the tar shards of a folder, whoever wrote them; compressed ones are unpacked beside themselves.

    Every image and label is decoded and checked. Bad samples up to ``max_bad_ratio`` of all are left out
    and listed in ``quarantine.jsonl``; of a shard that breaks off the samples before that are kept. Shards
    without a good sample are left out. The index appears whole: ``domain.json`` is written last. What a
    killed process or ``index_part`` has checked is not checked again; the index is the same bit for bit.

    Args:
        folder: the domain folder; its shards are taken in the order of their names.
        class_set: the class set of the label ids, a name or a file of classes.
        name: the domain's name, by default that of the folder.
        progress: called after each shard with its name and the samples found so far.
        max_bad_ratio: 0 refuses the folder for a single bad sample.
        endings: what images and labels are called in the shards.
        prepared: how ``prepare`` made the shards; None keeps what an earlier index says of that.
        processes: that check shards at the same time; None: as many as cores, where it is worth it.
        merge: check no shard, all were checked by ``index_part``.

    Raises:
        DataError: no folder, no samples, an earlier index says that the ids are of another class set, another
            process works on the folder, or parts are missing.
        BadSamples: (a UserError) more bad samples than allowed; the message gives every reason with its
            count and an example.
    """
    folder = Path(folder)
    before = _refuse(folder, class_set, prepared)
    with _work(folder, class_set, name, endings, alone=True, of_parts=merge) as work:
        if merge:
            _refuse_missing(work)
        else:
            _scan(work, work.tasks, processes, progress)
        with writing(folder):
            _index(work, max_bad_ratio, prepared or (before.prepared if before else None))
    return DomainIndex.open(folder), work.findings


def index_part(
    folder: Path | str,
    class_set: str,
    part: Part,
    progress: Callable[[str, int], None] | None = None,
    endings: Endings = USUAL,
    processes: int | None = 1,
) -> str:
    """Check the shards of one part of a folder, for ``index_folder`` to merge; returns what was done.

    Args:
        folder: the domain folder.
        class_set: as for ``index_folder``.
        part: which shards, a stretch of the order of their names.
        progress: as for ``index_folder``.
        endings: as for ``index_folder``.
        processes: as for ``index_folder``.

    Raises:
        DataError: as ``index_folder``, but for bad samples, which are told when all parts are merged.
    """
    folder = Path(folder)
    _refuse(folder, class_set, None)
    with _work(folder, class_set, None, endings, alone=False, of_parts=True) as work:
        own = part.of(work.tasks)
        samples = _scan(work, own, processes, progress)
    return f"part {part}: {len(own)} of {len(work.tasks)} shards are checked, {samples} good samples"


def _refuse(folder: Path, class_set: str, prepared: Prepared | None) -> DomainFile | None:
    """What an earlier index says, unless ``prepared`` does; refuses no folder, and ids of other classes."""
    wanted = find_class_set(class_set)
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; check the path, or {REMEDY}")
    before = None if prepared else _before(folder)
    _refuse_other_classes(folder, before, wanted.name)
    return before


@contextmanager
def _work(
    folder: Path, class_set: str, name: str | None, endings: Endings, alone: bool, of_parts: bool
) -> Iterator[_Work]:
    """The work on a folder; what was checked is kept where a part, a kill or an error leaves many samples."""
    findings = Findings(name or folder.resolve().name)
    classes, kept = find_class_set(class_set), folder / KEPT
    findings.passed_over = passed_over(folder)
    files = shard_files(folder)
    tasks = [
        Scan(file, kept / f"{file.path.name}.rows", findings.domain, classes.num_classes, endings)
        for file in files
    ]
    with writing(folder):
        kept.mkdir(exist_ok=True)
    try:
        with locked(kept, alone):
            yield _Work(folder, classes, findings, kept, tasks)
    except UserError:
        if not of_parts and findings.good + findings.bad.total() < _WORTH_KEEPING:
            shutil.rmtree(kept, ignore_errors=True)
        raise
    if alone:
        shutil.rmtree(kept, ignore_errors=True)


def _scan(
    work: _Work, tasks: list[Scan], processes: int | None, progress: Callable[[str, int], None] | None
) -> int:
    """Check shards; returns how many good samples they have."""
    count = processes_for(processes, [task.file.path for task in tasks])
    samples = 0
    with writing(work.folder), Pool(scan, count) as pool:
        for task, found in zip(tasks, pool.in_order(tasks), strict=True):
            samples += found
            if progress is not None:
                progress(task.file.path.name, samples)
    return samples


def processes_for(wanted: int | None, files: Sequence[Path]) -> int:
    """How many processes are of use for files: no more than files, and by default one for a few megabytes."""
    if wanted is None:
        wanted = usable_cores() if sum(map(_size, files)) > _WORTH_A_POOL else 1
    return max(min(wanted, len(files)), 1)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _refuse_missing(work: _Work) -> None:
    missing = [task.file.path.name for task in work.tasks if kept_rows(task) is None]
    if missing:
        raise DataError(
            f"{work.folder}: {len(missing)} of {len(work.tasks)} shards were not checked as asked for, or "
            f"have changed since ({some(missing)}); run the parts (`--part i/n`) that lack, with the same "
            "options, or leave out --merge: then they are checked here"
        )


def _index(work: _Work, max_bad_ratio: float, prepared: Prepared | None) -> None:
    """Merge the rows of all shards, and put the index in place."""
    shards = _merge(work)
    findings = work.findings
    if findings.exceed(max_bad_ratio):
        raise BadSamples(findings, _remedy(findings))
    if not findings.good:
        over = f"; there are {some(findings.passed_over)}" * bool(findings.passed_over)
        raise DataError(
            f"{work.folder} holds no samples (pairs <key>.jpg and <key>.png in *.tar){over}; {REMEDY}"
        )
    publish(work.kept, work.folder, work.classes, findings, shards, prepared)


def _merge(work: _Work) -> list[dict[str, Any]]:
    """Write arrays and quarantine below ``kept``; returns what is known of each shard."""
    repeated, width, total = RepeatedKeys(work.kept), 1, 0
    for task in work.tasks:
        rows = _rows(task)
        repeated.add(rows.keys)
        width, total = max(width, rows.keys.dtype.itemsize), total + len(rows)
    again = repeated.find()
    arrays = ArrayWriter(work.kept, total - len(again), work.classes.num_classes, width)
    shards: list[dict[str, Any]] = []
    start = 0
    with (work.kept / QUARANTINE).open("w", encoding="utf-8") as quarantine:
        for task in work.tasks:
            rows = _rows(task)
            first, last = np.searchsorted(again, [start, start + len(rows)])
            bad = again[first:last].astype(np.int64) - start
            start += len(rows)
            for fault in _faults(rows, bad.tolist(), work.findings.domain):
                work.findings.add(rows.header["name"], fault)
                line = _line(work.findings.domain, rows.header["name"], fault)
                quarantine.write(json.dumps(line) + "\n")
            good = np.ones(len(rows), bool)
            good[bad] = False
            _note(work.findings, rows, good)
            if good.any():
                records = rows.records[good]
                records["shard"] = len(shards)
                arrays.add(records, rows.counts[good], rows.keys[good])
                shards.append(_described(rows, int(good.sum())))
    arrays.close()
    return shards


def _rows(task: Scan) -> Rows:
    rows = load(task.rows)
    if rows is None:
        raise DataError(f"{task.rows} was changed while it was in use; run the command again")
    return rows


def _faults(rows: Rows, repeats: list[int], domain: str) -> list[Fault]:
    """What is wrong with a shard's samples, in their order; ``repeats`` have a key of an earlier shard."""
    found: list[tuple[int, int, Fault]] = []
    for at, key, where, reason, detail in rows.header["faults"]:
        found.append((at, 0, Fault(key, SampleError(where, reason, detail))))
    for number in repeats:
        key = bytes(rows.keys[number]).decode("utf-8")
        here = f"{domain}/{rows.header['name']} sample {printable(key)}"
        found.append((number, 1, Fault(key, repeated_key(key, here))))
    return [fault for _, _, fault in sorted(found, key=lambda each: each[:2])]  # stable


def _note(findings: Findings, rows: Rows, good: npt.NDArray[np.bool_]) -> None:
    findings.unpacked += rows.header["unpacked"]
    findings.turned += int(rows.turned[good].sum())
    findings.good += int(good.sum())
    for kind, number in rows.header["ignored"].items():
        count_kind(findings.ignored, kind, number)
    if not good.any():
        findings.empty.append(rows.header["name"])


def _described(rows: Rows, samples: int) -> dict[str, Any]:
    return {
        "name": rows.header["name"],
        "samples": samples,
        "bytes": rows.header["bytes"],
        "sha256": rows.header["sha256"],
    }


@contextmanager
def locked(folder: Path, alone: bool) -> Iterator[None]:
    """Hold a folder of unfinished work: alone, or together with other parts.

    Raises:
        DataError: another process holds it.
    """
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"another process works on {folder.parent}; wait for its end, or end it"
            ) from None
        yield


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the system refuses while files are written to a folder is a DataError."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not of the system, but of a library
            raise
        raise DataError(
            f"cannot complete {folder} ({one_line(error)}); make room, or correct permissions or path"
        ) from None


def _line(domain: str, shard: str, fault: Fault) -> dict[str, str | None]:
    return {
        "domain": domain,
        "shard": shard,
        "key": fault.key,
        "reason": fault.error.reason,
        "detail": fault.error.detail,
    }


def _remedy(findings: Findings) -> str:
    if not findings.good:
        return "Repair them: there are no others"
    total = findings.bad.total() + findings.good
    ratio = -(-1000 * findings.bad.total() // total) / 1000  # rounded up
    return (
        f"Repair them, or leave them out: `ppar-dist index --max-bad-ratio {ratio:g}` keeps the other "
        f"{findings.good} and lists the bad ones in {QUARANTINE}"
    )


def _before(folder: Path) -> DomainFile | None:
    """What an earlier index of the folder says; None where there is none that can be read."""
    try:
        return read_domain_file(folder)
    except DataError:
        return None


def _refuse_other_classes(folder: Path, before: DomainFile | None, class_set: str) -> None:
    """Ids of one class set must not be read as those of another: index does not change what labels store."""
    if before is None or before.class_set == class_set:
        return
    if before.prepared is not None:
        remedy = "run `ppar-dist prepare` again with these --classes"
    else:
        remedy = f"write other labels; or remove {folder / NAME}, if the earlier --classes was a mistake"
    raise DataError(
        f"the labels in {folder} store ids of {before.class_set}, says its {NAME}; indexing does not make "
        f"them ids of {class_set}: {remedy}"
    )


def publish(
    made: Path,
    folder: Path,
    class_set: ClassSet,
    findings: Findings,
    shards: list[dict[str, Any]],
    prepared: Prepared | None,
) -> None:
    """Move arrays and quarantine from where they were made to a domain's folder; its file comes last."""
    hashes = {name: fingerprint(made / name)[1] for name in ARRAYS}
    (folder / NAME).unlink(missing_ok=True)  # an old one must not describe the new arrays
    for name in ARRAYS:
        os.replace(made / name, folder / name)
    if findings.bad:
        os.replace(made / QUARANTINE, folder / QUARANTINE)
    else:
        (folder / QUARANTINE).unlink(missing_ok=True)
    meta: dict[str, Any] = {"version": VERSION, "name": findings.domain}
    meta |= {"class_set": class_set.name, "classes": list(class_set.classes)}
    meta |= {"num_samples": findings.good, "turned": findings.turned, "shards": shards}
    meta["arrays"] = hashes  # what a node holds a copy of them to
    if prepared is not None:
        meta["prepared"] = prepared.model_dump()
    temporary = made / NAME
    temporary.write_bytes(json.dumps(meta, indent=2).encode("utf-8"))
    os.replace(temporary, folder / NAME)
