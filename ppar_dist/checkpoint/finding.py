"""Which checkpoint to take: what is wrong with one, the newest whole one, the one a path means."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from ppar_dist.checkpoint.layout import (
    FORMAT,
    MANIFEST,
    READABLE,
    STATE,
    checkpoint_name,
    is_sealed,
    list_candidates,
    own_name,
    read_state,
    step_of,
)
from ppar_dist.checkpoint.locking import CheckpointGone, reading
from ppar_dist.errors import UserError
from ppar_dist.files.durable import fingerprint

_TRIES = 5  # while a training run publishes and deletes what is being looked for

log = logging.getLogger(__name__)


def verify(folder: Path) -> list[str]:
    """What is wrong with a checkpoint: an empty list when every listed file is there, whole and unchanged.

    Files that the manifest does not list are not a fault. A name or link that leads out of the folder is one,
    and is not followed.
    """
    return _problems(folder, by_content=True)


def is_complete(folder: Path) -> bool:
    """Whether every listed file is there in its full size: what can be known without reading them."""
    return not _problems(folder, by_content=False)


def find_checkpoint(run: Path, before: int | None = None) -> Path | None:
    """The newest checkpoint of ``run`` that verifies, passing over damaged ones; None if there is none.

    The log says which was taken, and why others were not. With ``before`` only checkpoints of that step or
    an earlier one are looked at.
    """
    for _ in range(_TRIES):
        candidates = _of_steps(list_candidates(run), before)
        for folder in reversed(candidates):
            problems = verify(folder)
            if not problems:
                log.info("checkpoint %s is taken, the newest whole one of %d", folder.name, len(candidates))
                return folder
            log.warning("checkpoint %s is passed over: %s", folder.name, "; ".join(problems))
        if _of_steps(list_candidates(run), before) == candidates:
            break  # else one was published or deleted under our eyes
    return None


def _of_steps(candidates: list[Path], before: int | None) -> list[Path]:
    return [folder for folder in candidates if before is None or (step_of(folder) or 0) <= before]


def resolve(path: Path, which: str = "latest") -> Path:
    """The checkpoint folder meant by a run folder or a checkpoint folder.

    Args:
        path: a run, or one of its checkpoints.
        which: ``latest`` or ``best`` (best on held-out source data); of a checkpoint only ``latest``, which
            is itself.

    Raises:
        UserError: there is no whole checkpoint there, or no choice.
    """
    if not path.is_dir():
        raise UserError(f"no run or checkpoint at {path}; give the run.dir of a training run")
    if (path / STATE).exists() or (path / MANIFEST).exists():
        problems = verify(path)
        if problems:
            raise UserError(f"checkpoint {path} is damaged: {'; '.join(problems)}; use another one")
        if which != "latest":
            raise UserError(
                f"which={which} chooses among the checkpoints of a run, and {path} is one model; leave it "
                "out, or give the run"
            )
        return path
    newest = find_checkpoint(path)
    if newest is None:
        raise UserError(f"{path} holds no whole checkpoint; train first, or give another run")
    if which == "latest":
        return newest
    name = checkpoint_name(int(read_state(newest).get("best_step") or 0))
    for folder in reversed(list_candidates(path)):
        if own_name(folder) == name and not verify(folder):
            return folder
    raise UserError(f"{path} kept no best checkpoint; set checkpoint.keep_best and train.eval_every")


@contextmanager
def opened(path: Path, which: str = "latest") -> Iterator[Path]:
    """Resolve a path to a checkpoint and lock it: it is not deleted before the block ends.

    Args:
        path: a run, or one of its checkpoints.
        which: ``latest`` or ``best``, as for ``resolve``.

    Raises:
        UserError: there is no whole checkpoint there.
    """
    with ExitStack() as held:
        for _ in range(_TRIES):
            folder = resolve(path, which)
            try:
                held.enter_context(reading(folder))
                break
            except CheckpointGone as error:
                gone = str(error)
        else:
            raise UserError(gone)
        yield folder


def _problems(folder: Path, by_content: bool) -> list[str]:
    if _leads_out(folder, MANIFEST):
        return [f"{MANIFEST} is a link out of the checkpoint"]
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        written = manifest["format"]
        if written not in READABLE:
            return [_other_format(written)]
        if not is_sealed(manifest):
            return [f"{MANIFEST} differs from what was written (its own sha256)"]
        files = manifest["files"].items()
        listed = [(name, int(entry["bytes"]), str(entry["sha256"])) for name, entry in files]
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [f"{MANIFEST} is unreadable ({type(error).__name__}: {error})"]
    problems = (_file_problem(folder, name, size, sha256, by_content) for name, size, sha256 in listed)
    return [problem for problem in problems if problem] if listed else [f"{MANIFEST} lists no files"]


def _other_format(written: object) -> str:
    if isinstance(written, int) and written < FORMAT:
        return (
            f"format {written} was written by an earlier version of ppar_dist, this one reads "
            f"{READABLE[0]} to {FORMAT}; "
            "continue with that version, or train again in another run.dir"
        )
    return f"format {written} is not {FORMAT} or an earlier one, as this version reads"


def _file_problem(folder: Path, name: str, size: int, sha256: str, by_content: bool) -> str | None:
    if not file_names_stay_inside((name,)) or _leads_out(folder, name):
        return f"{name!r} leads out of the checkpoint"
    path = folder / name
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return f"{name} is not a file"
        if found.st_size != size:
            return f"{name} has {found.st_size} bytes, {size} were written"
        if by_content and fingerprint(path) != (size, sha256):
            return f"{name} differs from what was written (sha256)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} is unreadable ({error.strerror})"
    return None


def file_names_stay_inside(names: Iterable[str]) -> bool:
    """Whether none of the names that a manifest lists leads out of its folder by itself."""
    pure = [(name, PurePosixPath(name)) for name in names]
    return not any("\0" in name or path.is_absolute() or ".." in path.parts for name, path in pure)


def _leads_out(folder: Path, name: str) -> bool:
    try:
        return not (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return True
