"""Storage of checkpoints: is it writable, large enough, and fast enough for a save at a preemption?"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from ppar_dist.checkpoint import list_checkpoints
from ppar_dist.checkpoint.remote import RemoteRun
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.findings import Check, Finding, counted, failure, ok, size, warning
from ppar_dist.doctor.probes import existing_parent, hash_rate, mount_of, probe_folder, write, write_rate
from ppar_dist.errors import UserError
from ppar_dist.run.facts import folder_bytes, read_manifest_only
from ppar_dist.run.mirror import open_mirror
from ppar_dist.storage.remote import Storage
from ppar_dist.text import duration, one_line

_PROBE_BYTES = 64 << 20
_QUICK_BYTES = 8 << 20
_FILES = 6  # of a checkpoint
_TRAPS = {
    "tmpfs": "is in memory: it is lost at a restart, and uses up what the job needs",
    "ramfs": "is in memory: it is lost at a restart, and uses up what the job needs",
    "overlay": "is a container's own layer: it is lost with the container",
    "fuse.s3fs": "renames by copying: a checkpoint does not appear atomically",
    "fuse.mount-s3": "cannot rename: a checkpoint cannot be published",
    "fuse.gcsfuse": "renames by copying: a checkpoint does not appear atomically",
    "fuse.rclone": "renames by copying: a checkpoint does not appear atomically",
}


@dataclass(frozen=True)
class SaveSize:
    """Size of one checkpoint, and where the figures come from."""

    bytes: int
    files: int
    seconds: float | None  # measured when it was written
    origin: str


def folder(case: ConfigCase) -> Finding:
    """``run.dir`` can be created and written: a probe is written, synchronised, renamed and deleted."""
    run = case.config.run.dir
    remedy = "give another run.dir, or get write permission from its owner"
    parent = existing_parent(run)
    inside = run.absolute().relative_to(parent).parts
    if inside and os.path.lexists(parent / inside[0]):
        return failure(f"cannot create run.dir {run}: {parent / inside[0]} is not a directory", remedy)
    try:
        with probe_folder(parent) as probe:
            write(probe / "one", 4096)
            (probe / "one").rename(probe / "other")
    except OSError as error:
        return failure(f"{parent} cannot be written ({error.strerror})", remedy, folder=str(parent))
    there = "exists" if parent == run.absolute() else f"will be created in {parent}"
    return ok(f"{run} {there}; writing, fsync and rename work", folder=str(parent))


def file_system(case: ConfigCase) -> Finding | None:
    """The file system under ``run.dir`` keeps files, and renames atomically."""
    kind, mount = mount_of(existing_parent(case.config.run.dir))
    if not kind:
        return None
    text = f"{kind} mounted at {mount}"
    if kind in _TRAPS:
        return warning(
            f"{text} {_TRAPS[kind]}", "put run.dir on a disk or a shared file system", type=kind, mount=mount
        )
    return ok(text, type=kind, mount=mount)


def space(case: ConfigCase) -> Finding | None:
    """Space for every checkpoint that is kept, and for the one being written."""
    expected = _expected(case)
    if expected is None:
        return None
    run = case.config.run.dir
    kept = _kept(case)
    there = sum(folder_bytes(path) for path in list_checkpoints(run))
    needed = max(expected.bytes, kept * expected.bytes - there)
    free = shutil.disk_usage(existing_parent(run)).free
    text = f"{size(free)} free; {counted(kept, 'checkpoint')} of {size(expected.bytes)} ({expected.origin})"
    text += f", {size(there)} of them there already" if there else ""
    facts = {
        "free_bytes": free,
        "needed_bytes": needed,
        "checkpoints": kept,
        "checkpoint_bytes": expected.bytes,
    }
    remedy = "free some, give another run.dir, or lower checkpoint.keep_last, or raise checkpoint.keep_every"
    if free < needed:
        return failure(f"{text}: {size(needed - free)} short", remedy, **facts)
    if free < 1.5 * needed:
        return warning(f"{text}: only {free / needed:.1f} times what is needed", remedy, **facts)
    return ok(text, **facts)


def inodes(case: ConfigCase) -> Finding | None:
    """Inodes for the files of these checkpoints."""
    expected = _expected(case)
    status = os.statvfs(existing_parent(case.config.run.dir))
    if expected is None or not status.f_files:  # some file systems create inodes on demand
        return None
    needed = _kept(case) * expected.files + 100  # and logs, predictions and the report
    text = f"{counted(status.f_favail, 'file')} can still be created, {needed:,} are needed"
    facts = {"free_inodes": status.f_favail, "needed_inodes": needed}
    if status.f_favail < needed:
        return failure(text, "delete files there, or give another run.dir", **facts)
    return ok(text, **facts)


def save_time(case: ConfigCase) -> Finding | None:
    """A checkpoint can be written between a preemption signal and the forced exit."""
    expected = _expected(case)
    if expected is None:
        return None
    try:
        rate = write_rate(existing_parent(case.config.run.dir), _QUICK_BYTES if case.quick else _PROBE_BYTES)
    except OSError as error:
        return failure(
            f"the writing probe failed ({error.strerror})", "free some space, or give another run.dir"
        )
    hashing = hash_rate()
    estimate = expected.bytes / rate + expected.bytes / hashing
    seconds, grace = max(estimate, expected.seconds or 0.0), case.config.faults.grace_s
    how = f"{size(rate)}/s written with fsync, {size(hashing)}/s hashed"
    text = f"a save of {size(expected.bytes)} takes about {duration(estimate)} ({how})"
    text += f"; the newest took {duration(expected.seconds)}" if expected.seconds else ""
    text += f"; faults.grace_s is {duration(grace)}"
    facts = {
        "seconds": round(seconds, 3),
        "grace_s": grace,
        "write_bytes_per_second": round(rate),
        "hash_bytes_per_second": round(hashing),
        "last_seconds": expected.seconds,
    }
    remedy = "raise faults.grace_s and the scheduler's own grace above it, or give a faster run.dir"
    if seconds > grace:
        return failure(f"{text}: a preempted job loses its work", remedy, **facts)
    if seconds > grace / 2:
        return warning(f"{text}: more than half of it", remedy, **facts)
    return ok(text, **facts)


def remote(case: ConfigCase) -> Finding | None:
    """``checkpoint.remote`` can be written, read, listed and removed from: a probe does all four."""
    if (place := case.config.checkpoint.remote) is None:
        return None
    remedy = "correct checkpoint.remote, or get the right to read, write, list and delete there"
    storage = Storage(min(case.config.faults.storage_s, 20.0))
    try:
        if open_mirror(case.config) is None or isinstance(place, Path):
            return None
        probe, content = place / "probes" / uuid.uuid4().hex, os.urandom(1 << 20)
        began = time.monotonic()
        storage.write(probe, content)
        seconds = time.monotonic() - began
        try:
            whole = storage.read(probe) == content
            listed = any(entry.name == probe.name for entry in storage.entries(probe.parent))
        finally:
            storage.remove(probe)
        steps = RemoteRun(place, storage).steps()
    except (OSError, UserError) as error:
        return failure(f"{place} does not work: {one_line(error)}", remedy)
    if not whole or not listed:
        return failure(f"{place}: what is written there is not read or listed as it was", remedy)
    there = (
        f"{counted(len(steps), 'checkpoint')}, the newest of step {steps[-1]}" if steps else "no checkpoint"
    )
    rate = len(content) / max(seconds, 1e-6)
    text = f"{place}: writing ({size(rate)}/s), reading, listing and removing work; it holds {there}"
    return ok(text, steps=steps, write_bytes_per_second=round(rate))


def _expected(case: ConfigCase) -> SaveSize | None:
    """Size of a checkpoint: that of the newest, else computed from the model; None where neither is known."""
    newest = next(iter(reversed(list_checkpoints(case.config.run.dir))), None)
    if newest is not None:
        facts = read_manifest_only(newest)
        if facts.bytes:
            return SaveSize(facts.bytes, len(facts.sizes()) + 1, facts.seconds, f"as {newest.name}")
    try:
        model = case.segmentor
    except UserError:
        return None  # the check of the model says why
    state = sum(value.numel() for value in model.state_dict().values())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    method = case.config.ppar
    teacher = state if method.enabled and method.bank.teacher != "student" else 0
    sources, classes = len(case.config.data.sources), case.classes.num_classes
    bank = sources * classes * (model.backbone.embed_dim + 2)
    average = trained if case.config.train.weight_average is not None else 0
    values = state + 2 * trained + teacher + average + bank  # fp32: the model, two moments and these
    return SaveSize(4 * values, _FILES, None, "computed from the model")


def _kept(case: ConfigCase) -> int:
    """The largest number of checkpoints on disk at the same time, including the one being written."""
    keep, train = case.config.checkpoint, case.config.train
    due = train.steps // keep.every if keep.every else 0
    last = min(keep.keep_last, max(1, due)) + 1
    best = 1 if keep.keep_best and train.eval_every else 0
    return last + best + (train.steps // keep.keep_every if keep.keep_every else 0)


CHECKS = (
    Check("run folder", folder),
    Check("file system", file_system),
    Check("space", space),
    Check("inodes", inodes),
    Check("save time", save_time),
    Check("remote", remote),
)
