"""Checkpoints of a run on object storage: published whole, or not at all.

::

    <remote>/
      owner.json                                   whose run it is, and which job writes (checkpoint/owner.py)
      checkpoints/step-00001200/manifest.json      as on disk; without it there is no checkpoint
      blobs/SHA256                                 the files that manifests list, by their content
      config.yaml  classes.json  metrics/  …       records and scores, for a fresh machine (run/mirror.py)

Files go first, the manifest last, and an object appears whole: a kill at any request leaves the checkpoints
before it. A file of the same content, as a frozen tower, is there once. Deletion goes the other way round:
the manifest first, then the files that no manifest lists any more, also those that kills have left.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppar_dist.checkpoint.finding import file_names_stay_inside, verify
from ppar_dist.checkpoint.layout import (
    MANIFEST,
    READABLE,
    STATE,
    CheckpointError,
    checkpoint_name,
    is_sealed,
    step_of,
)
from ppar_dist.files import durable
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Storage

_CHECKPOINTS, _BLOBS = "checkpoints", "blobs"

_SHA256 = re.compile("[0-9a-f]{64}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteRun:
    """The checkpoints below a URL."""

    place: Remote
    storage: Storage

    def steps(self) -> list[int]:
        """Steps of the checkpoints that have a manifest, rising; whether they are whole is not looked at."""
        found = (step_of(Path(entry.name)) for entry in self.storage.entries(self.place / _CHECKPOINTS))
        return sorted(step for step in found if step is not None)

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of a checkpoint.

        Raises:
            CheckpointError: it is missing, damaged, or of another version.
        """
        return parsed_manifest(self._read_manifest(step))

    def problems(self, step: int) -> list[str]:
        """Why a checkpoint cannot be whole, as far as sizes tell; empty where they are right."""
        try:
            files = self.manifest(step)["files"]
        except CheckpointError as error:
            return [str(error)]
        there = self._blobs()
        return [
            f"{name} has {there.get(entry['sha256'], 'no')} bytes, {entry['bytes']} were written"
            for name, entry in files.items()
            if there.get(entry["sha256"]) != entry["bytes"]
        ]

    def publish(
        self, folder: Path, may_write: Callable[[], object] = lambda: None, last: int | None = None
    ) -> int:
        """Copy a checkpoint there; one of the same step is replaced at once.

        Args:
            folder: a whole checkpoint, which must not be deleted meanwhile.
            may_write: called before what others can see changes; raises where another job has the place.
            last: checkpoints of later steps than this go first: the run has rolled back behind them. None:
                all stay.

        Returns:
            Bytes that were sent.

        Raises:
            CheckpointError: a file there is not what was sent.
            OSError, UserError: as ``Storage``.
        """
        content, sent = (folder / MANIFEST).read_bytes(), 0
        manifest = parsed_manifest(content)
        step = step_of(folder)
        assert step is not None, "a published checkpoint"
        may_write()
        for later in (each for each in self.steps() if last is not None and each > last):
            self.storage.remove(self._manifest_place(later))
        there = self._blobs()
        for name, entry in manifest["files"].items():
            if there.get(entry["sha256"]) != entry["bytes"]:
                self.storage.upload(folder / name, self.place / _BLOBS / entry["sha256"])
                sent += entry["bytes"]
        if (folder / MANIFEST).read_bytes() != content:  # a rollback has written the same step again
            for entry in manifest["files"].values():  # may be of the other one, under a wrong name
                if entry["sha256"] not in there:
                    self.storage.remove(self.place / _BLOBS / entry["sha256"])
            raise CheckpointError(f"{folder.name} was written again while it was copied")
        there = self._blobs() if sent else there
        if short := [name for name, e in manifest["files"].items() if there.get(e["sha256"]) != e["bytes"]]:
            raise CheckpointError(f"{self.place} does not hold {', '.join(short)} after it was written")
        may_write()
        self.storage.write(self._manifest_place(step), content)
        return sent + len(content)

    def retain(self, keep: Callable[[list[int]], Set[int]], may_write: Callable[[], object]) -> None:
        """Delete the checkpoints that are no longer kept, and all files that no manifest lists.

        Args:
            keep: which of the steps that are there stay.
            may_write: as for ``publish``.
        """
        steps = self.steps()
        kept = keep(steps)
        may_write()
        for step in steps:
            if step not in kept:
                self.storage.remove(self._manifest_place(step))
        self._clear(may_write)

    def _clear(self, may_write: Callable[[], object]) -> None:
        needed: set[str] = set()
        for step in self.steps():
            try:
                # Whatever its version or seal: what it may need stays.
                files = json.loads(self._read_manifest(step))["files"]
                needed |= {str(entry["sha256"]) for entry in files.values()}
            except (ValueError, TypeError, KeyError, AttributeError, CheckpointError) as error:
                log.warning("%s: what it needs cannot be read, nothing is deleted: %s", self._at(step), error)
                return
        may_write()
        for name in self._blobs():
            if name not in needed and _SHA256.fullmatch(name):
                self.storage.remove(self.place / _BLOBS / name)

    def abort_uploads(self) -> int:
        """Give up the uploads of large files that killed jobs have begun; returns how many there were."""
        return self.storage.abort_uploads(self.place / _BLOBS)

    def withdraw(self, step: int) -> None:
        """Remove a checkpoint's manifest: it counts no more."""
        self.storage.remove(self._manifest_place(step))

    def fetch(self, step: int, folder: Path) -> None:
        """Download a checkpoint into an empty folder and verify it.

        Raises:
            CheckpointError: it is not whole.
            OSError, UserError: as ``Storage``, or the disk fails.
        """
        raw = self._read_manifest(step)
        fetch_files(self.storage, raw, self.place / _BLOBS, folder, str(self._at(step)))

    def state(self, step: int) -> dict[str, Any]:
        """``state.json`` of a checkpoint.

        Raises:
            CheckpointError: it is not whole.
        """
        return remote_state(self.storage, self.manifest(step), self.place / _BLOBS)

    def _blobs(self) -> dict[str, int]:
        return {entry.name: entry.bytes for entry in self.storage.entries(self.place / _BLOBS)}

    def _read_manifest(self, step: int) -> bytes:
        try:
            return self.storage.read(self._manifest_place(step))
        except FileNotFoundError:
            raise CheckpointError(f"{self._at(step)} has no {MANIFEST}") from None

    def _at(self, step: int) -> Remote:
        return self.place / _CHECKPOINTS / checkpoint_name(step)

    def _manifest_place(self, step: int) -> Remote:
        return self._at(step) / MANIFEST


