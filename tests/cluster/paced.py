"""``ppar-dist`` whose training steps last as long as a file says, while there is one.

The file, ``$PPAR_TEST_PACE``, holds SECONDS and FROM: steps from number FROM on (the first is 0) last at
least SECONDS. So a test can let a run go on to where it wants it, and keep it there until it has seen what it
waits for, on a machine of any speed.

python -m tests.cluster.paced ARGUMENTS…
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from ppar_dist.cli import parser
from ppar_dist.files.durable import write_atomically
from ppar_dist.launch import front, rank

FILE = "PPAR_TEST_PACE"
_LOOK_S = 0.05


def set_pace(file: Path, seconds: float, from_step: int = 0) -> None:
    """Make each step from ``from_step`` on last at least so long; also the one that is being done."""
    write_atomically(file, f"{seconds} {from_step}")


def pace() -> None:
    """Make this rank look at the file."""
    from ppar_dist.training import trainer

    file, loss = Path(os.environ[FILE]), trainer.Trainer._loss

    def paced(self: trainer.Trainer, batch: Any, *rest: Any) -> Any:
        began = time.monotonic()
        while time.monotonic() - began < _least(file, self.state.step):
            time.sleep(_LOOK_S)
        return loss(self, batch, *rest)

    trainer.Trainer._loss = paced  # type: ignore[method-assign]


def _least(file: Path, step: int) -> float:
    try:
        seconds, from_step = file.read_text().split()
    except FileNotFoundError:
        return 0.0
    return float(seconds) if step >= int(from_step) else 0.0


def main() -> int:
    """The command, or one of its ranks; the launcher is told to start this module for them."""
    arguments = sys.argv[1:]
    if rank.is_rank():
        pace()
        return parser.main(arguments[1:])  # without the name of the module it should have been
    for name, command in front.COMMANDS.items():
        front.COMMANDS[name] = lambda ranks, nodes, command=command: [*command(ranks, nodes), __spec__.name]
    return parser.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
