"""Does the hardware have instructions for ``engine.precision``?"""

from __future__ import annotations

from pathlib import Path

import torch

_CPU_INFO = Path("/proc/cpuinfo")
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of x86, and a feature of Arm


def slow_bf16(device: torch.device, cpu_info: Path = _CPU_INFO) -> str | None:
    """``the CPU`` or ``the GPU`` that computes bf16 without instructions for it; None where it has them.

    Args:
        device: where a rank computes.
        cpu_info: what Linux says of the processor; one that cannot be read counts as without.
    """
    if device.type == "cuda":
        return None if torch.cuda.is_bf16_supported(including_emulation=False) else "the GPU"
    return None if _flags(cpu_info) & _BF16 else "the CPU"


def _flags(cpu_info: Path) -> set[str]:
    try:
        text = cpu_info.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    lines = (line for line in text.splitlines() if line.lower().startswith(("flags", "features")))
    return {word for line in lines for word in line.partition(":")[2].split()}
