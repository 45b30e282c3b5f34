"""Writing a checkpoint: all of it under a temporary name, then visible at once."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ppar_dist.checkpoint.joint import Files, Joint
from ppar_dist.checkpoint.layout import (
    FORMAT,
    LATEST,
    MANIFEST,
    REPLACED,
    WRITING,
    CheckpointError,
    checkpoint_name,
    checkpoints_dir,
    read_manifest,
    sealed,
)
from ppar_dist.checkpoint.retention import clear_leftovers, discard, remove
from ppar_dist.files import durable

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """All of a checkpoint, in memory of its own: training may continue while it is written.

    Attributes:
        step: steps taken.
        tensors: file name to tensors by name; on the CPU, contiguous, none sharing memory with another.
        texts: file name to content.
        facts: goes into the manifest (world size, hashes, versions).
        constant: file name to what gives such tensors, of files whose content is the same in all checkpoints
            of a run.
        same_in: an earlier checkpoint that holds the constant files: they become links to its own. None, or
            where it lacks one, or has it damaged: they are written.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    texts: Mapping[str, str]
    facts: Mapping[str, Any]
    constant: Mapping[str, Callable[[], Mapping[str, Tensor]]] = field(default_factory=dict)
    same_in: Path | None = None


def publish(run: Path, snapshot: Snapshot, joint: Joint | None = None) -> Path:
    """Write a checkpoint and make it visible at once; what kills have left is cleared away first.

    Once the folder bears its name the checkpoint counts: that ``latest`` cannot be replaced after that is a
    warning, because the search for the newest checkpoint does without.

    Args:
        run: the run's folder, made where it is missing.
        snapshot: what to write.
        joint: the other ranks, which write files of their own into the folder.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: whatever the failure; nothing was published and the checkpoints before it are whole.
    """
    began = time.monotonic()
    final = checkpoints_dir(run) / checkpoint_name(snapshot.step)
    temporary = final.with_name(WRITING + final.name)
    try:
        durable.make_folder(final.parent)
        clear_leftovers(run)
        temporary.mkdir()
        if joint is not None:
            joint.open()
        _fill(temporary, snapshot, began, joint)
        replaced = _make_visible(temporary, final)
    except Exception as error:  # whatever it is: safetensors, for one, has errors of its own for a full disk
        reason = f"{type(error).__name__}: {error}"
        if joint is not None:
            joint.cancel(reason)
        remove(temporary)
        raise CheckpointError(f"checkpoint {final.name} was not written: {reason}") from error
    _name_latest(final)
    if replaced is not None:
        discard(replaced)
    return final


def publish_fetched(run: Path, step: int, fetch: Callable[[Path], object]) -> Path:
    """Publish a checkpoint that comes from elsewhere as one that is written here.

    Args:
        run: the run's folder.
        step: of the checkpoint.
        fetch: fills an empty folder with a whole checkpoint; what it raises is raised, and nothing published.

    Returns:
        The checkpoint's folder.
    """
    final = checkpoints_dir(run) / checkpoint_name(step)
    temporary = final.with_name(WRITING + final.name)
    durable.make_folder(final.parent)
    clear_leftovers(run)
    temporary.mkdir()
    try:
        fetch(temporary)
        replaced = _make_visible(temporary, final)
    except Exception:
        remove(temporary)
        raise
    _name_latest(final)
    if replaced is not None:
        discard(replaced)
    return final


def write_part(run: Path, snapshot: Snapshot, joint: Joint) -> None:
    """Write the files of a rank other than 0 into the folder that rank 0 publishes.

    Raises:
        CheckpointError: whatever the failure; rank 0 is told, and publishes nothing.
    """
    name = checkpoint_name(snapshot.step)
    folder = checkpoints_dir(run) / (WRITING + name)
    try:
        joint.wait_until_open(folder)
        files = _write_files(folder, snapshot)
        durable.sync_folder(folder)
        joint.done(files)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        joint.failed(reason)
        raise CheckpointError(f"this rank's part of checkpoint {name} was not written: {reason}") from error


