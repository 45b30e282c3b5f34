"""What ``python -m benchmarks.harmful`` compares, and on which spoiled sources.

To add a variant, add a line to VARIANTS: its name and the keys it changes. To add a spoiled source, add a
line to SPOILERS. Every variant trains on the three clean sources and one spoiled one, with the keys of its
track (TRACK_KEYS). "PPAR" here has trust and the refit on either track.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harmful.from_life import exchange_classes, shift_labels, wrong_legend
from benchmarks.harmful.spoil import irrelevant_domain, permute_labels
from ppar_dist.data.shards.index import DomainIndex

PLAIN = "plain"  # fine-tuning without the method: its loss of mIoU is the harm
PRESENT = "PPAR, sample weights"  # reweighting of samples alone

# PPAR, but its domains are the samples of all sources, dealt out at random: the control of "leave one out".
SHUFFLED = "PPAR, domains shuffled"

_NO_REFIT = ("refit.linear=false", "refit.prototypes=false")
_PPAR = ("ppar.reweighting.trust.enabled=true", "refit.linear=true", "refit.prototypes=true")
VARIANTS: dict[str, tuple[str, ...]] = {
    PLAIN: ("ppar.enabled=false", *_NO_REFIT),
    PRESENT: ("ppar.reweighting.trust.enabled=false", *_NO_REFIT),
    "PPAR, trust": ("ppar.reweighting.trust.enabled=true", *_NO_REFIT),
    "plain, refitted": ("ppar.enabled=false", "refit.linear=true", "refit.prototypes=false"),
    # What does not look for faults: all that a run does after its training.
    "plain, refitted, image prototypes": ("ppar.enabled=false", "refit.linear=true", "refit.prototypes=true"),
    "PPAR": _PPAR,
    # When the weights of samples begin; the default is stage 1, after a tenth of the steps.
    "PPAR, weights from stage 0": (*_PPAR, "ppar.reweighting.start_stage=0"),
    "PPAR, weights from stage 3": (*_PPAR, "ppar.reweighting.start_stage=3"),
    # The parts that find faults, one without the other.
    "PPAR without trust": (
        "ppar.reweighting.trust.enabled=false",
        "refit.linear=true",
        "refit.prototypes=true",
    ),
    "PPAR without sample weights": (*_PPAR, "ppar.reweighting.beta=0"),
    SHUFFLED: _PPAR,
}

SHARES = (0.10, 0.25, 0.40)  # of the positions that the spoiled source takes
CLEAN = ("camvid_0016E5", "camvid_0006R0", "camvid_Seq05VD")


@dataclass(frozen=True)
class Spoiler:
    """A source that may do harm, of make(shards, folder of the new domain, data.size, images or None)."""

    domain: str  # {size} is replaced by data.size
    make: Callable[[Path, Path, int, int | None], object]
    related: tuple[str, ...] = ()  # targets from the same data set: shown, but no part of the mean


def _shifted(pixels: int) -> Spoiler:
    def make(shards: Path, folder: Path, size: int, limit: int | None) -> object:
        return shift_labels(DomainIndex.open(shards / "camvid_Seq05VD"), folder, pixels, size)

    return Spoiler(f"camvid_Seq05VD_shifted{pixels}_at{{size}}", make)


def _wrong_legend(shards: Path, folder: Path, size: int, limit: int | None) -> object:
    return wrong_legend(shards, folder, limit)


def _as_labelled(shards: Path, folder: Path, size: int, limit: int | None) -> object:
    """It is there: `prepare_streets` makes it."""
    return DomainIndex.open(folder)


def _exchanged(shards: Path, folder: Path, size: int, limit: int | None) -> object:
    return exchange_classes(DomainIndex.open(shards / "labelmefacade_train"), folder, "road", "sidewalk")


def _permuted(shards: Path, folder: Path, size: int, limit: int | None) -> object:
    return permute_labels(DomainIndex.open(shards / "camvid_0016E5"), folder)


def _irrelevant(shards: Path, folder: Path, size: int, limit: int | None) -> object:
    return irrelevant_domain(folder, "roads6", 156 if limit is None else limit)


SPOILERS: dict[str, Spoiler] = {
    "wrong legend": Spoiler("idd_lite_wrong_legend", _wrong_legend, ("idd",)),
    # Labels that are right, by the habits of another data set: what distrust must not cost.
    "IDD-Lite as labelled": Spoiler("idd_lite_train", _as_labelled, ("idd",)),
    "facades as labelled": Spoiler("labelmefacade_train", _as_labelled, ("facade",)),
    "road and sidewalk exchanged": Spoiler("labelmefacade_train_exchanged", _exchanged, ("facade",)),
    "labels shifted by 8 pixels": _shifted(8),
    "labels shifted by 16 pixels": _shifted(16),
    "a third of the labels permuted": Spoiler("camvid_0016E5_permuted", _permuted),
    "irrelevant images": Spoiler("irrelevant", _irrelevant),
}
