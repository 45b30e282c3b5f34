"""TensorBoard's own reader of a run's event files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppar_dist.run import paths


def read_tensorboard(run: Path) -> dict[str, dict[int, float]]:
    """Tag → step → value; a step that is there twice fails the test."""
    events = EventAccumulator(str(paths.tensorboard(run)), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        found[tag] = {each.step: each.value for each in points}
        assert len(points) == len(found[tag]), f"{tag} has a step twice"
    return found


def as_float32(value: float) -> float:
    """What an event file holds of a figure."""
    return float(np.float32(value))
