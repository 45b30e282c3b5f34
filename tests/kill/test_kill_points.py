"""A save is killed, and fails, at every call it makes to its storage; a whole checkpoint is always there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.kill import points, shim
from tests.kill.scenes import SCENES
from tests.kill.shim import Call

pytestmark = pytest.mark.skipif(shim.missing() is not None, reason=f"no attacks: {shim.missing()}")

# What safetensors does past the C library, so past the shim: a temporary file gets its name, unpublished yet.
_BY_ITSELF = re.compile(r'renameat\(.*/\.writing-step-\d+/\.tmp\w+".*/\.writing-step-\d+/\w+\.safetensors"')


@pytest.fixture(scope="module")
def calls() -> dict[str, list[Call]]:
    return points.recorded()


def test_a_whole_checkpoint_survives_every_kill_and_every_failing_call() -> None:
    found = points.run()
    print("\n" + points.table(found))
    assert [point for point in found if point.faults] == []
    for scene in SCENES:
        killed = [point.call for point in found if (point.scene, point.mode) == (scene.name, "KILL")]
        assert killed == list(range(1, len(killed) + 1))
        assert len(killed) > 30


@pytest.mark.parametrize("scene", [scene.name for scene in SCENES])
def test_all_is_synced_before_it_is_published(calls: dict[str, list[Call]], scene: str) -> None:
    made = calls[scene]
    at = published(made)
    before, after, folder = made[:at], made[at + 1 :], made[at].path
    parent = os.path.dirname(folder)
    for number, call in enumerate(before):
        inside = call.path.startswith(folder + "/")
        if inside and call.kind == "write":
            assert synced(before[number:], call.inode), f"{call} is published before it is synced"
        if inside and call.kind in ("create", "rename", "link"):
            folder_inode = made[at].inode
            assert synced(before[number:], folder_inode), f"{call}: its folder is not synced afterwards"
    syncs = sum(call.kind == "fsync" and call.path.startswith(folder) for call in before)
    assert syncs == next(each.syncs for each in SCENES if each.name == scene)
    assert after[0].kind == "fsync", "the first thing after the rename is to sync it"
    assert after[0].path == parent


@pytest.mark.parametrize("scene", [scene.name for scene in SCENES])
def test_latest_is_named_last_and_durably(calls: dict[str, list[Call]], scene: str) -> None:
    made = calls[scene]
    (at,) = (i for i, call in enumerate(made) if call.kind == "rename" and call.other.endswith("/latest"))
    assert at > published(made) + 1
    written = max(
        i for i, call in enumerate(made[:at]) if call.inode == made[at].inode and call.kind == "write"
    )
    assert synced(made[written:at], made[at].inode)
    assert (made[at + 1].kind, made[at + 1].path) == ("fsync", os.path.dirname(made[at].other))


@pytest.mark.parametrize("scene", [scene.name for scene in SCENES])
def test_nothing_whole_is_deleted_before_the_new_one_is_durable(
    calls: dict[str, list[Call]], scene: str
) -> None:
    made = calls[scene]
    for call in made[: published(made) + 2]:
        if call.kind in ("unlink", "rmdir"):
            assert re.search(r"/\.(writing|deleting)-step-0000000[37]", call.path), call


def test_new_folders_are_synced_into_those_above(calls: dict[str, list[Call]]) -> None:
    made = calls[SCENES[-1].name]
    for number, call in enumerate(made):
        if call.kind == "mkdir" and ".writing-" not in call.path:
            assert (made[number + 1].kind, made[number + 1].path) == ("fsync", os.path.dirname(call.path))
    assert [call.kind for call in made[:4]] == ["mkdir", "fsync", "mkdir", "fsync"]


def published(calls: list[Call]) -> int:
    """Where a written folder gets its name."""
    (at,) = (
        number
        for number, call in enumerate(calls)
        if call.kind == "rename" and "/.writing-" in call.path and "/step-" in call.other
    )
    assert os.path.dirname(calls[at].path) == os.path.dirname(calls[at].other)
    return at


def synced(calls: list[Call], inode: int) -> bool:
    """Whether any of the calls syncs a file or folder, whatever it is named by then."""
    return any(call.kind == "fsync" and call.inode == inode for call in calls)


KINDS = {
    "openat": "create",
    "open": "create",
    "creat": "create",
    "unlinkat": "unlink",
    "linkat": "link",
    "renameat": "rename",
    "renameat2": "rename",
    "mkdirat": "mkdir",
    "pwrite64": "write",
    "fchmod": "chmod",
    "fchmodat": "chmod",
}
SAVE = """
import pathlib, sys
from tests.kill.scenes import SCENES
SCENES[1].save(pathlib.Path(sys.argv[1]))
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
def test_no_call_that_changes_the_storage_escapes_the_shim(
    calls: dict[str, list[Call]], tmp_path: Path
) -> None:
    """The kernel's own record of a save agrees with the shim's, but for safetensors' renames."""
    run, trace = tmp_path / "run", tmp_path / "trace"
    SCENES[1].prepare(run)
    traced = "trace=%file,%desc,fchmod,fallocate,ftruncate,mmap,msync"
    command = ["strace", "-f", "-y", "-qq", "-s", "4096", "-o", str(trace), "-e", traced]
    done = subprocess.run(
        [*command, sys.executable, "-c", SAVE, str(run)], timeout=300, capture_output=True, text=True
    )
    if "ptrace" in done.stderr.lower():
        pytest.skip(f"strace may not trace here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    seen, past = Counter[str](), 0
    for line in trace.read_text().splitlines():
        call = line.split(maxsplit=1)[1]
        if str(run) not in call or not changes(call):
            continue
        if _BY_ITSELF.match(call):
            past += 1
            continue
        name = call.partition("(")[0]
        seen["rmdir" if "AT_REMOVEDIR" in call else KINDS.get(name, name)] += 1
    assert past == 4
    assert seen == Counter(call.kind for call in calls[SCENES[1].name])


def changes(call: str) -> bool:
    """Whether a line of strace's is a call that changes or syncs what it names."""
    name = call.partition("(")[0]
    if name in ("open", "openat"):
        return "O_CREAT" in call
    if name == "mmap":
        return "MAP_SHARED" in call and "PROT_WRITE" in call
    reads = "stat|statx|newfstatat|fstat|lstat|access|faccessat2?|readlink|readlinkat|getdents64|read|pread64"
    reads += "|close|lseek|ioctl|fcntl|flock|fadvise64|getcwd|chdir|fstatfs|statfs|execve|dup|dup2|poll|mmap"
    return not re.fullmatch(reads, name) and "(" in call
