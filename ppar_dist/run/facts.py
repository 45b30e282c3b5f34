"""What a run's folder holds, read without trusting any of it: damage is a fact here, never an error."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppar_dist.checkpoint import LATEST, MANIFEST, STATE, checkpoints_dir, list_checkpoints, verify
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.files.jsonl import Line, read
from ppar_dist.run import paths
from ppar_dist.run.early_stop import is_over
from ppar_dist.run.origin import refuse_another_start
from ppar_dist.run.state import TrainState

_LEFTOVERS = (".writing-", ".deleting-")
_SHOWN = ("step", "samples_seen", "stage", "loss/total")


@dataclass(frozen=True)
class CheckpointFacts:
    """One published checkpoint; ``manifest`` and ``state`` are {} where they cannot be read."""

    path: Path
    problems: list[str]
    manifest: dict[str, Any]
    state: dict[str, Any]
    files: dict[str, str]  # name → "whole", or what is wrong with it

    @property
    def whole(self) -> bool:
        """Whether every file is there, whole and unchanged."""
        return not self.problems

    @property
    def bytes(self) -> int:
        """What its files were written with, by the manifest; 0 where that cannot be read."""
        return sum(self.sizes().values())

    @property
    def seconds(self) -> float | None:
        """How long it took to write, where its manifest says so."""
        value = self.manifest.get("seconds")
        return float(value) if isinstance(value, (int, float)) and value > 0 else None

    def sizes(self) -> dict[str, int]:
        """Bytes of each file by the manifest."""
        files = self.manifest.get("files")
        if not isinstance(files, dict):
            return {}
        sizes = {name: _whole_number(entry, "bytes") for name, entry in files.items()}
        return {name: size for name, size in sizes.items() if size is not None}

    def step(self) -> int | None:
        """Steps taken when it was written; by its name where the state cannot be read."""
        step = _whole_number(self.state, "step")
        number = self.path.name.rpartition("-")[2]
        return step if step is not None or not number.isdigit() else int(number)


@dataclass
class LogFacts:
    """One file of JSON lines: what a reader can use of it, and what not."""

    records: int = 0
    last: dict[str, Any] | None = None  # the last record that could be read
    cut: bool = False  # the last line has no end: a job is writing it, or was killed
    unreadable: list[int] = field(default_factory=list)  # numbers of other lines that are not a JSON object
    problem: str | None = None  # the file as a whole cannot be read


def read_checkpoint(folder: Path) -> CheckpointFacts:
    """Everything about one checkpoint folder; every file is hashed."""
    try:
        problems = verify(folder)
    except Exception as error:  # a manifest can name anything, also what is not a path at all
        problems = [f"{MANIFEST} is unreadable ({type(error).__name__}: {error})"]
    manifest = _json_object(folder / MANIFEST)
    return CheckpointFacts(
        folder, problems, manifest, _json_object(folder / STATE), _files(folder, manifest, problems)
    )


def read_manifest_only(folder: Path) -> CheckpointFacts:
    """What a checkpoint's manifest says, without a look at the files it lists."""
    return CheckpointFacts(folder, [], _json_object(folder / MANIFEST), {}, {})


def read_checkpoints(run: Path) -> list[CheckpointFacts]:
    """All published checkpoints of a run, oldest first; those that a job deleted meanwhile are left out."""
    found = [read_checkpoint(folder) for folder in list_checkpoints(run)]
    return [facts for facts in found if facts.path.is_dir()]


