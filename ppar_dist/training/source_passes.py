"""Passes over the sources beside the steps: the survey before the first, the refit after the last.

Rank 0 makes them, and the result goes to all.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ppar_dist.class_sets import class_set
from ppar_dist.distributed.world import World
from ppar_dist.evaluation.refit import refit
from ppar_dist.evaluation.survey import survey_sources
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.training.learner import Learner
from ppar_dist.training.parts import as_written
from ppar_dist.training.plan import RunPlan

_LOW = 0.5  # trust below which a class of a source is named


def survey(learner: Learner, plan: RunPlan, world: World, alive: Callable[[], None]) -> list[str]:
    """Let the sources judge each other's labels; a checkpoint brings the trust. Collective.

    Returns:
        A line for each source whose labels the others distrust: its name and its classes.
    """
    state, config = learner.objective.state, plan.config
    if state is None or state.trust is None:
        return []
    segmentor, classes = learner.engine.module, class_set(config.data.classes).classes
    assert isinstance(segmentor, Segmentor)

    def look() -> Tensor:
        with as_written(config):
            found = survey_sources(
                segmentor.backbone, config, plan.indexes, len(classes), world.device, alive
            )
        return found.trust.float()

    state.trust.copy_(world.on_main(look))
    lines = []
    for index, row in zip(plan.indexes, state.trust.tolist(), strict=True):
        low = [f"{label} {value:.2f}" for label, value in zip(classes, row, strict=True) if value < _LOW]
        if low:
            lines.append(f"{index.name} is low, 1 is full: {', '.join(low)}")
    return lines


def refit_classifiers(learner: Learner, plan: RunPlan, world: World, alive: Callable[[], None]) -> None:
    """Fit the classifiers again, as ``refit`` asks, before the model is evaluated and saved. Collective."""
    segmentor, state = learner.engine.module, learner.objective.state
    assert isinstance(segmentor, Segmentor)
    trust = None if state is None else state.trust

    def fit() -> dict[str, Tensor]:
        with as_written(plan.config):
            return refit(segmentor, plan.config, plan.indexes, trust, world.device, alive)

    segmentor.load_refit(world.on_main(fit))
