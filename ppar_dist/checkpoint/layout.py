"""The files and folders of a run's checkpoints: names, and the two files that are read as text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 4
READABLE = (3, 4)  # 3 held all moments in one file, and a frozen teacher in METHOD
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
METHOD = "ppar.safetensors"
FROZEN = "frozen.safetensors"
TEACHER = "teacher.safetensors"
GENERATOR = "rng.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
LATEST = "latest"
WRITING = ".writing-"
REPLACED = ".replaced-"
DELETING = ".deleting-"

_SEAL = "manifest_sha256"
_NAME = re.compile(r"step-([0-9]+)")
_MOMENTS_NAME = re.compile(r"optimizer-\d+-of-\d+\.safetensors")
_REPLACED_NAME = re.compile(re.escape(REPLACED) + r"(step-[0-9]+)\.([0-9]+)")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, and the ones before it are untouched; or not be held for reading."""


def checkpoints_dir(run: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run / "checkpoints"


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint taken after ``step`` steps."""
    return f"step-{step:08d}"


def moments_name(rank: int, ranks: int) -> str:
    """The file of the moments that a rank writes."""
    return OPTIMIZER if ranks == 1 else f"optimizer-{rank:05d}-of-{ranks:05d}.safetensors"


def is_of_moments(name: str) -> bool:
    """Whether a file of a checkpoint holds moments."""
    return name == OPTIMIZER or _MOMENTS_NAME.fullmatch(name) is not None


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint folder's name, also of one set aside; None for any other name."""
    match = _NAME.fullmatch(own_name(folder))
    return int(match[1]) if match else None


def own_name(folder: Path) -> str:
    """The name of a folder, or the one it bore before it was set aside."""
    aside = _REPLACED_NAME.fullmatch(folder.name)
    return aside[1] if aside else folder.name


def list_checkpoints(run: Path) -> list[Path]:
    """All published checkpoints of a run, oldest first."""
    found = [path for path in checkpoints_dir(run).glob("step-*") if path.is_dir()]
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=_order)


def list_replaced(run: Path) -> list[Path]:
    """Checkpoints set aside while their step was published again, oldest first; a kill may leave them."""
    found = [path for path in checkpoints_dir(run).glob(REPLACED + "*") if path.is_dir()]
    return sorted((path for path in found if _REPLACED_NAME.fullmatch(path.name)), key=_order)


def list_candidates(run: Path) -> list[Path]:
    """All checkpoints that may be taken, oldest first: one set aside counts while nothing took its place."""
    aside = [folder for folder in list_replaced(run) if not folder.with_name(own_name(folder)).exists()]
    return sorted([*aside, *list_checkpoints(run)], key=_order)


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint."""
    state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return state


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with the hash of all its other entries, by which damage to itself is found."""
    entries = {name: value for name, value in manifest.items() if name != _SEAL}
    return entries | {_SEAL: hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()}


def is_sealed(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest is the one that was written."""
    return bool(manifest.get(_SEAL) == sealed(manifest)[_SEAL])


def read_manifest(folder: Path) -> dict[str, Any]:
    """``manifest.json`` of a checkpoint."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _order(folder: Path) -> tuple[int, int, str]:
    aside = _REPLACED_NAME.fullmatch(folder.name)
    return step_of(folder) or 0, int(aside[2]) if aside else 0, folder.name
