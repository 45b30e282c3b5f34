"""What ``engine.precision`` asks of the hardware."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ppar_dist.config.schema import Config
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError

log = logging.getLogger(__name__)

_CPU_INFO = Path("/proc/cpuinfo")
_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # flags of x86, and a feature of Arm


def check_precision(config: Config, world: World, is_new: bool) -> None:
    """Have torch round as ``engine.tf32`` says, and refuse to begin bf16 without instructions for it.

    Without them a library multiplies the same bf16 values, sums in float32 and rounds once, as the
    instructions do: a run that is resumed there goes on as the run it was, only much slower, and is
    warned. Collective.

    Raises:
        UserError: on every rank, when the run is new and a rank's hardware has no such instructions.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.engine.tf32
    if config.engine.precision != "bf16":
        return
    slow = {where for where in world.gather(slow_bf16(world.device)) if where is not None}
    if not slow:
        return
    fault = f"engine.precision=bf16, but {' and '.join(sorted(slow))} of this job has no such instructions"
    has = "x86 with avx512_bf16 or amx_bf16, GPUs from Ampere on"
    if is_new:
        raise UserError(
            f"{fault}: it would be many times slower; set engine.precision=fp32, or use others ({has})"
        )
    if world.is_main:
        log.warning(
            "%s: the run goes on and computes the same, but MUCH slower; resume where there are some (%s)",
            fault,
            has,
        )


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
