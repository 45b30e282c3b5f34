"""When a run stops early, over sequences of scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ppar_dist.config.load import parse_config
from ppar_dist.config.schema import TrainConfig
from ppar_dist.errors import ConfigError
from ppar_dist.run.early_stop import ends_early, note_score, reason
from ppar_dist.run.state import TrainState
from tests.ranks import tiny_config


def evaluations(scores: list[float], **stop: Any) -> int | None:
    """After which evaluation the run ends; every tenth step has one."""
    train = TrainConfig(steps=1000, global_batch=1, eval_every=10, stop_early=stop)
    state = TrainState()
    for number, score in enumerate(scores, start=1):
        state.step += 10
        note_score(state, score, train)
        state = TrainState.from_json(state.to_json())  # as a resume does
        if ends_early(state, train):
            return number
    return None


@pytest.mark.parametrize(
    ("scores", "stop", "expected"),
    [
        ([0.1, 0.2, 0.2, 0.2], {"patience": 2}, 4),
        ([0.1, 0.2, 0.1, 0.3, 0.2, 0.1], {"patience": 2}, 6),
        ([0.1, 0.11, 0.12, 0.13], {"patience": 2, "min_delta": 0.05}, 3),
        ([0.1, 0.14, 0.18, 0.19, 0.2], {"patience": 2, "min_delta": 0.05}, 5),  # slow rises add up
        ([math.nan, math.nan], {"patience": 2}, 2),
        ([math.nan, 0.1, math.nan], {"patience": 2}, None),
        ([0.3, 0.2, 0.1, 0.0], {}, None),
    ],
)
def test_it_ends_after_evaluations_without_a_rise(
    scores: list[float], stop: dict[str, Any], expected: int | None
) -> None:
    assert evaluations(scores, **stop) == expected


def test_a_run_with_all_its_steps_does_not_end_early() -> None:
    train = TrainConfig(steps=20, global_batch=1, eval_every=10, stop_early={"patience": 1})
    state = TrainState(step=20, risen_to=0.5, evaluations_since=3)
    assert not ends_early(state, train)
    state.step = 10
    assert ends_early(state, train)
    assert reason(state, train, "step-00000005") == (
        "held-out mIoU has not risen at all in 3 evaluations since 50.0; the best checkpoint is step-00000005"
    )


def test_without_scores_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"set train\.eval_every"):
        TrainConfig(steps=20, global_batch=1, stop_early={"patience": 1})
    train = {"eval_every": 2, "stop_early": {"patience": 1}}
    with pytest.raises(ConfigError, match=r"train\.stop_early needs held-out source data: set data\.holdout"):
        parse_config(tiny_config(tmp_path, tmp_path / "run", train=train, data={"holdout": 0}))
