"""What accelerators can compute at most, to tell how much of it a run uses."""

from __future__ import annotations

import re

# Dense tensor-core TFLOPS (1e12 multiplications and additions per second) in bf16, in fp16 where a device
# has no bf16, without sparsity, which doubles what data sheets show. Not each was compared with its sheet
# again: `engine.peak_tflops` replaces them. A name matches where its first words are those of the device, and
# the longest match counts: what a board is cut down to comes after its family.
_PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100": 989.0,  # SXM
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "GH200": 989.0,
    "A100": 312.0,
    "A40": 150.0,
    "A30": 165.0,
    "A10": 125.0,
    "A10G": 70.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "V100": 125.0,  # fp16
    "T4": 65.0,  # fp16
}
_VENDOR = re.compile(r"^(nvidia|tesla|geforce)\s+", re.IGNORECASE)


def peak_tflops(name: str) -> float | None:
    """The peak of a device, in TFLOPS; None where the table lacks it.

    Args:
        name: as ``torch.cuda.get_device_name`` tells it ("NVIDIA H100 80GB HBM3"), or short ("H100").
    """
    while (short := _VENDOR.sub("", name.strip())) != name:
        name = short
    words = re.split(r"[\s-]+", name.casefold())
    fits = [known for known in _PEAK_TFLOPS if _starts_with(words, known.casefold().split())]
    return _PEAK_TFLOPS[max(fits, key=len)] if fits else None


def device_names() -> list[str]:
    """The devices that `peak_tflops` knows."""
    return sorted(_PEAK_TFLOPS)


def _starts_with(words: list[str], known: list[str]) -> bool:
    """Whether the first word is the family and the others of ``known`` occur after it."""
    return words[0] == known[0] and set(known[1:]) <= set(words[1:])
