"""What rank 0 decides for all, on real ranks."""

from __future__ import annotations

import pytest

from ppar_dist.distributed import rendezvous
from ppar_dist.errors import UserError
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


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, r"2 ranks of one machine \(MASTER_ADDR=127.0.0.1\) need LOCAL_RANK"),
        ({"LOCAL_RANK": "1"}, "got 1 on a machine that shows 1; start as many ranks as GPUs"),
    ],
)
def test_ranks_do_not_share_a_gpu(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, str], message: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    here = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    with pytest.raises(UserError, match=message):
        rendezvous.join(here | more)
