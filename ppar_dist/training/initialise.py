"""A new run that begins with another's weights: what of them fits is taken, and everything else is told.

The other run's adapters are merged into its weights first. Text prototypes are this run's own; the mean and
deviation of pixels come along with the tower that was trained on them. A resume takes nothing from there: the
state notes which checkpoint it was.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ppar_dist import checkpoint
from ppar_dist.class_sets import ClassSet
from ppar_dist.config.schema import Config
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import read_segmentor
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.models.weight_file import named
from ppar_dist.storage.remote import Storage

_CLASSIFIER = ("linear.weight", "linear.bias", "class_vectors")
# Of the text, and of the last step's fit.
_OWN = ("text", *(f"image_prototypes.{name}" for name in ("means", "precision", "shares")))
_STATISTICS = ("backbone.mean", "backbone.std")
_SEAL = "manifest_sha256"


@dataclass(frozen=True)
class StartReport:
    """What became of another run's weights."""

    origin: str
    checkpoint: str
    sha256: str  # of its manifest, which has the hash of each of its files
    taken: tuple[str, ...]  # names of parameters
    new: tuple[str, ...]  # parameters that it has no value for
    other_shape: tuple[str, ...]  # with both shapes
    left_over: tuple[str, ...]  # its parameters without a place here
    notes: tuple[str, ...] = field(default=())

    def text(self) -> str:
        """One line for a log."""
        all_of = len(self.taken) + len(self.new) + len(self.other_shape)
        lines = [
            f"weights of {self.origin}, {self.checkpoint}: {len(self.taken)} of {all_of} parameters taken",
            *self.notes,
        ]
        lines += [f"stay new: {named(self.new)}" if self.new else ""]
        lines += [f"stay new for their shape: {named(self.other_shape)}" if self.other_shape else ""]
        lines += [f"have no place here: {named(self.left_over)}" if self.left_over else ""]
        return "; ".join(line for line in lines if line)


def initialise(segmentor: Segmentor, config: Config, classes: ClassSet, world: World) -> StartReport:
    """Take the weights of ``config.init_from`` into a new segmentor. Collective.

    Raises:
        UserError: there is no whole checkpoint, or no matrix of it fits.
    """
    found = _found(config, world)
    with checkpoint.reading(found), torch.random.fork_rng(devices=[]):
        source, its, theirs = read_segmentor(found)
        sha256 = str(checkpoint.read_manifest(found)[_SEAL])
    backbone = segmentor.backbone
    if adapted := backbone.adapters is not None:
        backbone.remove_adapters(merge=False)
    report = _take(segmentor, source, classes, theirs, str(config.init_from), found.name, sha256)
    if adapted:
        backbone.add_adapters()  # on the weights that they adapt
    return replace(report, notes=(*report.notes, *_roundings(its, config)))


def _found(config: Config, world: World) -> Path:
    """The checkpoint on this machine; one on object storage is downloaded, once on each machine."""
    place = config.init_from
    assert place is not None
    if isinstance(place, Path):
        return world.on_main(lambda: checkpoint.resolve(place))
    storage = Storage(config.faults.storage_s)
    name = world.on_main(lambda: checkpoint.fetched_checkpoint(place, storage=storage).name)
    one = place if place.name == name else place / "checkpoints" / name
    return checkpoint.fetched_checkpoint(one, storage=storage)


def _take(
    segmentor: Segmentor,
    source: Segmentor,
    mine: ClassSet,
    theirs: ClassSet,
    origin: str,
    folder: str,
    sha256: str,
) -> StartReport:
    values, places = source.state_dict(), segmentor.state_dict()
    same_classes = mine.classes == theirs.classes
    skipped = set(_OWN) if same_classes else {*_OWN, *_CLASSIFIER}
    fits = {
        name: values[name]
        for name, place in places.items()
        if name in values and name not in skipped and values[name].shape == place.shape
    }
    parameters = dict(segmentor.named_parameters())
    taken = tuple(name for name in fits if name in parameters)
    if not any(fits[name].ndim > 1 for name in taken):  # a bias of the same length is not a sign of kinship
        raise UserError(
            f"init_from={origin}: none of its weights fits this model by name and shape; give a run of the "
            "same model.backbone or decoder, or remove init_from"
        )
    if not any(name.startswith("backbone.tower.") for name in taken):
        fits = {name: value for name, value in fits.items() if name not in _STATISTICS}
    notes = _notes(places, fits, mine, theirs, same_classes)
    for name, value in fits.items():
        places[name].copy_(value)
    shaped = {name for name in parameters if name in values and name not in skipped and name not in fits}
    return StartReport(
        origin,
        folder,
        sha256,
        taken,
        tuple(name for name in parameters if name not in fits and name not in shaped),
        tuple(f"{name} {_shape(places[name])}, there {_shape(values[name])}" for name in sorted(shaped)),
        tuple(name for name, _ in source.named_parameters() if name not in parameters),
        notes,
    )


def _notes(
    places: dict[str, Tensor], fits: dict[str, Tensor], mine: ClassSet, theirs: ClassSet, same_classes: bool
) -> tuple[str, ...]:
    notes = []
    if not same_classes:
        notes.append(f"its classes are {theirs.name}, not {mine.name}: the classifier stays new")
    if any(name in fits and not torch.equal(places[name], fits[name]) for name in _STATISTICS):
        notes.append("mean and deviation of pixels come along with the tower")
    return tuple(notes)


def _roundings(before: Config, now: Config) -> tuple[str, ...]:
    """Where one of the two runs keeps frozen weights in another dtype than the other."""
    here, there = now.model.backbone.frozen_dtype, before.model.backbone.frozen_dtype
    if here == there:
        return ()
    if here == "bfloat16":
        return ("frozen matrices are rounded to bfloat16 here, there they are float32",)
    return ("matrices that were frozen there are rounded to bfloat16, and go on as float32",)


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "scalar"
