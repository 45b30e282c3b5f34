"""Whether the ranks' prototypes are still the same, bit for bit.

Each rank computes its own state from the reduced sums, and nothing makes the ranks equal again: once a
memory error or a faulty device has changed one of them, they train towards different prototypes. So a rank
adds its checksum to the next step's sums, in pieces that float32 adds up exactly, and compares the total
with its own: N times its own, where all are equal.

Letters: N ranks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ppar_dist.ppar.diagnostics import Detail

_BITS = 11  # of a piece: the sum over up to 8192 ranks stays below 2^24, so it is exact


class ReplicaCheck:
    """What one rank remembers between a checksum and the sum that it is compared with."""

    PIECES = 3  # 33 bits, for the 32 of a checksum

    def __init__(self, ranks: int) -> None:
        """``ranks``: N."""
        self._ranks = ranks
        self._checksum: int | None = None

    def note(self, detail: Detail | None) -> None:
        """Tell this state's checksum with the next step; None: tell nothing. The same on all ranks."""
        self._checksum = None if detail is None else detail.prototype_checksum

    def tell(self) -> Float[Tensor, " pieces"]:
        """What to add to the sums of this step; zeros where no checksum was noted."""
        return torch.tensor(self._pieces(), dtype=torch.float32)

    def is_broken(self, sums: Float[Tensor, " pieces"]) -> bool:
        """Whether the ranks' checksums differ, by the sums of what they told.

        If they differ, this is True on at least one rank, and on both of two. With more, a rank whose every
        piece is the mean of all does not see it: by chance one in 2^32.
        """
        if self._checksum is None:
            return False
        expected = [self._ranks * piece for piece in self._pieces()]
        return bool(sums.tolist() != expected)

    def _pieces(self) -> list[int]:
        mask = (1 << _BITS) - 1
        return [(self._checksum or 0) >> number * _BITS & mask for number in range(self.PIECES)]
