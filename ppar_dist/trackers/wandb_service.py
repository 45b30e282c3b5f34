"""A run of Weights & Biases; a resumed run goes on in the same one.

``WANDB_MODE=offline`` keeps it in the run's folder, from where ``wandb sync`` sends it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ppar_dist.trackers.tracker import About, Point, TakesBack

_STEP = "step"


class Wandb:
    """Sends figures with the step as their axis, and the configuration."""

    takes_back = TakesBack.NONE

    def __init__(self, about: About) -> None:
        """Nothing is sent before ``open``."""
        self._about = about
        self._run: Any = None

    def open(self, own: dict[str, Any], first: int) -> None:
        """Begin the run, or go on with it."""
        import wandb  # late, as it is optional and heavy

        own.setdefault("run", uuid.uuid4().hex[:12])
        quiet = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_stats=True,
        )
        self._run = wandb.init(
            project=self._about.project,
            name=self._about.name,
            id=own["run"],
            resume="allow",
            dir=str(self._about.run),
            config=dict(self._about.settings),
            settings=quiet,
        )
        self._run.define_metric(_STEP)
        self._run.define_metric("*", step_metric=_STEP)

    def write(self, points: Sequence[Point]) -> None:
        """Hand figures to the process of W&B, which writes them to disk before it sends them."""
        for step, values in points:
            self._run.log({_STEP: step, **values})

    def finish(self, scores: Mapping[str, float]) -> None:
        """Send the scores as the summary of the run."""
        for name, value in scores.items():
            self._run.summary[name] = value

    def close(self) -> None:
        """Send what waits, and end this part of the run."""
        run, self._run = self._run, None
        if run is not None:
            run.finish()


def has_key() -> bool:
    """Whether W&B knows a key of the user, as from ``wandb login``."""
    import wandb

    return bool(wandb.login(prompt=False))
