"""When a run ends before its last step: its scores on held-out source data do not rise any more.

Every rank has the same scores, so all decide alike; the count of evaluations is part of the run's state.
"""

from __future__ import annotations

from ppar_dist.config.schema import TrainConfig
from ppar_dist.run.state import TrainState


def note_score(state: TrainState, miou: float, train: TrainConfig) -> None:
    """Count an evaluation in a row without a rise, or count again from 0; an undefined score is not one."""
    before = state.risen_to
    if miou == miou and (before is None or miou > before + train.stop_early.min_delta):
        state.risen_to, state.evaluations_since = miou, 0
    else:
        state.evaluations_since += 1


def ends_early(state: TrainState, train: TrainConfig) -> bool:
    """Whether the run ends at ``state``, with steps left."""
    patience = train.stop_early.patience
    return patience is not None and state.step < train.steps and state.evaluations_since >= patience


def is_over(state: TrainState, train: TrainConfig) -> bool:
    """Whether a run at ``state`` has no step to make."""
    return state.step >= train.steps or ends_early(state, train)


def reason(state: TrainState, train: TrainConfig, best: str) -> str:
    """Why it ended, in a sentence; ``best`` names the best checkpoint."""
    delta, times = train.stop_early.min_delta, state.evaluations_since
    rise = f" by more than min_delta={delta:g} ({100 * delta:g} per cent)" if delta else ""
    since = "" if state.risen_to is None else f" since it was {100 * state.risen_to:.1f}"
    often = f"{times} evaluation{'' if times == 1 else 's'}"
    return f"held-out mIoU has not risen{rise} in {often} in a row{since}; the best checkpoint is {best}"
