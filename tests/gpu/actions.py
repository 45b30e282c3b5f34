"""What a case can do with a rank on a pretended device; each returns what it saw, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ppar_dist.checkpoint import FROZEN, METHOD, MODEL, MOMENTS, TEACHER
from ppar_dist.data.reading import EvalSample
from ppar_dist.evaluation.counting import confusion
from ppar_dist.evaluation.labelling import labels_of, logits_of
from ppar_dist.export.program import LogitsOnly
from ppar_dist.ppar.alignment import Stage, stage_at
from ppar_dist.training.snapshot import snapshot
from tests.gpu.rank import DEVICE, Rank, told

_PHOTO = (3, 96, 128)  # of an evaluation: no multiple of the crop


def steps(rank: Rank) -> dict[str, Any]:
    """A step in every stage, every other one with the teacher; the last is logged."""
    found = {}
    for stage in Stage:
        rank.go_to(_first_step(rank, stage) + (1 if stage in (Stage.WARMUP, Stage.VISUAL_TEXT) else 0))
        rank.wants_detail = stage is Stage.PIXEL
        found[stage.name.lower()] = step(rank)
    return found


def one(rank: Rank) -> dict[str, Any]:
    """A step of the last stage, with the teacher."""
    rank.go_to(_first_step(rank, Stage.PIXEL))
    return {"step": step(rank)}


def life(rank: Rank) -> dict[str, Any]:
    """A checkpoint's contents taken and put back, a step that is dropped, and a step after each."""
    return one(rank) | {
        "saved": save(rank),
        "loaded": step(rank),
        "dropped": drop(rank),
        "after": step(rank),
    }


def step(rank: Rank) -> dict[str, Any]:
    """A step, and what it did."""
    return _seen(rank, lambda: _figures(rank))


def drop(rank: Rank) -> dict[str, Any]:
    """A step whose loss is not finite."""
    rank.probe.finite = False
    try:
        return step(rank)
    finally:
        rank.probe.finite = True


def save(rank: Rank) -> dict[str, Any]:
    """Take what a checkpoint holds, and load it as a resume does."""
    taken: dict[str, Any] = {}

    def save() -> dict[str, Any]:
        rank.probe.phase = "save"
        copy = snapshot(rank.learner, rank.plan, rank.world)
        taken.update(copy.tensors | {name: give() for name, give in copy.constant.items()})
        places = {value.device.type for tensors in taken.values() for value in tensors.values()}
        return {"places": sorted(places), "sizes": {name: len(tensors) for name, tensors in taken.items()}}

    found = _seen(rank, save)
    method = taken[METHOD]
    rank.learner.engine.load(taken[MODEL] | taken.get(FROZEN, {}), _moments_of_all(rank))
    if rank.learner.teacher is not None:
        own = {k.removeprefix("teacher."): v for k, v in method.items() if k.startswith("teacher.")}
        rank.learner.teacher.load_state_dict(own or taken[TEACHER])
    rank.learner.objective.load_state_dict({k: v for k, v in method.items() if not k.startswith("teacher.")})
    return found


def _moments_of_all(rank: Rank) -> dict[str, torch.Tensor]:
    """What the parts of all ranks are together."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in rank.learner.engine.module.named_parameters():
        if parameter.requires_grad:
            found |= {f"{key}.{name}": torch.zeros(parameter.shape) for key in MOMENTS}
            found[f"step.{name}"] = torch.tensor(1.0)
    return found


def evaluate(rank: Rank) -> dict[str, Any]:
    """The held-out samples' way: logits, labels of the picture's size, the confusion matrix."""
    model = rank.learner.engine.module.eval()
    sample = EvalSample(torch.zeros(_PHOTO).byte(), torch.zeros(_PHOTO[1:]).byte(), "key", 0)
    classes = rank.learner.objective.num_classes

    def evaluate() -> dict[str, Any]:
        _, count = confusion(model, [sample, sample], classes, DEVICE)
        return {"images": count}

    return {"evaluated": _seen(rank, evaluate)}


def predict(rank: Rank) -> dict[str, Any]:
    """Labels of two photographs at once."""
    model = rank.learner.engine.module.eval()

    def predict() -> dict[str, Any]:
        logits = logits_of(model, torch.zeros(2, *_PHOTO, dtype=torch.uint8, device=DEVICE))
        labels = labels_of(logits[0], _PHOTO[1:])
        return {"labels": [labels.device.type, *labels.shape], "logits": str(logits.dtype)}

    return {"predicted": _seen(rank, predict)}


def export(rank: Rank) -> dict[str, Any]:
    """The program that `ppar-dist export` writes, made on the device and run there."""
    model = rank.learner.engine.module.eval().requires_grad_(False)
    images = torch.zeros(1, *_PHOTO, dtype=torch.uint8, device=DEVICE)

    def export() -> dict[str, Any]:
        program = torch.export.export(LogitsOnly(model), (images,))
        logits = program.module()(images)
        return {"logits": [logits.device.type, str(logits.dtype), *logits.shape]}

    return {"exported": _seen(rank, export)}


def fault(rank: Rank, name: str) -> None:
    """Make a rank do something wrong."""
    _FAULTS[name](rank)


def _figures(rank: Rank) -> dict[str, Any]:
    state = rank.learner.state
    before, dropped = state.step, state.non_finite
    figures = rank.step()
    return {
        "stage": int(figures.stage),
        "advanced": state.step - before,
        "dropped": state.non_finite > dropped,
        "finite": figures.finite,
    }


def _seen(rank: Rank, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    rank.probe.reset()
    found = do()
    return told(rank) | found


def _first_step(rank: Rank, stage: Stage) -> int:
    """The first step of a stage at which a teacher is due."""
    config = rank.plan.config
    every, total = config.ppar.bank.teacher_every, config.train.steps
    bounds = config.ppar.alignment.boundaries
    return next(step for step in range(0, total, every) if stage_at(step / total, bounds) is stage)


def _before(rank: Rank, method: str, do: Callable[..., object]) -> None:
    """Have ``do`` called with the arguments of a method of the trainer, before it."""
    trainer: Any = rank.trainer
    stock = getattr(trainer, method)

    def both(*args: Any) -> Any:
        do(*args)
        return stock(*args)

    setattr(trainer, method, both)


def _buffer_on_the_cpu(rank: Rank) -> None:
    rank.learner.objective.state.text = rank.learner.objective.state.text.cpu()


def _forgotten_autocast(rank: Rank) -> None:
    rank.learner.engine.module.bf16 = False


def _questions(rank: Rank) -> None:
    _before(rank, "_loss", lambda batch, settings: [(batch.images.sum() + n).item() for n in range(3)])


def _collective_while_others_compute(rank: Rank) -> None:
    _before(rank, "_loss", lambda *_: rank.world.sum(torch.zeros(1, device=DEVICE)))


def _twice_the_images(rank: Rank) -> None:
    stock = rank.batch
    rank.batch = lambda size, first: stock(2 * size, first)  # type: ignore[method-assign]


def _small_calls(rank: Rank) -> None:
    _before(rank, "_loss", lambda batch, settings: [batch.images + 1 for _ in range(1000)])


_FAULTS: dict[str, Callable[[Rank], None]] = {
    "buffer on the CPU": _buffer_on_the_cpu,
    "forgotten autocast": _forgotten_autocast,
    "questions": _questions,
    "collective in the forward pass": _collective_while_others_compute,
    "twice the images": _twice_the_images,
    "small calls": _small_calls,
}
