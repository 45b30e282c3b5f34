"""What rank 0 decides for all, on real ranks."""

from __future__ import annotations

import pytest

from tests.ranks import TIMEOUT_S, start_ranks


@pytest.mark.parametrize("ranks", [1, 2])
def test_rank_0_decides_and_refuses_for_all(ranks: int) -> None:
    processes = start_ranks([], ranks, ["tests.distributed.on_main"])
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * ranks, outputs
        assert all(f"rank {rank} done" in outputs[rank] for rank in range(ranks))
    finally:
        for process in processes:
            process.kill()
            process.wait()
