"""What a save finds on storage, and what must hold afterwards, however it ended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from ppar_dist.checkpoint import (
    CheckpointError,
    JointSave,
    Snapshot,
    checkpoints_dir,
    find_checkpoint,
    list_checkpoints,
    publish,
    retain,
    verify,
)
from ppar_dist.checkpoint.joint import Files
from ppar_dist.checkpoint.publishing import write_part

OLD, NEW, NEXT = 1.0, 2.0, 3.0


@dataclass(frozen=True)
class Scene:
    """A run before a save."""

    name: str
    prepare: Callable[[Path], None]
    step: int  # of the save under attack
    holds: bool = True  # a whole checkpoint, so that there is one at every moment
    syncs: int = 7  # of files and of their folder, before it is published
    write: Callable[[Path, int], object] = lambda run, step: publish(run, snapshot(step, NEW))

    def save(self, run: Path) -> None:
        """The save under attack, with what belongs to it."""
        self.write(run, self.step)
        retain(run, 1)


def snapshot(step: int, value: float) -> Snapshot:
    """All kinds of files, small; ``value`` tells one from another."""
    full = torch.full((600,), value)
    tensors = {
        "model.safetensors": {"weight": full, "bias": full[:3].clone()},
        "optimizer.safetensors": {"exp_avg/weight": full.clone(), "exp_avg_sq/weight": full.clone()},
        "ppar.safetensors": {"sums": full.clone()},
        "rng.safetensors": {"rank-00000": torch.zeros(5056, dtype=torch.uint8)},
    }
    return Snapshot(step, tensors, {"state.json": json.dumps({"step": step})}, {"world_size": 1})


def _good(run: Path) -> None:
    publish(run, snapshot(10, OLD))


def _good_and_leftovers(run: Path) -> None:
    _good(run)
    for name in (".writing-step-00000007", ".deleting-step-00000003"):
        (checkpoints_dir(run) / name).mkdir()
        (checkpoints_dir(run) / name / "half").write_text("half")


def _set_aside(run: Path) -> None:
    _good(run)
    folder = checkpoints_dir(run) / "step-00000010"
    folder.rename(folder.with_name(".replaced-step-00000010.5"))


def _with_teacher(run: Path, step: int, value: float) -> Path:
    """A checkpoint whose teacher is that of step 10, where there is one."""
    teacher = {"teacher.safetensors": lambda: {"weight": torch.ones(600)}}
    earlier = checkpoints_dir(run) / "step-00000010"
    return publish(run, replace(snapshot(step, value), constant=teacher, same_in=earlier))


class _Board(dict[int, str]):
    """What two ranks say, in one process."""

    def __init__(self, rank: int, said: dict[int, str]) -> None:
        self.rank, self.said = rank, said

    def post(self, text: str) -> None:
        self.said[self.rank] = text

    def read(self, of: Iterable[int]) -> dict[int, str]:
        return {rank: self.said[rank] for rank in of if rank in self.said}


class _First(JointSave):
    """Rank 0, which lets rank 1 write when it would wait for it: the attacks are on one thread."""

    def collect(self) -> Files:
        part = {"optimizer-00001-of-00002.safetensors": {"exp_avg.weight": torch.full((600,), NEW)}}
        number, said = json.loads(self.board.read([0])[0])["save"], self.board.said  # type: ignore[attr-defined]
        other = JointSave(_Board(1, said), 1, 2, number, 10.0)  # type: ignore[arg-type]
        with suppress(CheckpointError):  # rank 0 hears of it
            write_part(self.run, Snapshot(self.step, part, {}, {}), other)
        return super().collect()


def _by_two_ranks(run: Path, step: int) -> None:
    joint = _First(_Board(0, {}), 0, 2, 1, 10.0)  # type: ignore[arg-type]
    object.__setattr__(joint, "run", run)
    object.__setattr__(joint, "step", step)
    publish(run, snapshot(step, NEW), joint)


SCENES = (
    Scene("a new step, then retention", _good_and_leftovers, 20),
    Scene("the same step again", _good, 10),
    Scene("after a kill that left the only one set aside", _set_aside, 20),
    Scene(
        "a teacher that stays the same is linked",
        lambda run: _with_teacher(run, 10, OLD),
        20,
        write=lambda run, step: _with_teacher(run, step, NEW),
    ),
    Scene("two ranks write it", _good, 20, syncs=9, write=_by_two_ranks),
    Scene("the first of a run", lambda run: None, 10, holds=False),
)


def value_of(folder: Path) -> float:
    """Which snapshot a checkpoint holds."""
    return float(load_file(folder / "model.safetensors")["weight"][0])


def faults_after(scene: Scene, run: Path) -> list[str]:
    """What is wrong with a run after an attacked save, and with the save after that."""
    faults = []
    found = find_checkpoint(run)
    if found is None:
        faults += ["no checkpoint is found"] if scene.holds else []
    elif verify(found) or value_of(found) not in (OLD, NEW):
        faults.append(f"{found.name} is neither the old nor the new one")
    if half := [folder.name for folder in list_checkpoints(run) if verify(folder)]:
        faults.append(f"{half} have a checkpoint's name but are not whole")
    latest = checkpoints_dir(run) / "latest"
    if latest.exists() and latest.read_text() not in ("step-00000010\n", "step-00000020\n"):
        faults.append(f"latest is {latest.read_text()!r}")
    folder = publish(run, snapshot(30, NEXT))
    retain(run, 1)
    left = sorted(path.name for path in checkpoints_dir(run).iterdir())
    if verify(folder) or find_checkpoint(run) != folder or value_of(folder) != NEXT:
        faults.append("the next save is not found")
    if left != ["latest", "step-00000030"] or latest.read_text() != "step-00000030\n":
        faults.append(f"the next save leaves {left}")
    return faults


def faults_of_error(scene: Scene, run: Path, error: str | None, reason: str, once: bool) -> list[str]:
    """What is wrong with how a save ended that met a failing call.

    Args:
        scene: of the save.
        run: the run's folder.
        error: what the save raised; None if it came through, because it could do without the call.
        reason: what the error must say.
        once: whether only one call failed, so that the clearing up after it worked.
    """
    steps = {folder.name: value_of(folder) for folder in list_checkpoints(run) if not verify(folder)}
    name = f"step-{scene.step:08d}"
    if error is None:
        return [] if steps.get(name) == NEW else [f"a save that raised nothing left {steps}"]
    faults = [] if reason in error and "was not written" in error else [f"unclear: {error}"]
    if once:
        if half := [path.name for path in checkpoints_dir(run).glob(".writing-*")]:
            faults.append(f"a save that failed left {half}")
        if NEW in steps.values():
            faults.append("a save that failed published a checkpoint")
        if scene.holds and OLD not in steps.values() and scene.prepare is not _set_aside:
            faults.append(f"the earlier checkpoint is missing: {steps}")
    return faults


def reset(run: Path, template: Path) -> None:
    """Put a run back to what a scene prepared."""
    shutil.rmtree(run, ignore_errors=True)
    if template.exists():
        shutil.copytree(template, run)
