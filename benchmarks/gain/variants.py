"""What ``python -m benchmarks.gain`` compares. To add a variant, add a line: its name and keys it changes.

Every variant of a track has the same configuration file, data, seeds and number of steps, and the keys of
TRACK_KEYS.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

PLAIN = "plain"  # fine-tuning without the method: what the others are compared with

_NO_REFIT = ("refit.linear=false", "refit.prototypes=false")
_PLAIN = ("ppar.enabled=false", *_NO_REFIT)
# The control: what PPAR does after the last step, without the method.
_REFITTED = ("ppar.enabled=false", "refit.linear=true", "refit.prototypes=false")
_FACTORS = tuple(f"augment.{each}=0.8" for each in ("brightness", "contrast", "saturation"))
_STRONG_COLOURS = ("augment.photometric=1.0", *_FACTORS, "augment.gamma=[0.33,3.0]")
RANDOM_TEXT = "random_text.npz"  # beside the shards
# ``{shards}`` stands for the folder of the shards.
VARIANTS: dict[str, tuple[str, ...]] = {
    PLAIN: _PLAIN,
    "PPAR": (),
    "plain, refitted": _REFITTED,
    "PPAR without refit": _NO_REFIT,
    # What the prototypes of the image do for a network that was trained without the method.
    "plain, refitted, image prototypes": ("ppar.enabled=false", "refit.linear=true", "refit.prototypes=true"),
    "PPAR, image prototypes alone": ("refit.linear=false", "refit.prototypes=true"),
    "PPAR without image prototypes": ("refit.prototypes=false",),
    "PPAR without alignment": ("ppar.alignment.enabled=false",),
    "PPAR without reweighting": ("ppar.reweighting.enabled=false",),
    "PPAR without trust": ("ppar.reweighting.trust.enabled=false",),
    "PPAR, random text": (f"text.file={{shards}}/{RANDOM_TEXT}",),  # is it CLIP's text that helps?
    "PPAR without VTP": ("ppar.vtp.enabled=false",),
    "PPAR, random convolution": ("augment.random_convolution=0.5",),
    "plain, random convolution": (*_PLAIN, "augment.random_convolution=0.5"),
    "plain, refitted, random convolution": (*_REFITTED, "augment.random_convolution=0.5"),
    "PPAR, style exchange": ("augment.style_exchange=0.5",),
    "plain, style exchange": (*_PLAIN, "augment.style_exchange=0.5"),
    "plain, refitted, style exchange": (*_REFITTED, "augment.style_exchange=0.5"),
    "PPAR, strong colours": _STRONG_COLOURS,
    "plain, refitted, strong colours": (*_REFITTED, *_STRONG_COLOURS),
    "PPAR, averaged weights": ("train.weight_average=0.95",),
    "plain, averaged weights": (*_PLAIN, "train.weight_average=0.95"),
    "plain, refitted, averaged weights": (*_REFITTED, "train.weight_average=0.95"),
    # Normalised features and prototypes in place of the linear classifier, which alone can be fitted again.
    "PPAR, cosine classifier": (*_NO_REFIT, "model.classifier=otp"),
    "plain, cosine classifier": (*_PLAIN, "model.classifier=otp"),
    "PPAR, ema teacher": ("ppar.bank.teacher=ema",),
    "PPAR, alignment × 4": tuple(f"ppar.alignment.{each}_weight=0.4" for each in ("text", "visual", "pixel")),
}

# As the variant on the right, with as many steps as cost no more CPU time than PLAIN's.
EQUAL_TIME: dict[str, str] = {"PPAR, equal time": "PPAR"}


def write_random_text(text: Path, shards: Path) -> None:
    """Random embeddings under the names of a file of text embeddings, unless they are there."""
    if not (shards / RANDOM_TEXT).exists():
        with np.load(text) as real:
            random = np.random.default_rng(0).standard_normal(real["embeddings"].shape)
            np.savez(shards / RANDOM_TEXT, names=real["names"], embeddings=random.astype(np.float32))
