"""Attack a save at every call it makes to its storage, and say what was left.

    python -m tests.kill.points            # prints the table
    python -m tests.kill.points --thorough # every errno at every call

One process behind the shim imports everything once, then forks a child for each kill: the child arms the
shim and saves a small checkpoint with all kinds of files, and the shim kills it at the n-th call; n grows
until a child comes through. Calls that fail need no child. After each the parent looks for the newest
checkpoint, and saves another.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ppar_dist.checkpoint import CheckpointError
from tests.kill import shim
from tests.kill.scenes import SCENES, Scene, faults_after, faults_of_error, reset
from tests.kill.shim import Call, Mode

ERRNOS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
LABELS = {
    Mode.KILL: "killed before",
    Mode.KILL_PARTIAL: "killed half-way",
    Mode.FAIL: "fails once",
    Mode.FAIL_ON: "fails from then on",
    Mode.SHORT: "writes half",
}
_CHILD_S = 120
_ALL_S = 900


@dataclass(frozen=True)
class Point:
    """One attack and what came of it."""

    scene: str
    mode: str
    call: int
    kind: str
    error: str
    faults: list[str]


class Range:
    """Where the attacks take place: a folder in memory, so that thousands of syncs take seconds."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.templates = {scene.name: folder / f"template-{i}" for i, scene in enumerate(SCENES)}
        for scene in SCENES:
            scene.prepare(self.templates[scene.name])
        self.shim = shim.load()

    def kill(self, scene: Scene, number: int, mode: Mode) -> str:
        """Save in a child that the shim kills at a call. Returns the kind of call, "" if it came through."""
        reset(self.run, self.templates[scene.name])
        calls = os.memfd_create("calls")
        child = os.fork()
        if child == 0:
            try:
                self._save(scene, number, mode, 0, calls)
            finally:
                os._exit(0)
        self._wait(child)
        hit = [call.path for call in shim.read_calls(_text(calls)) if call.kind == "hit"]
        return hit[0] if hit else ""

    def fail(self, scene: Scene, number: int, mode: Mode, failure: int) -> tuple[str, str | None]:
        """Save here, and let the shim fail a call. Returns its kind and what the save raised."""
        reset(self.run, self.templates[scene.name])
        error = self._save(scene, number, mode, failure)
        return self.shim.shim_hit().decode(), error

    def record(self, scene: Scene) -> str:
        """Save here, undisturbed. Returns the shim's record of the calls."""
        reset(self.run, self.templates[scene.name])
        calls = os.memfd_create("calls")
        error = self._save(scene, 0, Mode.COUNT, 0, calls)
        if error is not None:
            raise RuntimeError(f"a save without a fault failed: {error}")
        return _text(calls)

    def _save(self, scene: Scene, number: int, mode: Mode, failure: int, calls: int = -1) -> str | None:
        self.shim.shim_arm(os.fsencode(self.run.parent), number, mode, failure, calls)
        try:
            scene.save(self.run)
        except CheckpointError as error:
            return str(error)
        except Exception as error:
            return f"no CheckpointError but {type(error).__name__}: {error}"
        finally:
            self.shim.shim_disarm()
        return None

    @staticmethod
    def _wait(child: int) -> None:
        until = time.monotonic() + _CHILD_S
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > until:
                os.kill(child, 9)
                os.waitpid(child, 0)
                raise RuntimeError(f"a save under attack hangs for {_CHILD_S} s")
            time.sleep(0.0005)


def attack_all(ground: Range, thorough: bool) -> Iterator[Point]:
    """Every scene, every call, every way."""
    for scene in SCENES:
        kinds: list[str] = []
        while kind := ground.kill(scene, len(kinds) + 1, Mode.KILL):  # until a child comes through
            kinds.append(kind)
            yield Point(scene.name, Mode.KILL.name, len(kinds), kind, "", faults_after(scene, ground.run))
        if len(kinds) != len(shim.read_calls(ground.record(scene))):
            raise RuntimeError(f"{scene.name}: a save makes other calls than those attacked")
        for number, kind in enumerate(kinds, 1):
            if kind.startswith(("write", "pwrite")):
                yield _kill_half_way(ground, scene, number)
                yield _fail(ground, scene, number, Mode.SHORT, 0)
            once = ERRNOS if thorough else (ERRNOS[number % len(ERRNOS)],)
            for failure in once:
                yield _fail(ground, scene, number, Mode.FAIL, failure)
            for failure in once if thorough else (errno.EROFS,):
                yield _fail(ground, scene, number, Mode.FAIL_ON, failure)


def _kill_half_way(ground: Range, scene: Scene, number: int) -> Point:
    kind = ground.kill(scene, number, Mode.KILL_PARTIAL)
    return Point(scene.name, Mode.KILL_PARTIAL.name, number, kind, "", faults_after(scene, ground.run))


def _fail(ground: Range, scene: Scene, number: int, mode: Mode, failure: int) -> Point:
    kind, error = ground.fail(scene, number, mode, failure)
    reason = os.strerror(failure) if failure else "nothing"
    faults = faults_of_error(scene, ground.run, error, reason, once=mode is not Mode.FAIL_ON)
    name = errno.errorcode.get(failure, "")
    return Point(scene.name, mode.name, number, kind, name, faults + faults_after(scene, ground.run))


def table(points: list[Point]) -> str:
    """Call by kind of attack: survived of tried."""
    tried = Counter((point.kind, point.mode) for point in points)
    whole = Counter((point.kind, point.mode) for point in points if not point.faults)
    rows = [["call", *LABELS.values()]]
    for kind in sorted({point.kind for point in points}):
        cells = [(kind, mode.name) for mode in LABELS]
        rows.append([kind, *(f"{whole[c]} of {tried[c]}" if tried[c] else "–" for c in cells)])
    sums = [
        sum(n for (_, m), n in count.items() if m == mode.name) for mode in LABELS for count in (whole, tried)
    ]
    rows.append(["all", *(f"{sums[i]} of {sums[i + 1]}" for i in range(0, len(sums), 2))])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def main() -> int:
    """Without the shim: build it and start again behind it. Exit code 1 if an attack did harm."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--thorough", action="store_true", help="every errno at every call")
    parser.add_argument("--attack", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable()
    if options.attack:
        print(json.dumps([asdict(point) for point in attack_all(Range(options.attack), options.thorough)]))
        return 0
    if options.record:
        ground = Range(options.record)
        print(json.dumps({scene.name: ground.record(scene) for scene in SCENES}))
        return 0
    if (why := shim.missing()) is not None:
        sys.exit(f"no attacks: {why}")
    points = run(options.thorough)
    print(table(points))
    for point in (point for point in points if point.faults):
        print(point)
    return int(any(point.faults for point in points))


def run(thorough: bool = False) -> list[Point]:
    """Attack in a process of its own, behind the shim."""
    return [Point(**point) for point in json.loads(_behind_the_shim("--attack", thorough))]


def recorded() -> dict[str, list[Call]]:
    """The calls of each scene's save, in order, without a fault."""
    return {scene: shim.read_calls(text) for scene, text in json.loads(_behind_the_shim("--record")).items()}


def _behind_the_shim(what: str, thorough: bool = False) -> str:
    with tempfile.TemporaryDirectory() as built, memory_folder() as folder:
        arguments = ["-m", "tests.kill.points", what, folder, *(["--thorough"] if thorough else [])]
        return shim.run_python(shim.build(Path(built)), arguments, _ALL_S)


def memory_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder, in memory where there is one."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)


def _text(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, size, 0).decode()
    os.close(descriptor)
    return text


if __name__ == "__main__":
    sys.exit(main())
