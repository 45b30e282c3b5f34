"""Which checkpoints are kept, and how others go: never one that is in use, never half."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Set
from pathlib import Path

from ppar_dist.checkpoint.finding import is_complete
from ppar_dist.checkpoint.layout import (
    DELETING,
    LATEST,
    WRITING,
    checkpoints_dir,
    list_checkpoints,
    list_replaced,
    own_name,
    step_of,
)
from ppar_dist.checkpoint.locking import alone
from ppar_dist.files.durable import sync_folder

log = logging.getLogger(__name__)


def retain(
    run: Path,
    keep_last: int,
    keep_every: int = 0,
    keep_steps: Set[int] = frozenset(),
    in_use: Set[Path] = frozenset(),
) -> list[Path]:
    """Delete the checkpoints that are no longer kept. A deletion that fails is a warning.

    Args:
        run: the run's folder.
        keep_last: the newest so many complete ones stay, 1 or more; a damaged one among them does not count.
        keep_every: those at multiples of so many steps stay; 0: none.
        keep_steps: those of these steps stay (the best).
        in_use: these stay, as does any that a process holds with ``reading``.

    Returns:
        The folders that went.
    """
    if keep_last < 1:
        raise ValueError(f"at least one checkpoint is kept, got keep_last={keep_last}; give 1 or more")
    _remove_all(run, DELETING)  # the other leftovers may belong to a write that is under way
    published = list_checkpoints(run)
    complete = [folder for folder in published if is_complete(folder)]
    if len(complete) < keep_last:
        return []
    names = {own_name(folder) for folder in in_use}
    older = published[: published.index(complete[-keep_last])]
    return [f for f in older if not _is_kept(f, keep_every, keep_steps, names) and discard(f)]


def clear_leftovers(run: Path) -> None:
    """Clear away what kills have left: half-written and half-deleted folders, and what was set aside.

    A checkpoint set aside whose place nothing took gets its name back: it may be the only whole one.
    Only for the one that writes, before it does.
    """
    for folder in reversed(list_replaced(run)):
        own = folder.with_name(own_name(folder))
        if own.exists():
            discard(folder)
        else:
            folder.rename(own)
    _remove_all(run, WRITING, DELETING, f".{LATEST}.")


def discard(folder: Path) -> bool:
    """Delete a checkpoint unless it is being read; a failure is a warning. Returns whether it is deleted."""
    doomed = folder.with_name(DELETING + folder.name.removeprefix("."))
    with alone(folder) as free:
        if not free:
            log.info("old checkpoint %s is being read, and stays for now", folder.name)
            return False
        try:
            # Renamed first: a deletion cut short must not leave something that looks like a checkpoint.
            folder.rename(doomed)
        except OSError as error:
            log.warning("old checkpoint %s could not be deleted: %s", folder, error)
            return False
        return remove(doomed)


def withdraw(folder: Path) -> None:
    """Delete a checkpoint whoever reads it: no job may resume from it.

    Raises:
        OSError: it could not even be renamed.
    """
    doomed = folder.with_name(DELETING + folder.name.removeprefix("."))
    folder.rename(doomed)
    sync_folder(doomed.parent)
    remove(doomed)


def remove(path: Path) -> bool:
    """Remove a file or a folder with all in it; a failure is a warning. Returns whether it was deleted."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s could not be deleted, the next save tries again: %s", path, error)
        return False
    return True


def _remove_all(run: Path, *beginnings: str) -> None:
    for beginning in beginnings:
        for path in checkpoints_dir(run).glob(beginning + "*"):
            remove(path)


def _is_kept(folder: Path, keep_every: int, keep_steps: Set[int], in_use: Set[str]) -> bool:
    step = step_of(folder) or 0
    at_multiple = keep_every > 0 and step % keep_every == 0
    return at_multiple or step in keep_steps or folder.name in in_use or folder.is_symlink()
