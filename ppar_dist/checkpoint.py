"""Checkpoints: published whole, or not at all.

::

    <run>/checkpoints/
      step-00001200/
        engine/               parameters and optimiser, as DeepSpeed wrote them (all ranks)
        model.safetensors     the bare model, for evaluate, predict and export
        ppar.safetensors      prototype bank and statistics
        state.json            step, samples_seen, stage, best score
        rng/rank-00000.pt     generator state of each rank
        manifest.json         every file: bytes, sha256; world size, config hash, data fingerprints, versions
      latest                  a name, replaced atomically, last

All ranks write into a temporary folder; after a barrier rank 0 hashes what lies there, writes the
manifest, renames the folder and replaces ``latest``. A reader therefore sees a whole checkpoint or none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppar_dist.config import ConfigError
from ppar_dist.distributed import World

FORMAT = 1
MANIFEST = "manifest.json"
LATEST = "latest"
_PREFIX = "step-"
_TEMPORARY = ".writing-"
_CHUNK = 1 << 20

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the ones before it are untouched."""


def checkpoints_dir(run: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run / "checkpoints"


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint taken after ``step`` steps."""
    return f"{_PREFIX}{step:08d}"


def publish(run: Path, step: int, write: Callable[[Path], None], facts: dict[str, Any], world: World) -> Path:
    """Write a checkpoint with ``write(folder)`` on every rank and make it visible at once. Collective.

    Args:
        run: the run's folder.
        step: steps taken.
        write: writes this rank's files below the folder it is given; may itself be collective.
        facts: goes into the manifest (world size, hashes, versions).
        world: the ranks.

    Raises:
        CheckpointError: on every rank alike, when any rank failed; nothing was published.
    """
    final = checkpoints_dir(run) / checkpoint_name(step)
    temporary = final.with_name(_TEMPORARY + final.name)
    _agree(world, _attempt(lambda: _fresh_folder(temporary)) if world.is_main else None, final)
    _agree(world, _attempt(lambda: write(temporary)), final)
    _agree(world, _attempt(lambda: _make_visible(temporary, final, facts)) if world.is_main else None, final)
    return final


def verify(folder: Path) -> list[str]:
    """What is wrong with a checkpoint: an empty list when every file is there, whole and unchanged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            return [f"format {manifest['format']} is not {FORMAT}, the one this version reads"]
        listed = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST} is unreadable ({type(error).__name__}: {error})"]
    problems = (_file_problem(folder, name, *expected) for name, expected in listed.items())
    return [problem for problem in problems if problem]


def find_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of ``run`` that verifies, passing over damaged ones; None if there is none."""
    for folder in reversed(list_checkpoints(run)):
        problems = verify(folder)
        if not problems:
            return folder
        log.warning("checkpoint %s is passed over: %s", folder.name, "; ".join(problems))
    return None


def list_checkpoints(run: Path) -> list[Path]:
    """All published checkpoints of a run, oldest first."""
    found = (path for path in checkpoints_dir(run).glob(_PREFIX + "*") if path.is_dir())
    return sorted((path for path in found if path.name[len(_PREFIX) :].isdigit()), key=lambda path: path.name)


def resolve(path: Path, which: str = "latest") -> Path:
    """The checkpoint folder meant by a run folder or a checkpoint folder.

    Args:
        path: a run, or one of its checkpoints.
        which: ``latest`` or ``best`` (best on held-out source data), for a run.

    Raises:
        ConfigError: there is no whole checkpoint there.
    """
    if not path.is_dir():
        raise ConfigError(f"no run or checkpoint at {path}; give the run.dir of a training run")
    if (path / "state.json").exists() or (path / MANIFEST).exists():
        problems = verify(path)
        if problems:
            raise ConfigError(f"checkpoint {path} is damaged: {'; '.join(problems)}; use another one")
        return path
    newest = find_checkpoint(path)
    if newest is None:
        raise ConfigError(f"{path} holds no whole checkpoint; train first, or give another run")
    if which == "latest":
        return newest
    best = checkpoints_dir(path) / checkpoint_name(int(read_state(newest).get("best_step") or 0))
    if verify(best):
        raise ConfigError(f"{path} kept no best checkpoint; set checkpoint.keep_best and train.eval_every")
    return best


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return state


def read_manifest(folder: Path) -> dict[str, Any]:
    """``manifest.json`` of a checkpoint."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def retain(run: Path, keep_last: int, keep_steps: set[int]) -> list[Path]:
    """Delete all checkpoints but the last ``keep_last`` and those of ``keep_steps``; returns what went.

    A deletion that fails is a warning: training goes on.
    """
    kept = {checkpoint_name(step) for step in keep_steps}
    deleted = []
    for folder in list_checkpoints(run)[:-keep_last]:
        if folder.name in kept:
            continue
        try:
            # Renamed first: a deletion cut short must not leave something that looks like a checkpoint.
            doomed = folder.with_name(".deleting-" + folder.name)
            folder.rename(doomed)
            shutil.rmtree(doomed)
            deleted.append(folder)
        except OSError as error:
            log.warning("old checkpoint %s could not be deleted: %s", folder, error)
    return deleted


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file so that readers see the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _fresh_folder(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)


def _make_visible(temporary: Path, final: Path, facts: dict[str, Any]) -> None:
    names = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
    files = {name: _describe(temporary / name) for name in names}
    for name in names:
        _sync(temporary / name)
    manifest = {"format": FORMAT, **facts, "files": files}
    write_atomically(temporary / MANIFEST, json.dumps(manifest, indent=1))
    if final.exists():
        # The same step again, after a resume from an older checkpoint: the content is the same by design.
        shutil.rmtree(final)
    temporary.rename(final)
    _sync(final.parent)
    write_atomically(final.parent / LATEST, final.name + "\n")


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _file_problem(folder: Path, name: str, size: int, sha256: str) -> str | None:
    path = folder / name
    try:
        actual = path.stat().st_size
        if actual != size:
            return f"{name} has {actual} bytes, {size} were written"
        return (
            None if _describe(path)["sha256"] == sha256 else f"{name} differs from what was written (sha256)"
        )
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} is unreadable ({error.strerror})"


def _attempt(action: Callable[[], None]) -> str | None:
    """Run ``action``; its failure as text, because the other ranks must hear of it before anybody raises."""
    try:
        action()
    except Exception as error:  # whatever it is: safetensors, for one, has errors of its own for a full disk
        return f"{type(error).__name__}: {error}"
    return None


def _agree(world: World, problem: str | None, final: Path) -> None:
    problems = world.gather(problem)
    failed = [f"rank {rank}: {text}" for rank, text in enumerate(problems) if text]
    if failed:
        raise CheckpointError(f"checkpoint {final.name} was not written: {'; '.join(failed)}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
