"""A run to examine, and damage to its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppar_dist.checkpoint.layout import sealed
from ppar_dist.config.load import dump_config, parse_config
from ppar_dist.files.durable import fingerprint
from tests.ranks import tiny_config
from tests.unit.tiny_run import make_config, publish

Doctor = Callable[..., dict[str, Any]]  # options and sections of the configuration → checks by name
EXIT_CODES = {"ok": 0, "warning": 0, "failure": 78}  # by the status of a report


def flip(path: Path, offset: int = -1) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(bytes(content))


def begun(blocks: Path, tmp_path: Path, steps: tuple[int, ...] = (4, 6), **sections: Any) -> Path:
    """A run of the healthy configuration with checkpoints as training writes them, but for the optimiser."""
    config = parse_config(tiny_config(blocks, tmp_path / "run", checkpoint={"every": 4}, **sections))
    config.run.dir.mkdir()
    (config.run.dir / "config.yaml").write_text(dump_config(config))
    smaller = make_config(Path(), Path()).model
    for step in steps:
        publish(config.model_copy(update={"model": smaller}), step)
    return config.run.dir


def note(run: Path, **facts: Any) -> None:
    """Change facts of its origin in the manifest of the newest checkpoint."""
    path = last_manifest(run)
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | facts)))


def note_state(run: Path, **entries: Any) -> None:
    """Change the position of the newest checkpoint."""
    path = last_manifest(run).with_name("state.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    size, sha256 = fingerprint(path)
    files = json.loads(last_manifest(run).read_text())["files"]
    note(run, files=files | {path.name: {"bytes": size, "sha256": sha256}})


def last_manifest(run: Path) -> Path:
    """The manifest of the newest checkpoint."""
    return sorted(run.glob("checkpoints/step-*"))[-1] / "manifest.json"