def read_latest(run: Path) -> str | None:
    """The name in ``latest``; None where there is no such file, or it cannot be read."""
    try:
        return (checkpoints_dir(run) / LATEST).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def finished(config: Config, facts: Callable[[], Mapping[str, Any]]) -> str | None:
    """The name of the last checkpoint of a run that has all its steps, table and report; None for another.

    A table or report older than that checkpoint is of a run that had fewer steps.

    Args:
        config: what is asked for.
        facts: gives what determines its result: hashes of configuration, text and sources.

    Raises:
        UserError: it began with other weights than ``init_from`` asks for.
    """
    run, last = config.run.dir, read_latest(config.run.dir) or ""
    files = [paths.REPORT, *([paths.RESULTS] if config.targets else [])]
    if not last or any(_is_older(run / name, checkpoints_dir(run) / last / MANIFEST) for name in files):
        return None
    try:
        stored = load_config(paths.config_file(run))
    except UserError:
        return None
    found = read_manifest_only(checkpoints_dir(run) / last)
    same = all(found.manifest.get(name) == value for name, value in facts().items() if name != "config")
    if not same or stored.targets != config.targets or not has_ended(found, config):
        return None
    refuse_another_start(config, TrainState.from_json(_json_object(found.path / STATE)))
    return last if read_checkpoint(found.path).whole else None  # a damaged one is trained again


def _is_older(path: Path, than: Path) -> bool:
    """Whether a file was written before another one, or either is not there."""
    try:
        return path.stat().st_mtime_ns < than.stat().st_mtime_ns
    except OSError:
        return True


def last_step(config: Config) -> int | None:
    """The step with which a run is over; None where it is not."""
    name = read_latest(config.run.dir)
    if not name:
        return None
    last = read_manifest_only(checkpoints_dir(config.run.dir) / name)
    return last.step() if has_ended(last, config) else None


def has_ended(found: CheckpointFacts, config: Config) -> bool:
    """Whether a run is over with a checkpoint: it has all steps, or stops early there."""
    noted, step = found.state or _json_object(found.path / STATE), found.step() or 0
    state = TrainState(step, evaluations_since=_whole_number(noted, "evaluations_since") or 0)
    return is_over(state, config.train)


def leftovers(run: Path) -> dict[str, int]:
    """Folders that a save or a deletion left unfinished, with their bytes."""
    folder = checkpoints_dir(run)
    if not folder.is_dir():
        return {}
    found = (path for path in folder.iterdir() if path.name.startswith(_LEFTOVERS))
    return {path.name: folder_bytes(path) for path in sorted(found)}


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for path in _below(folder):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def read_log(path: Path, count: Counter[str] | None = None, key: str = "kind") -> LogFacts | None:
    """A file of JSON lines; None where there is no such file.

    Args:
        path: the file.
        count: counts the values of ``key`` over the records.
        key: see ``count``.
    """
    if not path.exists():
        return None
    facts = LogFacts()
    try:
        for line in read(path):
            _take_line(facts, line, count, key)
    except OSError as error:
        facts.problem = error.strerror or str(error)
    return facts


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines that can be read, and none where storage fails."""
    with contextlib.suppress(OSError):
        yield from (line.record for line in read(path) if line.record is not None and not line.is_cut)


def last_logged(log: LogFacts | None) -> dict[str, Any] | None:
    """Step and loss of the last readable line of ``metrics/train.jsonl``."""
    if log is None or log.last is None:
        return None
    return {key: log.last[key] for key in _SHOWN if key in log.last}


def _take_line(facts: LogFacts, line: Line, count: Counter[str] | None, key: str) -> None:
    if line.is_cut:
        facts.cut = True
        return
    if line.record is None:
        facts.unreadable.append(line.number)
        return
    facts.records += 1
    facts.last = line.record
    if count is not None:
        count[str(line.record.get(key, "unknown"))] += 1


def _files(folder: Path, manifest: dict[str, Any], problems: list[str]) -> dict[str, str]:
    listed = manifest.get("files")
    names = list(listed) if isinstance(listed, dict) else []
    states = {}
    for name in names:
        said = (text.removeprefix(f"{name} ") for text in problems if text.startswith(f"{name} "))
        states[name] = next(said, "whole")
    there = (path.relative_to(folder).as_posix() for path in sorted(_below(folder)))
    extra = {name: "not in the manifest" for name in there if name not in states and name != MANIFEST}
    return states | extra


def _below(folder: Path) -> Iterator[Path]:
    """The files below a folder; unlike rglob this survives a job that deletes some of them meanwhile."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent) / name for name in names)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _whole_number(record: Any, key: str) -> int | None:
    value = record.get(key) if isinstance(record, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
