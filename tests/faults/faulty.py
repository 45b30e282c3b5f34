"""``ppar-dist`` in which one rank goes wrong when a test asks for it, and ranks tell whom they have heard of.

python -m tests.faults.faulty FAULT RANK ARGUMENTS…

The fault ``none`` is for a rank that is struck from outside.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppar_dist.cli import parser
from ppar_dist.launch import front
from ppar_dist.launch.rank import is_rank

REFUSAL = "domain left: position 7 met 16 bad samples in a row; repair its shards"
STRIKE = "PPAR_TEST_STRIKE"  # a file: the fault happens once it is there; without it at the first chance
HEARD = (
    "PPAR_TEST_HEARD"  # a folder, in which each rank leaves a note when it has heard of steps of all others
)


def hang() -> None:
    """No step of a test takes so long."""
    time.sleep(3600)


def fail() -> None:
    """What nobody expected."""
    raise RuntimeError("a sum lacks a part")


def refuse() -> None:
    """What a user has to mend."""
    from ppar_dist.errors import UserError

    raise UserError(REFUSAL)


def when_asked(original: Callable[..., Any], fault: Callable[[], None]) -> Callable[..., Any]:
    """``original``, with ``fault`` before its first call after the test has asked for it."""
    file = os.environ.get(STRIKE)

    def faulty(*arguments: Any, **options: Any) -> Any:
        if file is None or os.path.exists(file):
            fault()
        return original(*arguments, **options)

    return faulty


def spoil(fault: str) -> None:
    """Put the fault where it belongs."""
    from ppar_dist.training import checkpointing, trainer

    if fault == "data":
        trainer.islice = when_asked(trainer.islice, hang)
    elif fault == "save":
        checkpointing.snapshot = when_asked(checkpointing.snapshot, hang)
    elif fault != "none":
        faults = {"forward": hang, "error": fail, "refusal": refuse}
        trainer.Trainer._loss = when_asked(trainer.Trainer._loss, faults[fault])


def note_what_is_heard() -> None:
    """A rank that is struck is named with the phase in which the others last heard of it: let them hear."""
    from ppar_dist.watchdog.exchange import Exchange

    note, its_hear = Path(os.environ[HEARD]) / f"rank-{os.environ['RANK']}", Exchange.hear

    def hear(self: Exchange, texts: dict[int, str]) -> None:
        its_hear(self, texts)
        others = [heard.report for heard in self.peers.values()]
        if len(others) == self.world.world_size - 1 and all(report.step > 0 for report in others):
            note.touch()

    Exchange.hear = hear  # type: ignore[method-assign]


def main() -> int:
    """The command, or one of its ranks; the launcher is told to start this module for them."""
    fault, rank, *arguments = sys.argv[1:]
    if is_rank():
        if HEARD in os.environ:
            note_what_is_heard()
        if os.environ["RANK"] == rank:
            spoil(fault)
        return parser.main(arguments[1:])  # without the name of the module it should have been
    deepspeed = front.COMMANDS["deepspeed"]
    front.COMMANDS["deepspeed"] = lambda ranks, nodes: [*deepspeed(ranks, nodes), __spec__.name, fault, rank]
    return parser.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
