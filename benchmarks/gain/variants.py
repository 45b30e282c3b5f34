"""What ``python -m benchmarks.gain`` compares. To add a variant, add a line: its name and keys it changes.

Every variant of a track has the same configuration file, data, seeds and number of steps.
"""

from __future__ import annotations

PLAIN = "plain"  # fine-tuning without the method: what the others are compared with

_NO_REFIT = ("refit.linear=false", "refit.prototypes=false")
VARIANTS: dict[str, tuple[str, ...]] = {
    PLAIN: ("ppar.enabled=false", *_NO_REFIT),
    "PPAR": (),
    # The control: what PPAR does after the last step, without the method.
    "plain, refitted": ("ppar.enabled=false", "refit.linear=true", "refit.prototypes=false"),
    "PPAR without refit": _NO_REFIT,
    "PPAR, prototypes in the prediction": ("refit.linear=true", "refit.prototypes=true"),
    "PPAR without alignment": ("ppar.alignment.enabled=false",),
    "PPAR without reweighting": ("ppar.reweighting.enabled=false",),
    "PPAR without trust": ("ppar.reweighting.trust.enabled=false",),
    "PPAR without VTP": ("ppar.vtp.enabled=false",),
    "PPAR, random convolution": ("augment.random_convolution=0.5",),
    "plain, refitted, random convolution": (
        "ppar.enabled=false",
        "refit.linear=true",
        "refit.prototypes=false",
        "augment.random_convolution=0.5",
    ),
}

# As the variant on the right, with as many steps as cost no more CPU time than PLAIN's.
EQUAL_TIME: dict[str, str] = {"PPAR, equal time": "PPAR"}
