"""What ``python -m benchmarks.gain`` compares. To add a variant, add a line: its name and keys it changes.

Every variant of a track has the same configuration file, data, seeds and number of steps.
"""

from __future__ import annotations

PLAIN = "plain"  # fine-tuning without the method: what the others are compared with

VARIANTS: dict[str, tuple[str, ...]] = {
    PLAIN: ("ppar.enabled=false",),
    "PPAR": (),
    "PPAR without alignment": ("ppar.alignment.enabled=false",),
    "PPAR without reweighting": ("ppar.reweighting.enabled=false",),
    "PPAR without VTP": ("ppar.vtp.enabled=false",),
    "PPAR, cell weights": ("ppar.reweighting.cells.enabled=true",),
}

# As the variant on the right, with as many steps as cost no more CPU time than PLAIN's.
EQUAL_TIME: dict[str, str] = {"PPAR, equal time": "PPAR"}
