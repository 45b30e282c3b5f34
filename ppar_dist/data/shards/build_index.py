"""Make the index of a folder of shards; what is bad is listed by reason, and left out where allowed."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

from ppar_dist.class_sets import ClassSet
from ppar_dist.class_sets import class_set as find_class_set
from ppar_dist.data.shards.check import CheckedSample, Fault, check_shard, repeated_key
from ppar_dist.data.shards.compressed import passed_over, plain_shards
from ppar_dist.data.shards.grouping import USUAL, Endings
from ppar_dist.data.shards.index import RECORD, DomainIndex
from ppar_dist.data.shards.manifest import NAME, REMEDY, VERSION, DomainFile, Prepared, read_domain_file
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.errors import DataError
from ppar_dist.files.durable import fingerprint
from ppar_dist.text import one_line, printable, some

QUARANTINE = "quarantine.jsonl"
_PICKLES = ("pkl", "pickle", "pyd", "pth", "pt")
_NAMED = 5  # shards that a message names


class BadSamples(DataError):
    """More bad samples than allowed: ``findings`` has them by reason."""

    def __init__(self, findings: Findings, remedy: str) -> None:
        super().__init__(f"{findings.summary()}. {remedy}")
        self.findings = findings


@dataclass
class Findings:
    """What was found in the shards of a domain besides its good samples."""

    domain: str
    good: int = 0
    bad: Counter[str] = field(default_factory=Counter)  # by reason; a shard that breaks off counts as one
    examples: dict[str, str] = field(default_factory=dict)  # the first message of each reason
    broken: list[str] = field(default_factory=list)  # shards that cannot be read to their end, and why
    ignored: Counter[str] = field(default_factory=Counter)  # other members, by extension
    empty: list[str] = field(default_factory=list)  # shards without a good sample
    unpacked: list[str] = field(default_factory=list)  # compressed shards, and what became of each
    passed_over: list[str] = field(default_factory=list)  # archives that are not among the shards
    turned: int = 0  # images that are turned upright by their EXIF orientation

    def add(self, shard: str, fault: Fault) -> None:
        """Count a fault."""
        self.bad[fault.error.reason] += 1
        self.examples.setdefault(fault.error.reason, str(fault.error))
        if fault.key is None:
            self.broken.append(f"{shard}: {fault.error.detail}")

    def exceed(self, max_bad_ratio: float) -> bool:
        """Whether more is bad than that share of all samples."""
        return self.bad.total() > max_bad_ratio * (self.bad.total() + self.good)

    def summary(self) -> str:
        """Every reason with its count and first example, in one line."""
        reasons = "; ".join(f"{n} {reason} ({self.examples[reason]})" for reason, n in self.bad.most_common())
        total = self.bad.total() + self.good
        return f"{self.bad.total()} of {total} samples of domain {self.domain} are bad: {reasons}"

    def left_out(self) -> str:
        """The end of a last line: how many samples were left out and why; "" where none was."""
        counts = ", ".join(f"{reason} {count}" for reason, count in self.bad.most_common())
        return f"; left out {self.bad.total()}: {counts}" if self.bad else ""

    def lines(self) -> list[str]:
        """What a user should know, most important first; none where all is well."""
        lines = [
            f"unpacked {each}: in a compressed tar no sample can be read by itself" for each in self.unpacked
        ]
        lines += [f"broken shard {each}; whatever came after that is lost" for each in self.broken]
        if self.turned:
            lines.append(
                f"{self.turned} images are turned upright by their EXIF orientation whenever they are read"
            )
        if self.bad:
            counts = ", ".join(f"{reason} {count}" for reason, count in self.bad.most_common())
            lines.append(f"left out {self.bad.total()} bad samples ({counts}), listed in {QUARANTINE}")
        if self.passed_over:
            lines.append(
                f"passed over {len(self.passed_over)} archives, which are in subfolders or of an ending that "
                f"is not read: {some(self.passed_over)}"
            )
        if self.empty:
            more = f" and {len(self.empty) - _NAMED} more" if len(self.empty) > _NAMED else ""
            lines.append(f"no good sample in {', '.join(self.empty[:_NAMED])}{more}")
        if self.ignored:
            counts = ", ".join(f".{kind} {count}" for kind, count in self.ignored.most_common())
            counts = counts.replace(".clutter", "clutter")
            pickles = any(kind.split(".")[-1] in _PICKLES for kind in self.ignored)
            lines.append(f"ignored members of other kinds: {counts}" + "; pickles are never read" * pickles)
        return lines


class _Rows(NamedTuple):
    """The arrays of an index as they grow, and its shards."""

    records: list[tuple[int, ...]]
    counts: list[npt.NDArray[np.uint32]]
    keys: list[bytes]
    shards: list[dict[str, Any]]


def index_folder(
    folder: Path | str,
    class_set: str,
    name: str | None = None,
    progress: Callable[[str, int], None] | None = None,
    max_bad_ratio: float = 0.0,
    endings: Endings = USUAL,
    prepared: Prepared | None = None,
) -> tuple[DomainIndex, Findings]:
    """Index the tar shards of a folder, whoever wrote them; compressed ones are unpacked beside themselves.

    Every image and label is decoded and checked. Bad samples up to ``max_bad_ratio`` of all are left out
    and listed in ``quarantine.jsonl``; of a shard that breaks off the samples before that are kept. Shards
    without a good sample are left out. The index appears whole: ``domain.json`` is written last.

    Args:
        folder: the domain folder; its shards are taken in the order of their names.
        class_set: the class set of the label ids, a name or a file of classes.
        name: the domain's name, by default that of the folder.
        progress: called after each shard with its name and the samples found so far.
        max_bad_ratio: 0 refuses the folder for a single bad sample.
        endings: what images and labels are called in the shards.
        prepared: how ``prepare`` made the shards; None keeps what an earlier index says of that.

    Raises:
        DataError: no folder, no samples, or an earlier index says that the ids are of another class set.
        BadSamples: (a UserError) more bad samples than allowed; the message gives every reason with its
            count and an example.
    """
    folder = Path(folder)
    wanted = find_class_set(class_set)
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; check the path, or {REMEDY}")
    before = None if prepared else _before(folder)
    _refuse_other_classes(folder, before, wanted.name)
    findings = Findings(name or folder.resolve().name)
    findings.passed_over = passed_over(folder)
    rows = _Rows([], [], [], [])
    draft = folder / f".{QUARANTINE}.{os.getpid()}"
    try:
        with writing(folder), draft.open("w", encoding="utf-8") as stream:
            _check_all(folder, wanted.num_classes, rows, findings, stream, progress, endings)
        if findings.exceed(max_bad_ratio):
            raise BadSamples(findings, _remedy(findings))
        if not rows.keys:
            over = f"; there are {some(findings.passed_over)}" * bool(findings.passed_over)
            raise DataError(
                f"{folder} holds no samples (pairs <key>.jpg and <key>.png in *.tar){over}; {REMEDY}"
            )
        with writing(folder):
            _write(folder, wanted, rows, findings, draft, prepared or (before.prepared if before else None))
    finally:
        draft.unlink(missing_ok=True)
    return DomainIndex.open(folder), findings


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


def _check_all(
    folder: Path,
    num_classes: int,
    rows: _Rows,
    findings: Findings,
    quarantine: TextIO,
    progress: Callable[[str, int], None] | None,
    endings: Endings,
) -> None:
    seen: set[bytes] = set()
    for path, problem in plain_shards(folder, findings.unpacked):
        before = len(rows.keys)
        checked = _checked(path, num_classes, findings, seen, endings) if problem is None else ()
        for found in itertools.chain(_unreadable(problem, f"{findings.domain}/{path.name}"), checked):
            if isinstance(found, Fault):
                findings.add(path.name, found)
                quarantine.write(json.dumps(_line(findings.domain, path.name, found)) + "\n")
            else:
                _add(rows, found)
                findings.turned += found.turned
        if len(rows.keys) > before:
            rows.shards.append(_describe(path, len(rows.keys) - before))
        else:
            findings.empty.append(path.name)
        findings.good = len(rows.keys)
        if progress is not None:
            progress(path.name, len(rows.keys))


def _unreadable(problem: str | None, where: str) -> list[Fault]:
    """The fault of a compressed shard that cannot be unpacked."""
    return [] if problem is None else [Fault(None, SampleError(where, "damaged", problem))]


def _checked(
    path: Path, num_classes: int, findings: Findings, seen: set[bytes], endings: Endings
) -> Iterator[CheckedSample | Fault]:
    """What a shard holds; a key that an earlier shard had is a fault."""
    where = f"{findings.domain}/{path.name}"
    for found in check_shard(path, num_classes, where, findings.ignored, endings):
        if isinstance(found, CheckedSample):
            key = found.key.encode("utf-8")
            if key in seen:
                here = f"{where} sample {printable(found.key)}"
                yield Fault(found.key, repeated_key(found.key, here))
                continue
            seen.add(key)
        yield found


def _add(rows: _Rows, sample: CheckedSample) -> None:
    spans = (*sample.image, *sample.label, *sample.json)
    checksums = (sample.image_crc, sample.label_crc)
    rows.records.append((len(rows.shards), *spans, sample.height, sample.width, *checksums))
    rows.counts.append(sample.counts)
    rows.keys.append(sample.key.encode("utf-8"))


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


def _write(
    folder: Path,
    class_set: ClassSet,
    rows: _Rows,
    findings: Findings,
    quarantine: Path,
    prepared: Prepared | None,
) -> None:
    (folder / NAME).unlink(missing_ok=True)  # an old one must not describe the new arrays
    _save(folder / "index.npy", np.array(rows.records, dtype=RECORD))
    _save(folder / "counts.npy", np.stack(rows.counts))
    _save(folder / "keys.npy", np.array(rows.keys, dtype=np.bytes_))
    if findings.bad:
        os.replace(quarantine, folder / QUARANTINE)
    else:
        (folder / QUARANTINE).unlink(missing_ok=True)
    meta: dict[str, Any] = {"version": VERSION, "name": findings.domain}
    meta |= {"class_set": class_set.name, "classes": list(class_set.classes)}
    meta |= {"num_samples": len(rows.keys), "turned": findings.turned, "shards": rows.shards}
    if prepared is not None:
        meta["prepared"] = prepared.model_dump()
    _replace(folder / NAME, json.dumps(meta, indent=2).encode("utf-8"))


def _describe(path: Path, samples: int) -> dict[str, Any]:
    size, digest = fingerprint(path)
    return {"name": path.name, "samples": samples, "bytes": size, "sha256": digest}


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
    os.replace(temporary, path)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
