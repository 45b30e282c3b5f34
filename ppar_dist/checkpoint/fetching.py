"""A checkpoint that lies on object storage, brought to a folder of this machine once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ppar_dist.checkpoint.finding import verify
from ppar_dist.checkpoint.layout import (
    MANIFEST,
    CheckpointError,
    checkpoint_name,
    checkpoints_dir,
    read_manifest,
    step_of,
)
from ppar_dist.checkpoint.remote import RemoteRun
from ppar_dist.errors import UserError
from ppar_dist.storage.entries import hold, remove_unused, unused
from ppar_dist.storage.location import Location, Remote
from ppar_dist.storage.remote import Storage

UNUSED_DAYS = 7.0  # after which a download is removed
_SEAL = "manifest_sha256"

log = logging.getLogger(__name__)


def local_checkpoint(
    place: Location, which: str = "latest", storage: Storage | None = None
) -> tuple[Path, str]:
    """A path and ``which`` as they are; of a URL the checkpoint, downloaded, and ``latest``: itself."""
    if isinstance(place, Path):
        return place, which
    return fetched_checkpoint(place, which, storage), "latest"


def fetched_checkpoint(
    place: Remote, which: str = "latest", storage: Storage | None = None, folder: Path | None = None
) -> Path:
    """Download a checkpoint, unless this machine has it already, and verify it by content.

    It stays while this process lives. Those that nobody has used for ``UNUSED_DAYS``, nor uses now, go.

    Args:
        place: a run's ``checkpoint.remote``, or one of its checkpoints.
        which: ``latest`` or ``best`` (best on held-out source data), for a run.
        storage: how it is asked; None: with the usual patience.
        folder: where downloads are kept; None: one of this user in the temporary folder.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: there is no whole checkpoint there, or no choice.
        OSError: storage or disk fails.
    """
    storage = storage or Storage()
    single = step_of(Path(place.name))
    if single is not None and which != "latest":
        raise UserError(
            f"which={which} chooses among the checkpoints of a run, and {place} is one of them; leave it "
            "out, or give the run"
        )
    run = place.parent.parent if single is not None else place
    own = _own_folder(folder)
    below = own / hashlib.sha256(run.url.encode()).hexdigest()[:16]
    below.mkdir(exist_ok=True)
    with _locked(below):  # of several processes one downloads
        source = RemoteRun(run, storage)
        steps = [single] if single is not None else _wanted(source, which)
        found = _newest_whole(source, steps, below)
        if found is not None:
            hold(found)
    _clear(own)
    if found is not None:
        return found
    if which == "best" and source.steps():
        raise UserError(
            f"{place} has no best checkpoint; leave out which=best, or train with checkpoint.keep_best and "
            "train.eval_every"
        )
    what = "is not a whole checkpoint" if single is not None or steps else "holds no checkpoint of a run"
    raise UserError(
        f"{place} {what}; check the bucket and the prefix: it is the checkpoint.remote of a run, or one of "
        "its checkpoints"
    )


@contextlib.contextmanager
def _locked(run: Path, how: int = 0) -> Iterator[None]:
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | how)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # a process forked meanwhile has the file open, too


def _newest_whole(source: RemoteRun, steps: list[int], below: Path) -> Path | None:
    for step in reversed(steps):
        try:
            return _fetched(source, step, below)
        except CheckpointError as error:
            log.warning("checkpoint %s of %s is passed over: %s", checkpoint_name(step), source.place, error)
    return None


def _wanted(source: RemoteRun, which: str) -> list[int]:
    """Steps to try, the last one first."""
    steps = source.steps()
    if which == "latest":
        return steps
    for step in reversed(steps):
        try:
            best = source.state(step).get("best_step")
        except CheckpointError:
            continue
        return [best] if best in steps else []
    return []


def _fetched(source: RemoteRun, step: int, below: Path) -> Path:
    seal: str = source.manifest(step)[_SEAL]
    # A step that was replaced on storage lies beside what it replaced, which may be in use.
    final = checkpoints_dir(below / seal[:16]) / checkpoint_name(step)
    if (final / MANIFEST).exists() and not verify(final) and read_manifest(final).get(_SEAL) == seal:
        return final
    temporary = final.with_name(f".fetching-{final.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    source.fetch(step, temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    log.info("checkpoint %s of %s is in %s", final.name, source.place, final)
    return final


def _clear(own: Path) -> None:
    """Remove checkpoints of any run that are used no more."""
    for run in own.iterdir():
        for version in (run, *_folders_in(run)):  # earlier releases had one of each step
            for entry in unused(checkpoints_dir(version), UNUSED_DAYS):
                # Who begins to use one holds the lock.
                with contextlib.suppress(OSError), _locked(run, fcntl.LOCK_NB):
                    remove_unused(entry, UNUSED_DAYS)
                    entry.parent.rmdir()  # fails where others are in it
                    version.rmdir()


def _folders_in(run: Path) -> list[Path]:
    return [path for path in run.iterdir() if path.is_dir()] if run.is_dir() else []


def _own_folder(given: Path | None) -> Path:
    folder = given or Path(tempfile.gettempdir()) / f"ppar-dist-checkpoints-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if given is None and (folder.is_symlink() or folder.stat().st_uid != os.getuid()):
        raise UserError(f"{folder} is another user's; set TMPDIR to a folder of your own")
    return folder