def _fill(folder: Path, snapshot: Snapshot, began: float, joint: Joint | None) -> None:
    files = _write_files(folder, snapshot)
    if joint is not None:
        files |= joint.collect()
    manifest = {
        "format": FORMAT,
        **snapshot.facts,
        "seconds": round(time.monotonic() - began, 3),
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "files": files,
    }
    durable.write(folder / MANIFEST, json.dumps(sealed(manifest), indent=1))
    durable.sync_folder(folder)


def _write_files(folder: Path, snapshot: Snapshot) -> Files:
    """Write, sync and read back all files of a snapshot; bytes and sha256 of each."""
    files = {}
    for name, write in _files(snapshot):
        path = folder / name
        if name in snapshot.constant and (entry := _linked(path, snapshot.same_in)) is not None:
            files[name] = entry
            continue
        write(path)
        durable.sync(path)
        size, sha256 = durable.fingerprint(path, from_storage=True)
        files[name] = {"bytes": size, "sha256": sha256}
    return files


def _linked(path: Path, earlier: Path | None) -> dict[str, Any] | None:
    """Make ``path`` the file that an earlier checkpoint has, and read it; None where that does not work.

    It is one file then: it takes no room again, and stays as long as one checkpoint has it.
    """
    if earlier is None:
        return None
    try:
        entry = read_manifest(earlier)["files"][path.name]
        os.link(earlier / path.name, path)
        if durable.fingerprint(path, from_storage=True) == (entry["bytes"], entry["sha256"]):
            return {"bytes": entry["bytes"], "sha256": entry["sha256"], "linked": True}
        log.warning("%s is damaged, and is written again", earlier / path.name)
    except (OSError, ValueError, KeyError) as error:  # deleted meanwhile, or storage without links
        log.info("%s is written, not linked: %s: %s", path.name, type(error).__name__, error)
    path.unlink(missing_ok=True)
    return None


def _files(snapshot: Snapshot) -> Iterator[tuple[str, Callable[[Path], object]]]:
    names = [*snapshot.constant, *snapshot.tensors, *snapshot.texts]
    wrong = [name for name in names if name == MANIFEST or PurePosixPath(name).name != name]
    if wrong or not names or len(set(names)) < len(names):
        raise ValueError(f"a snapshot holds files of distinct plain names, got {', '.join(names) or 'none'}")
    for name, give in snapshot.constant.items():
        yield name, partial(_write_tensors, give=give)
    for name, tensors in snapshot.tensors.items():
        yield name, partial(_write_tensors, give=partial(dict, tensors))
    for name, text in snapshot.texts.items():
        yield name, partial(Path.write_text, data=text, encoding="utf-8")


def _write_tensors(path: Path, give: Callable[[], Mapping[str, Tensor]]) -> None:
    from safetensors.torch import save_file  # late: who only reads a run needs no torch

    save_file(dict(give()), path)
    # It leaves files that their owner alone may read; evaluation may be another user's.
    path.chmod(path.parent.stat().st_mode & 0o666)


def _make_visible(temporary: Path, final: Path) -> Path | None:
    """Give the folder its name, durably. Returns where the checkpoint is that bore the name before.

    At every moment the old one or the new one can be found: the search also looks at what is set aside.
    """
    aside = final.with_name(f"{REPLACED}{final.name}.{time.time_ns()}") if final.exists() else None
    try:
        if aside is not None:
            final.rename(aside)
        temporary.rename(final)
        durable.sync_folder(final.parent)
    except OSError:
        _withdraw(temporary, final, aside)
        raise
    return aside


def _withdraw(temporary: Path, final: Path, aside: Path | None) -> None:
    try:
        if not temporary.exists():
            final.rename(temporary)
        if aside is not None and aside.exists():
            aside.rename(final)
    except OSError as error:
        log.warning("%s could not be put back, the next save tries again: %s", final, error)


def _name_latest(final: Path) -> None:
    try:
        durable.write_atomically(final.parent / LATEST, final.name + "\n")
    except OSError as error:
        log.warning("%s could not be named in %s: %s", final.name, final.parent / LATEST, error)
