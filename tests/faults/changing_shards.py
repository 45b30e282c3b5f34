"""``ppar-dist`` under which shards of a domain vanish and are rewritten once a step is reached.

python -m tests.faults.changing_shards STEP DOMAIN GONE REWRITTEN ARGUMENTS…

Each rank does so before it reads its data of that step, so that all see the change at the same position.
"""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path

from ppar_dist.cli.parser import main
from ppar_dist.watchdog import Watchdog
from tests.faults.held import hold

_ITS_PHASE = Watchdog.phase


def change(step: int, gone: Path, rewritten: Path) -> None:
    """Delete a shard and write zeros over another one before the data of ``step`` are read."""

    def phase(self: Watchdog, name: str, number: int) -> None:
        if name == "data" and number == step:
            gone.unlink(missing_ok=True)
            with rewritten.open("r+b", buffering=0) as shard:
                fcntl.flock(shard, fcntl.LOCK_EX)  # ranks come here at the same moment
                if shard.read(1) != b"\0":  # else another rank did, and writing again would be a later change
                    shard.seek(0)
                    shard.write(b"\0" * rewritten.stat().st_size)
        _ITS_PHASE(self, name, number)

    Watchdog.phase = phase


if __name__ == "__main__":
    domain = Path(sys.argv[2])
    change(int(sys.argv[1]), domain / sys.argv[3], domain / sys.argv[4])
    hold()
    sys.exit(main(sys.argv[5:]))
