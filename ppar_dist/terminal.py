"""What a run shows while it goes on: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time

from tqdm import tqdm


class Progress:
    """A live bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, start: int, log_every: int) -> None:
        """Show steps ``start`` to ``total``; plain lines come every ``log_every`` steps."""
        self._bar = tqdm(total=total, initial=start, unit="step", disable=not sys.stderr.isatty())
        self._total, self._log_every = total, log_every
        self.rewind(start)

    def rewind(self, step: int) -> None:
        """Go on from ``step``; the rate counts from here."""
        self._start, self._began = step, time.monotonic()
        self._bar.n = step

    def step(self, step: int, facts: dict[str, str]) -> None:
        """Report that ``step`` steps are done."""
        self._bar.set_postfix(facts, refresh=False)
        self._bar.update(1)
        if self._bar.disable and (step % self._log_every == 0 or step == self._total):
            rate = (step - self._start) / max(1e-9, time.monotonic() - self._began)
            left = (self._total - step) / rate
            text = " ".join(f"{key}={value}" for key, value in facts.items())
            self.say(f"step {step}/{self._total} {text} {rate:.2f} step/s eta {left:.0f}s")

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        try:
            tqdm.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read has gone (`train … | head`); the run goes on without being watched.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
