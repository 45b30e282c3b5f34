"""The report of a check on a GPU: what failed and what was not run stand in it, beside what came out."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Jobs, Skip, check, report, step_figures


def test_a_check_that_fails_or_cannot_be_tried_is_an_outcome(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(jobs: Jobs) -> str:
        raise RuntimeError("ended with 70: a | b\nlast line")

    def cannot(jobs: Jobs) -> str:
        raise Skip("one GPU: not run")

    monkeypatch.setattr(gpu_check, "CHECKS", {"one": lambda jobs: "fine", "two": fails, "three": cannot})
    jobs = Jobs(tmp_path, "cpu", quick=True)
    outcomes = [check(name, jobs) for name in gpu_check.CHECKS]
    assert [each.ok for each in outcomes] == [True, False, None]
    page = report(outcomes, "NVIDIA H100", "make gpu-check")
    assert "# NVIDIA H100" in page
    assert "| one | ok | fine | 0 |" in page
    assert "| two | **failed** | RuntimeError: ended with 70: a / b last line | 0 |" in page
    assert "| three | not run | one GPU: not run | 0 |" in page


def test_figures_are_medians_of_the_steps_after_the_first_few() -> None:
    first = [{"seconds": 60.0, "data_wait": 9.0, "images_per_second": 0.1, "mfu": 0.001}] * 5
    steady = [
        {
            "seconds": ms / 1e3,
            "data_wait": 0.002,
            "images_per_second": 80.0,
            "mfu": 0.4,
            "device_memory_peak": 2**30,
        }
        for ms in (90, 100, 700)
    ]
    said = step_figures([*first, *steady])
    assert said == "100.0 ms a step, data wait 2.0 ms, 80 images/s, MFU 40.0%, 1.0 GiB"
