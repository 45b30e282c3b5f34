"""Where a sabotage takes hold of training."""

from __future__ import annotations

from collections.abc import Callable


def at_phase(name: str, action: Callable[[int], None]) -> None:
    """Call ``action`` with the number of the step, from 1, when a rank has told its watchdog of a phase."""
    from ppar_dist.watchdog import Watchdog

    original = Watchdog.phase

    def phase(self: Watchdog, told: str, step: int) -> None:
        original(self, told, step)
        if told == name:
            action(step)

    Watchdog.phase = phase  # type: ignore[method-assign]
