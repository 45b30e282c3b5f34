"""Which device a rank computes on, and what the errors of a GPU mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Literal

import torch

from ppar_dist.distributed.environment import LOCAL_RANK
from ppar_dist.distributed.failures import chain
from ppar_dist.errors import UserError

Wanted = Literal["auto", "cuda", "cpu"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_HIDDEN = ("", "-1", "NoDevFiles")  # values that say: no GPU, on purpose
# What schedulers set where they gave a job GPUs. NVIDIA_VISIBLE_DEVICES=all says nothing: images set it.
_GIVEN = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE", _VISIBLE, "NVIDIA_VISIBLE_DEVICES")
_NOT_GIVEN = ("SLURM_GPUS_ON_NODE=0", *(f"NVIDIA_VISIBLE_DEVICES={word}" for word in ("all", "void", "none")))
_DEV = Path("/dev")


class GpuFault(Enum):
    """What an error of a GPU means for a job."""

    MEMORY = "out of memory"  # what was asked for does not fit
    HARDWARE = "failed"  # device, driver or link: another start may find them well
    UNUSABLE = "cannot run this program"  # torch and device do not fit each other


_MEMORY = ("out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
_UNUSABLE = (
    "no kernel image",
    "invalid device ordinal",
    "driver version is insufficient",
    "PTX was compiled",
)
_OWN_FAULT = ("device-side assert", "invalid argument", "invalid configuration argument")  # of this program
_OF_A_GPU = ("CUDA error", "CUDA driver error", "cuDNN error", "CUDNN_STATUS_", "CUBLAS_STATUS_", "HIP error")


def use_cuda(wanted: Wanted, variables: Mapping[str, str], dev: Path = _DEV) -> bool:
    """Whether ranks compute on GPUs.

    Args:
        wanted: ``engine.device``.
        variables: the environment.
        dev: where the kernel shows devices.

    Raises:
        UserError: a GPU is wanted, or was given to this job, and torch can use none.
    """
    if wanted == "cpu":
        return False
    if torch.cuda.is_available():
        return True
    given = gpus_given(variables, dev)
    if wanted == "cuda" or given:
        asked = "engine.device=cuda" if wanted == "cuda" else f"this job has GPUs ({given})"
        raise UserError(
            f"{asked}, but torch {torch.__version__} can use none: {_reason()}; correct the driver or the "
            "container (--gpus, --nv), or set engine.device=cpu to train on the CPU"
        )
    return False


def gpus_given(variables: Mapping[str, str], dev: Path = _DEV) -> str:
    """What says that this job has GPUs, such as ``SLURM_JOB_GPUS=0,1``; "" where nothing does."""
    if variables.get(_VISIBLE, "0").strip() in _HIDDEN:
        return ""
    # DeepSpeed's launcher sets the variable for its ranks, whether there are GPUs or not.
    names = [name for name in _GIVEN if name != _VISIBLE or LOCAL_RANK not in variables]
    said = [f"{name}={variables[name].strip()}" for name in names if variables.get(name, "").strip()]
    files = sorted(str(path) for path in dev.glob("nvidia[0-9]*"))
    return ", ".join([*(each for each in said if each not in _NOT_GIVEN), *files])


def device_of_rank(variables: Mapping[str, str], ranks: int, is_local: bool) -> torch.device:
    """The GPU of this rank: number LOCAL_RANK, or the only one that the scheduler shows it.

    Args:
        variables: the environment.
        ranks: of the job.
        is_local: whether all ranks are on this machine.

    Raises:
        UserError: ranks would share a GPU.
    """
    local_rank, gpus = int(variables.get(LOCAL_RANK, "0")), torch.cuda.device_count()
    if gpus == 1 and variables.get(_VISIBLE):
        return torch.device("cuda", 0)  # as with srun --gpus-per-task: each rank is shown its own
    if local_rank >= gpus:
        raise UserError(
            f"LOCAL_RANK is the number of this rank's GPU, got {local_rank} on a machine that shows {gpus}; "
            f"start as many ranks as GPUs, or correct {_VISIBLE}"
        )
    if ranks > 1 and LOCAL_RANK not in variables and is_local:
        raise UserError(
            f"{ranks} ranks of one machine (MASTER_ADDR={variables['MASTER_ADDR']}) need LOCAL_RANK, or all "
            "would take the first GPU; set it, or start the ranks by --nproc"
        )
    return torch.device("cuda", local_rank)


def name_of(device: torch.device) -> str:
    """As messages name it: ``cuda:1 (NVIDIA H100 80GB HBM3)``, or ``cpu``."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def gpu_fault(error: BaseException) -> GpuFault | None:
    """What ``error``, or what it came from, says of a GPU; None for a bug, or where it is not about one."""
    for link in chain(error):
        text = str(link)
        if isinstance(link, torch.OutOfMemoryError):
            return GpuFault.MEMORY
        if not isinstance(link, RuntimeError):
            continue
        if not isinstance(link, torch.AcceleratorError) and not any(word in text for word in _OF_A_GPU):
            continue
        if any(word in text for word in _OWN_FAULT):
            return None
        if any(word in text for word in _MEMORY):
            return GpuFault.MEMORY
        return GpuFault.UNUSABLE if any(word in text for word in _UNUSABLE) else GpuFault.HARDWARE
    return None


def gpu_sentence(error: BaseException, fault: GpuFault, device: torch.device, micro_batch: int) -> str:
    """What a user reads of a GPU's fault: the device, torch's own words, and the remedy."""
    first = re.split(r"\n|Compile with|For debugging", str(error).strip())[0].strip().removesuffix(".")
    said = f"{device} {fault.value}: {first}"
    if fault is GpuFault.MEMORY:
        return (
            f"{said}; a micro-batch of {micro_batch} is too large: lower train.micro_batch (global batch and "
            "result stay), or set model.backbone.checkpointing=true; `ppar-dist doctor CONFIG --device cuda` "
            "computes what fits"
        )
    if fault is GpuFault.UNUSABLE:
        return f"{said}; install a torch that is built for this GPU and its driver"
    return f"{said}; start again, and where it comes back, take the device out of service"


def _reason() -> str:
    """Why torch sees no GPU, in its own words."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().partition("\n")[0].rstrip(".")
    return "it sees no device"
