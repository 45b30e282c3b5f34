"""A run of MLflow at ``$MLFLOW_TRACKING_URI``; a resumed run goes on in the same one."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ppar_dist import __version__
from ppar_dist.trackers.tracker import About, Point, TakesBack

if TYPE_CHECKING:  # optional, and slow to load
    from mlflow import MlflowClient
    from mlflow.entities import Metric

# What every record of a file has: sent last, it says that the server has all of a step.
_MARKS = ("train/samples_seen", "held_out/miou")
_MOST_PARAMETERS, _LONGEST_PARAMETER = 100, 500


class Mlflow:
    """Sends metrics, and the configuration as parameters."""

    takes_back = TakesBack.NONE

    def __init__(self, about: About) -> None:
        """Nothing is sent before ``open``."""
        self._about = about
        self._client: MlflowClient | None = None
        self._run = ""
        self._known = set[tuple[str, int]]()  # steps that the server has

    def open(self, own: dict[str, Any], first: int) -> None:
        """Find the run that was made before, or make one."""
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if uri.startswith("file:") or "://" not in uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder was asked for by name
        self._client = MlflowClient(tracking_uri=uri)
        if "run" not in own:
            own["run"] = self._create(self._client)
        self._run = own["run"]
        self._known = {(mark, each.step) for mark in _MARKS for each in self._history(self._client, mark)}

    def _history(self, client: MlflowClient, name: str) -> Sequence[Metric]:
        """What the server has of a metric."""
        known: Sequence[Metric] = []
        if name in client.get_run(self._run).data.metrics:
            known = client.get_metric_history(self._run, name)
        return known

    def _create(self, client: MlflowClient) -> str:
        from mlflow.entities import Param

        found = client.get_experiment_by_name(self._about.project)
        experiment = found.experiment_id if found else client.create_experiment(self._about.project)
        tags = {"ppar_dist.version": __version__, "ppar_dist.run": str(self._about.run)}
        run: str = client.create_run(experiment, run_name=self._about.name, tags=tags).info.run_id
        settings = self._about.settings.items()
        items = [Param(_allowed(key), str(value)[:_LONGEST_PARAMETER]) for key, value in settings]
        for first in range(0, len(items), _MOST_PARAMETERS):
            client.log_batch(run, params=items[first : first + _MOST_PARAMETERS])
        return run

    def write(self, points: Sequence[Point]) -> None:
        """Send metrics, those of a step in one request, and none that the server has."""
        from mlflow.entities import Metric

        assert self._client is not None, "it is open"
        now = int(1000 * time.time())
        for step, values in points:
            marks = [(mark, step) for mark in _MARKS if mark in values]
            if marks and self._known.issuperset(marks):
                continue
            names = sorted(values, key=_MARKS.__contains__)
            metrics = [Metric(_allowed(name), values[name], now, step) for name in names]
            self._client.log_batch(self._run, metrics=metrics)
            self._known.update(marks)

    def finish(self, scores: Mapping[str, float]) -> None:
        """Send the scores, and mark the run as finished."""
        self.write([Point(self._about.steps, scores)])
        assert self._client is not None, "it is open"
        self._client.set_terminated(self._run)

    def close(self) -> None:
        """Let go of the connection."""
        self._client = None


def _allowed(name: str) -> str:
    """A name of which MLflow takes every character."""
    return re.sub(r"[^\w/. :-]", "_", name, flags=re.ASCII)
