"""Passes over the sources beside the steps: the survey before the first, scores, the refit after the last.

Rank 0 makes the survey and the refit, and the result goes to all; for scores each rank takes its share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ppar_dist.data.sources import holdout_range
from ppar_dist.data.style import StyleBank
from ppar_dist.data.style_bank import style_bank
from ppar_dist.distributed.world import World
from ppar_dist.evaluation.confusion import mean_iou
from ppar_dist.evaluation.counting import held_out, refuse_too_many
from ppar_dist.evaluation.refit import Refit, refit
from ppar_dist.evaluation.survey import (
    NO_TRUST,
    NOT_JUDGED,
    RANDOM_TOWER,
    is_random,
    lacks_trust,
    survey_sources,
)
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.ppar.trust import Survey
from ppar_dist.training.learner import Learner
from ppar_dist.training.parts import as_written
from ppar_dist.training.plan import RunPlan
from ppar_dist.watchdog import Watchdog


@dataclass(frozen=True)
class HeldOutScore:
    """What a model scores on the held-out part of M sources with K classes, over all ranks."""

    miou: float  # over all sources together
    counts: Tensor  # (M, K, K) confusion counts
    left_out: dict[str, int]  # by source how many samples were left out, if any


def measure_styles(plan: RunPlan, world: World, alive: Callable[[], None]) -> StyleBank | None:
    """The styles that sources exchange, the same on all ranks; None where they exchange none. Collective."""
    if not plan.config.augment.style_exchange:
        return None
    return world.on_main(lambda: style_bank(plan.config, plan.indexes, alive))


_LOW = 0.5  # trust below which a class of a source is named
_LIKELY = 0.5  # likelihood above which a class that its label may stand for is named
_NAMED = 2  # such classes, beside the label's own; a label with more says nothing


def survey(learner: Learner, plan: RunPlan, world: World, alive: Callable[[], None]) -> list[str]:
    """Let the sources judge each other's labels; a checkpoint brings the trust. Collective.

    Returns:
        A line for each source whose labels the others distrust: its name, its classes, and what to do. One
        before them where the tower cannot tell, and where nothing could be judged or trust is off.
    """
    state, config = learner.objective.state, plan.config
    if lacks_trust(config.ppar):
        return ["; ".join(NO_TRUST)]
    if state is None or state.trust is None or state.likelihood is None:
        return []
    segmentor, classes = learner.engine.module, plan.classes.classes
    assert isinstance(segmentor, Segmentor)

    def look() -> Survey:
        with as_written(config):
            return survey_sources(segmentor.backbone, config, plan.indexes, len(classes), world.device, alive)

    found = world.on_main(look)
    state.believe(found.trust.float(), found.likelihood.float())
    advice = f"the other sources disagree, ppar-dist audit {config.run.dir} draws where"
    lines = []
    if config.init_from is None and is_random(config.model.backbone):
        lines.append(f"trust in the labels of sources: {': '.join(RANDOM_TOWER)}")
    if found.agreement.isnan().all():
        lines.append(f"{NOT_JUDGED}; ppar.reweighting.trust.enabled=false saves the look at them")
    for index, row, likelihood in zip(
        plan.indexes, state.trust.tolist(), state.likelihood.tolist(), strict=True
    ):
        low = [
            f"{label} {value:.2f}{_other_meanings(label, classes, by_class)}"
            for label, value, by_class in zip(classes, row, likelihood, strict=True)
            if value < _LOW
        ]
        if low:
            lines.append(f"trust in the labels of {index.name} is low, 1 is full: {', '.join(low)}; {advice}")
    return lines


def _other_meanings(label: str, classes: Sequence[str], likelihood: Sequence[float]) -> str:
    """Which other classes a label may stand for, the likeliest first, as the end of its name."""
    likely = dict(zip(classes, likelihood, strict=True))
    own = likely.pop(label)
    others = sorted((name for name, value in likely.items() if value >= _LIKELY), key=lambda x: -likely[x])
    if len(others) > _NAMED:
        return " (may be anything)"
    return f" ({'or' if own >= _LIKELY else 'rather'} {' or '.join(others)})" if others else ""


def score_held_out(learner: Learner, plan: RunPlan, world: World, watch: Watchdog) -> HeldOutScore:
    """Scores on the held-out part of the sources. Collective.

    Raises:
        UserError: on every rank, when too many of these samples are bad.
    """
    step, config = learner.state.step, plan.config
    watch.phase("evaluate", step)
    model = learner.engine.module.eval()
    with as_written(config):  # pictures of any size
        found = held_out(model, config, plan.indexes, world.rank, world.world_size, world.device, watch.alive)
    model.train()
    watch.phase("all-reduce", step)
    counts, left_out = (world.sum(each.to(world.device)).cpu() for each in found)
    names = [index.name for index in plan.indexes]
    sizes = [len(holdout_range(index, config.data.holdout)) for index in plan.indexes]
    refuse_too_many(names, left_out.tolist(), sizes, config.data.max_bad_ratio)
    missing = {name: bad for name, bad in zip(names, left_out.tolist(), strict=True) if bad}
    return HeldOutScore(mean_iou(counts.sum(0)), counts, missing)


def refit_classifiers(learner: Learner, plan: RunPlan, world: World, watch: Watchdog) -> list[str]:
    """Fit the classifiers again, as ``refit`` asks, before the model is evaluated and saved. Collective.

    Returns:
        A line where a class had nothing to be fitted to.
    """
    segmentor, objective, config = learner.engine.module, learner.objective.state, plan.config
    assert isinstance(segmentor, Segmentor)
    trust = None if objective is None else objective.trust
    watch.phase("refit", learner.state.step)

    def fit() -> Refit:
        with as_written(config):
            return refit(segmentor, config, plan.indexes, trust, world.device, watch.alive)

    found = world.on_main(fit)
    segmentor.load_refit(found.values)
    if learner.average is not None:  # it has classifiers of its own
        with learner.average.in_place(segmentor):
            segmentor.load_refit(world.on_main(fit).values)
            learner.average.take(segmentor)
    learner.state.refitted = {"step": learner.state.step, **config.refit.model_dump()}
    if not found.unseen:
        return []
    names = plan.classes.classes
    kept = ", ".join(names[k] for k in found.unseen)
    what = "all classes keep" if len(found.unseen) == len(names) else "these classes keep"
    return [
        f"refit: {what} the classifier of training, without a prototype of the image: {kept}. A class needs "
        f"a cell of 4 x 4 pixels that its label covers to ppar.min_purity={config.ppar.min_purity:g}, of a "
        f"source that is trusted in it, in one of refit.images={config.refit.images} readable images; where "
        "sources have the class, raise refit.images"
    ]
