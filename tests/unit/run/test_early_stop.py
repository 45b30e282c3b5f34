"""When a run stops early, over sequences of scores."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ppar_dist.config.identity import config_changes
from ppar_dist.config.load import parse_config
from ppar_dist.config.schema import TrainConfig
from ppar_dist.errors import ConfigError, UserError
from ppar_dist.run.early_stop import ends_early, note_score, reason
from ppar_dist.run.facts import finished
from ppar_dist.run.state import TrainState
from tests.ranks import tiny_config
from tests.unit.tiny_run import make_run


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
        "held-out mIoU has not risen in 3 evaluations in a row since it was 50.0; "
        "the best checkpoint is step-00000005"
    )
    train = TrainConfig(
        steps=20, global_batch=1, eval_every=10, stop_early={"patience": 1, "min_delta": 0.01}
    )
    assert reason(TrainState(step=10, evaluations_since=1), train, "step-00000005") == (
        "held-out mIoU has not risen by more than min_delta=0.01 (1 per cent) in 1 evaluation in a row; "
        "the best checkpoint is step-00000005"
    )


def test_another_patience_is_another_run(tmp_path: Path) -> None:
    """Where it ends, its classifiers are fitted again: what goes on from there is no longer run."""
    first, second = (
        parse_config(
            tiny_config(
                *(tmp_path, tmp_path / "run"),
                train={"eval_every": 2, "stop_early": {"patience": patience}},
                data={"holdout": 0.5},
            )
        )
        for patience in (1, 2)
    )
    assert config_changes(first, second) == ["train.stop_early.patience: 1 -> 2"]


def test_a_finished_run_is_asked_for_its_start_too(tmp_path: Path) -> None:
    config = make_run(tmp_path, tmp_path / "run")
    (tmp_path / "run" / "report.html").touch()
    assert finished(config, dict) == "step-00000040"
    with pytest.raises(UserError, match=r"was not started from init_from=.*; remove init_from"):
        finished(config.model_copy(update={"init_from": tmp_path / "other"}), dict)


def test_a_report_of_fewer_steps_is_no_end(tmp_path: Path) -> None:
    """A run that was given more steps, and was killed after its last checkpoint."""
    config = make_run(tmp_path, tmp_path / "run")
    report = tmp_path / "run" / "report.html"
    report.touch()
    os.utime(report, ns=(0, report.stat().st_mtime_ns - 60 * 10**9))
    assert finished(config, dict) is None
    report.touch()
    assert finished(config, dict) == "step-00000040"


def test_without_scores_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"set train\.eval_every"):
        TrainConfig(steps=20, global_batch=1, stop_early={"patience": 1})
    train = {"eval_every": 2, "stop_early": {"patience": 1}}
    with pytest.raises(ConfigError, match=r"train\.stop_early needs held-out source data: set data\.holdout"):
        parse_config(tiny_config(tmp_path, tmp_path / "run", train=train, data={"holdout": 0}))