def parsed_manifest(raw: bytes) -> dict[str, Any]:
    """A manifest that is what was written, and names no file outside of its folder.

    Raises:
        CheckpointError: it is not.
    """
    try:
        manifest = json.loads(raw)
        if manifest["format"] not in READABLE:
            raise CheckpointError(f"format {manifest['format']} is not one that this version reads")
        whole = is_sealed(manifest) and all(
            isinstance(entry["bytes"], int) and str(entry["sha256"]).isalnum()
            for entry in manifest["files"].values()
        )
        if not whole or not manifest["files"] or not file_names_stay_inside(manifest["files"]):
            raise CheckpointError(f"{MANIFEST} differs from what was written")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{MANIFEST} is unreadable ({type(error).__name__})") from None
    checked: dict[str, Any] = manifest
    return checked


def fetch_files(storage: Storage, raw: bytes, blobs: Remote, folder: Path, name: str) -> None:
    """Download what a manifest lists, and then the manifest; all is synced and verified by content.

    Raises:
        CheckpointError: it is not whole.
    """
    for file, entry in parsed_manifest(raw)["files"].items():
        try:
            storage.download(blobs / entry["sha256"], folder / file)
        except FileNotFoundError:
            raise CheckpointError(f"{name}: {file} is missing") from None
        durable.sync(folder / file)
    durable.write(folder / MANIFEST, raw)
    durable.sync_folder(folder)
    if problems := verify(folder):
        raise CheckpointError(f"{name}: {'; '.join(problems)}")


def remote_state(storage: Storage, manifest: dict[str, Any], blobs: Remote) -> dict[str, Any]:
    """``state.json`` that a manifest lists.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        sha256 = manifest["files"][STATE]["sha256"]
        raw = storage.read(blobs / sha256)
        if hashlib.sha256(raw).hexdigest() != sha256:
            raise CheckpointError(f"{STATE} differs from what was written")
        state: dict[str, Any] = json.loads(raw)
    except (FileNotFoundError, KeyError):
        raise CheckpointError(f"{STATE} is missing") from None
    return state
