"""bf16 without instructions for it: how it is found, and that it is the same arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ppar_dist.config.load import parse_config
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.training.precision import check_precision, slow_bf16
from tests.ranks import tiny_config

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("info", "where"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16 avx512f\n", None),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", None),
        ("Features\t: fp asimd bf16 i8mm\n", None),  # Arm
        ("flags\t\t: fpu avx2 avx512f avx512vl\nbugs : bf16\n", "the CPU"),
        ("", "the CPU"),
    ],
)
def test_the_processors_flags_say_whether_it_has_bf16(tmp_path: Path, info: str, where: str | None) -> None:
    (tmp_path / "cpuinfo").write_text(info, encoding="utf-8")
    assert slow_bf16(CPU, tmp_path / "cpuinfo") == where
    assert slow_bf16(CPU, tmp_path / "missing") == "the CPU"


def test_bf16_is_the_same_arithmetic_with_and_without_instructions() -> None:
    """Products of bf16 values, summed in float32 and rounded once: no more than that on any processor."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(64, 2048, generator=generator).bfloat16()
    right = torch.randn(2048, 48, generator=generator).bfloat16()
    images = torch.randn(1, 64, 12, 12, generator=generator).bfloat16()
    kernel = torch.randn(16, 64, 3, 3, generator=generator).bfloat16()
    found = (left @ right, nn.functional.conv2d(images, kernel))
    exact = (left.double() @ right.double(), nn.functional.conv2d(images.double(), kernel.double()))
    for value, truth in zip(found, exact, strict=True):
        summed = 1e-6 * 2048**0.5 * truth.abs().mean()  # of float32 sums; bf16 sums would be off by 0.1
        assert ((value.double() - truth).abs() <= truth.abs() * 2**-8 + summed).all()


def test_a_new_run_is_refused_and_a_resumed_one_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In fp32, or where there are instructions, nothing is said."""
    tree = tiny_config(tmp_path, tmp_path / "run", engine={"precision": "bf16"})
    bf16, fp32 = parse_config(tree), parse_config(tree | {"engine": {"precision": "fp32"}})
    monkeypatch.setattr("ppar_dist.training.precision.slow_bf16", lambda device: "the CPU")
    with pytest.raises(UserError, match=r"the CPU of this job has no such.*set engine\.precision=fp32"):
        check_precision(bf16, World(), is_new=True)
    check_precision(fp32, World(), is_new=True)
    assert not caplog.records
    check_precision(bf16, World(), is_new=False)
    assert "MUCH slower" in caplog.text
    caplog.clear()
    monkeypatch.setattr("ppar_dist.training.precision.slow_bf16", lambda device: None)
    check_precision(bf16, World(), is_new=True)
    assert not caplog.records
