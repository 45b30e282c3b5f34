"""The trackers that ``monitoring.trackers`` names; those that cannot work are refused at the start."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.trackers.follower import Follower
from ppar_dist.trackers.points import scores
from ppar_dist.trackers.tracker import About, Tracker

_CLOSE_S = 10.0  # for all of them
_LIBRARIES = ("tensorboard", "mlflow", "wandb")  # also the names of the trackers and of the extras


class Trackers:
    """The followers of one run, on rank 0."""

    def __init__(self, config: Config, on_failure: Callable[[str], None] = lambda name: None) -> None:
        """Nothing is sent before ``start``; ``on_failure`` is called with a tracker's name."""
        about = About.of(config)
        self._followers = [
            Follower(name, about, _make(name, about), lambda name=name: on_failure(name))  # type: ignore[misc]
            for name in dict.fromkeys(config.monitoring.trackers)
        ]
        self._has_started = False

    def start(self, step: int) -> None:
        """Begin to send, of a run at ``step`` whose metric files are open."""
        self._has_started = True
        for follower in self._followers:
            follower.start(step)

    def rewind(self, step: int) -> None:
        """The run has returned to ``step``; its metric files hold nothing later."""
        for follower in self._followers:
            follower.rewind(step)

    def finish(self, results: Mapping[str, Any] | None) -> None:
        """The run has ended, with a table of results as plain values if it has targets."""
        for follower in self._followers:
            follower.finish(scores(results) if results is not None else {})

    def close(self) -> None:
        """Send what is left; a second call, and one before ``start``, does nothing."""
        started, self._has_started = self._has_started, False
        for follower in self._followers if started else ():
            follower.close(_CLOSE_S / len(self._followers))


def refuse_missing(config: Config) -> None:
    """Refuse trackers that cannot work.

    Raises:
        UserError: a library is not installed, or it is not said where its service is.
    """
    trackers = config.monitoring.trackers
    for name in trackers:
        if name in _LIBRARIES and importlib.util.find_spec(name) is None:
            raise UserError(
                f"monitoring.trackers has {name}, which is not installed: pip install 'ppar-dist[{name}]', "
                "or leave it out"
            )
    if "mlflow" in trackers and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            "monitoring.trackers has mlflow, which needs to know its server: set MLFLOW_TRACKING_URI, for "
            "example to http://HOST:5000, or to file:FOLDER"
        )
    if "wandb" in trackers and not _knows_wandb():
        raise UserError(
            "monitoring.trackers has wandb, which has no key: set WANDB_API_KEY, or log in (wandb login), or "
            "set WANDB_MODE=offline"
        )


def _knows_wandb() -> bool:
    """Whether W&B has a key, or needs none; without, it would ask for one on the terminal."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun") or os.environ.get("WANDB_API_KEY"):
        return True
    from ppar_dist.trackers.wandb_service import has_key  # late: heavy

    return has_key()


def _make(name: str, about: About) -> Tracker:
    """The tracker of a name; each loads its library when it is made."""
    if name == "tensorboard":
        from ppar_dist.trackers.tensorboard_files import TensorBoard

        return TensorBoard(about)
    if name == "mlflow":
        from ppar_dist.trackers.mlflow_server import Mlflow

        return Mlflow(about)
    if name == "wandb":
        from ppar_dist.trackers.wandb_service import Wandb

        return Wandb(about)
    from ppar_dist.trackers.csv_file import CsvFile

    return CsvFile(about)
