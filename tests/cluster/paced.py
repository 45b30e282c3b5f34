"""``ppar-dist`` whose training steps take a second each while the file $PPAR_TEST_PACE exists.

A test can so let a run go on until it has seen what it waits for, and end soon after, on any machine.

python -m tests.cluster.paced ARGUMENTS…
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from ppar_dist import cli, launch

STEP_S = 1.0
FILE = "PPAR_TEST_PACE"


def pace() -> None:
    """Slow the steps down."""
    from ppar_dist import trainer

    file, loss = Path(os.environ[FILE]), trainer.Trainer._loss

    def paced(self: trainer.Trainer, batch: Any) -> Any:
        if file.exists():
            time.sleep(STEP_S)
        return loss(self, batch)

    trainer.Trainer._loss = paced  # type: ignore[method-assign]


def main() -> int:
    """The command, or one of its ranks; the launcher is told to start this module for them."""
    arguments = sys.argv[1:]
    if launch.is_rank():
        pace()
        return cli.main(arguments[1:])  # without the name of the module it should have been
    deepspeed = launch.COMMANDS["deepspeed"]
    launch.COMMANDS["deepspeed"] = lambda ranks, nodes: [*deepspeed(ranks, nodes), __spec__.name]
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
