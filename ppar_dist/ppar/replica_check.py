"""Whether the ranks' prototypes are still the same, bit for bit.

Each rank computes its own state from the reduced sums, and nothing ever sets the ranks right again: once a
memory error or a faulty device has changed one of them, they train towards different prototypes. So a rank
tells its checksum with the next step's sums, in pieces that float32 adds up exactly, and holds the total
against its own: N times its own, where all are equal.

Letters: N ranks.
"""

from __future__ import annotations

from ppar_dist.ppar.diagnostics import Detail

_BITS = 11  # of a piece: the sum over up to 8192 ranks stays below 2^24, so it is exact
_PIECES = 3  # 33 bits, for the 32 of a checksum


class ReplicaCheck:
    """What one rank remembers between a checksum and the sum that it is held against."""

    NAMES = tuple(f"checksum/{number}" for number in range(_PIECES))  # of the sums

    def __init__(self, ranks: int) -> None:
        """``ranks``: N."""
        self._ranks = ranks
        self._checksum: int | None = None

    def note(self, detail: Detail | None) -> None:
        """Tell this state's checksum with the next step, where there is one. All ranks note alike."""
        if detail is not None:
            self._checksum = detail.prototype_checksum

    def tell(self) -> dict[str, float]:
        """What to add to the sums of this step, by name; nothing where no checksum was noted."""
        if self._checksum is None:
            return {}
        return {name: float(piece) for name, piece in zip(self.NAMES, _pieces(self._checksum), strict=True)}

    def is_broken(self, sums: dict[str, float]) -> bool:
        """Whether the ranks' checksums differ, by the sums of the step in which they were told.

        What was told is taken out of ``sums``. If they differ, this is True on at least one rank, and on both
        of two. With more, a rank whose every piece is the mean of all does not see it: by chance one in 2^32.
        """
        if self._checksum is None:
            return False
        expected = [self._ranks * piece for piece in _pieces(self._checksum)]
        self._checksum = None
        return [sums.pop(name) for name in self.NAMES] != expected


def _pieces(checksum: int) -> list[int]:
    mask = (1 << _BITS) - 1
    return [checksum >> number * _BITS & mask for number in range(_PIECES)]
