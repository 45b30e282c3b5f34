"""Attack a save at every call it makes to its storage, and say what was left.

    python -m tests.kill.points            # prints the table
    python -m tests.kill.points --thorough # every errno at every call

One process behind the shim imports everything once, then forks a child for each point: the child arms the
shim and saves a small checkpoint with all kinds of files; the shim kills it at the n-th call, or fails the
call. The parent then looks for the newest checkpoint, and saves another. n grows until a child comes through.
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
_CHILD_S = 30
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

    def attack(self, scene: Scene, number: int, mode: Mode, failure: int = 0) -> tuple[str, str | None, str]:
        """Save in a child. Returns the kind of call hit ("" if none), the error raised, the calls made."""
        reset(self.run, self.templates[scene.name])
        calls, answer = os.memfd_create("calls"), os.memfd_create("answer")
        child = os.fork()
        if child == 0:
            self._save(scene, number, mode, failure, calls, answer)
        self._wait(child)
        record, said = _text(calls), _text(answer)
        if said:
            hit, error = json.loads(said)
            return hit, error, record
        hit = [call for call in shim.read_calls(record) if call.kind == "hit"]
        if not hit:
            raise RuntimeError(f"a child of {scene.name!r}, call {number}, ended without being hit")
        return hit[0].path, None, record

    def _save(self, scene: Scene, number: int, mode: Mode, failure: int, calls: int, answer: int) -> None:
        error = None
        try:
            self.shim.shim_arm(os.fsencode(self.run.parent), number, mode, failure, calls)
            try:
                scene.save(self.run)
            except CheckpointError as raised:
                error = str(raised)
            self.shim.shim_disarm()
        except BaseException as raised:
            self.shim.shim_disarm()
            error = f"no CheckpointError but {type(raised).__name__}: {raised}"
        os.write(answer, json.dumps([self.shim.shim_hit().decode(), error]).encode())
        os._exit(0)

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
        number = 0
        kinds: list[str] = []
        while True:  # until a child comes through
            number += 1
            kind, error, _ = ground.attack(scene, number, Mode.KILL)
            if not kind:
                break
            kinds.append(kind)
            yield Point(scene.name, Mode.KILL.name, number, kind, "", faults_after(scene, ground.run))
        if error is not None:
            raise RuntimeError(f"a save that nobody attacked failed: {error}")
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
    kind, _, _ = ground.attack(scene, number, Mode.KILL_PARTIAL)
    return Point(scene.name, Mode.KILL_PARTIAL.name, number, kind, "", faults_after(scene, ground.run))


def _fail(ground: Range, scene: Scene, number: int, mode: Mode, failure: int) -> Point:
    kind, error, _ = ground.attack(scene, number, mode, failure)
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
        print(json.dumps({scene.name: ground.attack(scene, 0, Mode.COUNT)[2] for scene in SCENES}))
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
    """The calls of each scene's save, in order, when nobody attacks it."""
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
