"""A rank that hangs, fails or refuses when a test asks for it; ranks that tell whom they have heard of."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.sabotage.hooks import at_phase

REFUSAL = "domain left: position 7 met 16 bad samples in a row; repair its shards"


def hang() -> None:
    """No step of a test takes so long."""
    time.sleep(3600)


def fail() -> None:
    """An unexpected error."""
    raise RuntimeError("a sum lacks a part")


def refuse() -> None:
    """What a user has to mend."""
    from ppar_dist.errors import UserError

    raise UserError(REFUSAL)


def lose_the_gpu() -> None:
    """What torch raises where a device has failed."""
    import torch

    raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCompile with TORCH_USE")


def fill_the_gpu() -> None:
    """What torch raises where a batch does not fit."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 16 GiB")


FAULTS = {
    "data": ("data", hang),
    "forward": ("forward", hang),
    "save": ("save", hang),
    "error": ("forward", fail),
    "refusal": ("forward", refuse),
    "gpu": ("backward", lose_the_gpu),
    "memory": ("backward", fill_the_gpu),
}


def spoil(kind: str, rank: str, strike: str = "") -> None:
    """Have the fault happen once the file ``strike`` is there; at the first chance without one."""
    if os.environ.get("RANK", "0") != rank:
        return
    phase, fault = FAULTS[kind]
    at_phase(phase, lambda _: fault() if not strike or os.path.exists(strike) else None)


def note_what_is_heard(folder: str) -> None:
    """A rank that is struck is named with the phase in which the others last heard of it: let them hear."""
    from ppar_dist.watchdog.exchange import Exchange

    note, its_hear = Path(folder) / f"rank-{os.environ['RANK']}", Exchange.hear

    def hear(self: Exchange, texts: dict[int, str]) -> None:
        its_hear(self, texts)
        others = [heard.report for heard in self.peers.values()]
        if len(others) == self.world.world_size - 1 and all(report.step > 0 for report in others):
            note.touch()

    Exchange.hear = hear  # type: ignore[method-assign]
