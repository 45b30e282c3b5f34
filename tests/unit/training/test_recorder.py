"""The recorder's records of a step's figures."""

from __future__ import annotations

import torch

from ppar_dist.config.method_section import PparConfig
from ppar_dist.data.shards.sample import REASONS
from ppar_dist.ppar.objective import Objective
from ppar_dist.training.recorder import named_counts


def test_a_record_names_who_was_asked_to_stop_and_which_samples_were_bad() -> None:
    shapes = {"stop": (1,), "bad": (2, len(REASONS))}
    objective = Objective(PparConfig(enabled=False), None, 2, 3, shared_counts=shapes)
    settings = objective.begin_step(0.0)
    labels = torch.zeros(2, 4, 4, dtype=torch.uint8)
    objective.losses(settings, None, labels, torch.tensor([0, 1]), torch.ones(2))
    assert named_counts(objective.end_step(settings), ["day", "fog/1"]) == {}
    objective.buffer.view("stop").add_(2)
    objective.buffer.view("bad")[1, REASONS.index("checksum")] += 3
    figures = objective.end_step(settings)
    assert named_counts(figures, ["day", "fog/1"]) == {"stop": 2.0, "bad/fog/1/checksum": 3.0}
    assert "stop" not in figures.named(["day", "fog/1"], [])
