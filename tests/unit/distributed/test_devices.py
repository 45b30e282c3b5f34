"""Where a rank computes, and what the errors of a GPU mean. No GPU is asked for: what torch says is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ppar_dist import exit_codes
from ppar_dist.distributed.devices import (
    GpuFault,
    Wanted,
    device_of_rank,
    gpu_fault,
    gpu_sentence,
    gpus_given,
    use_cuda,
)
from ppar_dist.distributed.failures import is_peer_failure
from ppar_dist.errors import UserError
from ppar_dist.training.rank_job import code_of

GIVEN = [
    {"SLURM_JOB_GPUS": "0"},
    {"SLURM_STEP_GPUS": "3"},
    {"SLURM_GPUS_ON_NODE": "4"},
    {"CUDA_VISIBLE_DEVICES": "0"},
    {"NVIDIA_VISIBLE_DEVICES": "GPU-8f2b"},
]
NOT_GIVEN = [
    {},
    {"SLURM_GPUS_ON_NODE": "0"},
    {"NVIDIA_VISIBLE_DEVICES": "all"},  # of images, also where there is no GPU
    {"NVIDIA_VISIBLE_DEVICES": "void"},
    {"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_GPUS": "0"},  # hidden on purpose
    {"CUDA_VISIBLE_DEVICES": "-1", "SLURM_JOB_GPUS": "0"},
    {"CUDA_VISIBLE_DEVICES": "0,1", "LOCAL_RANK": "0"},  # of a launcher, which does not look
]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize("variables", GIVEN, ids=str)
def test_a_gpu_that_was_given_and_cannot_be_used_is_not_replaced_by_the_cpu(
    variables: dict[str, str], tmp_path: Path
) -> None:
    (name,) = variables
    with pytest.raises(UserError, match=rf"has GPUs \({name}=.*can use none: .*engine\.device=cpu"):
        use_cuda("auto", variables, tmp_path)
    assert not use_cuda("cpu", variables, tmp_path)


def test_a_device_of_the_kernel_counts_too(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    assert gpus_given({}, tmp_path) == str(tmp_path / "nvidia0")
    with pytest.raises(UserError, match=r"has GPUs \(.*nvidia0"):
        use_cuda("auto", {}, tmp_path)


@pytest.mark.parametrize("variables", NOT_GIVEN, ids=str)
def test_without_a_gpu_the_cpu_is_right_unless_cuda_is_asked_for(
    variables: dict[str, str], tmp_path: Path
) -> None:
    assert not use_cuda("auto", variables, tmp_path)
    with pytest.raises(UserError, match=r"engine\.device=cuda, but torch"):
        use_cuda("cuda", variables, tmp_path)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_usable_gpu_is_used(wanted: Wanted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert use_cuda(wanted, {}, tmp_path)
    assert not use_cuda("cpu", {}, tmp_path)


@pytest.mark.parametrize(
    ("gpus", "variables", "number"),
    [
        (4, {"LOCAL_RANK": "3"}, 3),
        (1, {"LOCAL_RANK": "3", "CUDA_VISIBLE_DEVICES": "2"}, 0),  # srun --gpus-per-task=1
        (1, {}, 0),
    ],
)
def test_a_rank_takes_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, variables: dict[str, str], number: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert device_of_rank(variables, 4, is_local=False) == torch.device("cuda", number)


FAULTS = [
    (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), GpuFault.HARDWARE, 75),
    (torch.AcceleratorError("CUDA error: unspecified launch failure"), GpuFault.HARDWARE, 75),
    (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), GpuFault.HARDWARE, 75),
    (
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"),
        GpuFault.HARDWARE,
        75,
    ),
    (RuntimeError("cuDNN error: CUDNN_STATUS_MAPPING_ERROR"), GpuFault.HARDWARE, 75),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), GpuFault.MEMORY, 78),
    (torch.AcceleratorError("CUDA error: out of memory"), GpuFault.MEMORY, 78),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), GpuFault.MEMORY, 78),
    (torch.AcceleratorError("CUDA error: no kernel image is available for execution"), GpuFault.UNUSABLE, 78),
    (torch.AcceleratorError("CUDA error: device-side assert triggered"), None, 70),
    (RuntimeError("shape '[3]' is invalid for input of size 4"), None, 70),
    (ValueError("CUDA error: not from torch"), None, 70),
]


@pytest.mark.parametrize(("error", "fault", "code"), FAULTS, ids=lambda value: str(value)[:40])
def test_what_an_error_means_for_the_job(error: Exception, fault: GpuFault | None, code: int) -> None:
    """Hardware is worth another start; what does not fit is the user's; an assert on the device is a bug."""
    assert gpu_fault(error) is fault
    assert code_of(error) == code
    assert code in (exit_codes.RESUME, exit_codes.CONFIG, exit_codes.INTERNAL)
    assert not is_peer_failure(error)


def test_an_error_that_came_from_a_gpus_is_found() -> None:
    error = ValueError("while saving")
    error.__cause__ = torch.AcceleratorError("CUDA error: unspecified launch failure")
    assert gpu_fault(error) is GpuFault.HARDWARE


def test_the_sentence_names_device_and_remedy() -> None:
    one, two = torch.device("cuda", 0), torch.device("cuda", 1)
    memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 1 has 80 GiB")
    said = gpu_sentence(memory, GpuFault.MEMORY, two, 8)
    assert said.startswith("cuda:1 out of memory: CUDA out of memory. Tried to allocate 2.00")
    assert "a micro-batch of 8 is too large: lower train.micro_batch" in said
    assert "doctor CONFIG --device cuda" in said
    broken = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCompile with TORCH_USE")
    said = gpu_sentence(broken, GpuFault.HARDWARE, one, 1)
    assert said.startswith("cuda:0 failed: CUDA error: uncorrectable ECC error encountered; start")
