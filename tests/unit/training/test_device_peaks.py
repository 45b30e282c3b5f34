"""Peaks are found by what torch calls a device, and unknown ones are not guessed."""

from __future__ import annotations

import pytest

from ppar_dist.training.device_peaks import device_names, peak_tflops


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),  # a slower board of the family
        ("NVIDIA A100-SXM4-80GB", 312),
        ("Tesla V100-SXM2-32GB", 125),
        ("NVIDIA L40S", 362),  # twice an L40, and no L4
        ("NVIDIA L4", 121),
        ("h200", 989),
        ("NVIDIA GeForce RTX 4090", None),
        ("NVIDIA L400", None),
        ("", None),
    ],
)
def test_a_device_is_found_by_its_name(name: str, tflops: float | None) -> None:
    assert peak_tflops(name) == tflops


def test_every_listed_name_is_found() -> None:
    assert all(peak_tflops(f"NVIDIA {name}") for name in device_names())
