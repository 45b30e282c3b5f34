"""``ppar-dist`` in which one rank goes wrong some steps after the start, with a checkpoint in between.

python -m tests.faults.faulty FAULT RANK ARGUMENTS…
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from ppar_dist import cli, launch

REFUSAL = "domain left: position 7 met 16 bad samples in a row; repair its shards"


def hang() -> None:
    """No step of a test takes so long."""
    time.sleep(3600)


def fail() -> None:
    """What nobody expected."""
    raise RuntimeError("a sum lacks a part")


def refuse() -> None:
    """What a user has to mend."""
    from ppar_dist.config import ConfigError

    raise ConfigError(REFUSAL)


def at_call(number: int, original: Callable[..., Any], fault: Callable[[], None]) -> Callable[..., Any]:
    """``original``, with ``fault`` before its call ``number``."""
    calls = 0

    def faulty(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            fault()
        return original(*arguments, **options)

    return faulty


def spoil(fault: str) -> None:
    """Put the fault where it belongs: at the eighth step, or the second checkpoint."""
    from ppar_dist import runfolder, trainer

    if fault == "data":
        trainer.islice = at_call(8, trainer.islice, hang)
    elif fault == "save":
        runfolder.RunFolder.snapshot = at_call(2, runfolder.RunFolder.snapshot, hang)
    else:
        faults = {"forward": hang, "error": fail, "refusal": refuse}
        trainer.Trainer._loss = at_call(8, trainer.Trainer._loss, faults[fault])


def main() -> int:
    """The command, or one of its ranks; the launcher is told to start this module for them."""
    fault, rank, *arguments = sys.argv[1:]
    if launch.is_rank():
        if os.environ["RANK"] == rank:
            spoil(fault)
        return cli.main(arguments[1:])  # without the name of the module it should have been
    deepspeed = launch.COMMANDS["deepspeed"]
    launch.COMMANDS["deepspeed"] = lambda ranks, nodes: [*deepspeed(ranks, nodes), __spec__.name, fault, rank]
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
