"""A rank that asks rank 0: ``python -m tests.distributed.on_main``; prints what it got, and its error."""

from __future__ import annotations

import os

import pytest

from ppar_dist.distributed import rendezvous
from ppar_dist.errors import InUse, UserError


def refuse() -> int:
    """What rank 0 alone calls."""
    raise InUse(f"refused in process {os.getpid()}")


def main() -> None:
    """Ask twice, and show that the ranks still meet afterwards."""
    world = rendezvous.join(timeout_s=60)
    pids = world.gather(os.getpid())
    assert world.on_main(os.getpid) == pids[0]
    with pytest.raises(UserError, match=f"^refused in process {pids[0]}$"):
        world.on_main(refuse)
    assert world.gather(world.rank) == list(range(world.world_size))
    print(f"rank {world.rank} done")
    rendezvous.leave()


if __name__ == "__main__":
    main()
