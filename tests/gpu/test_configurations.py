"""Every configuration for GPUs takes its steps on a pretended device, within bounds that are to fall."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.data.batches import batching
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.device_cost import image_cost, rank_bytes, rank_memory
from ppar_dist.ppar.alignment import Stage
from tests.gpu.checks import Bounds, problems
from tests.gpu.pretended import run_cases

CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Job:
    """Two ranks, the width of a configuration's joint space, its bounds, and whether it has a teacher."""

    ranks: int
    width: int
    bounds: Bounds
    teacher: bool = True  # a frozen one, which costs a forward pass


# What was measured, rounded up; a change that lowers a figure lowers its bound.
JOBS = {
    "gta5_vitb16": Job(2, 512, Bounds(waits=2, fp32_share=0.010, peak_gib=6.2, operations=2400)),
    "gta5_rn101": Job(2, 512, Bounds(waits=2, fp32_share=0.019, peak_gib=5.1, operations=2700)),
    "gta5_synthia_urbansyn_eva02l": Job(
        2, 768, Bounds(waits=2, fp32_share=0.004, peak_gib=22.3, operations=6800)
    ),
    "gta5_dinov2l_lora": Job(
        2, 512, Bounds(waits=2, fp32_share=0.004, peak_gib=5.4, operations=4300), teacher=False
    ),
}
LOGGED_WAITS = 3  # a step that is logged brings the method's figures as well


@pytest.fixture(scope="module")
def seen(device: Path, synthetic: Path) -> dict[str, dict[str, Any]]:
    """What each configuration did."""
    found: dict[str, dict[str, Any]] = {}
    for name, job in JOBS.items():  # each in a process of its own: a process has one number of ranks
        found |= run_cases(device, [_case(name, job, synthetic)])
    return found


def test_the_model_of_every_configuration_for_gpus_is_here() -> None:
    """Those that differ in their data, rates or batch alone take the same steps."""

    def model(name: str) -> tuple[Any, ...]:
        config = load_config(CONFIGS / f"{name}.yaml")
        return config.model.model_dump_json(), config.engine.precision, config.data.crop

    files = [path.stem for path in CONFIGS.glob("*.yaml") if load_config(path).engine.precision == "bf16"]
    assert len(files) > len(JOBS)
    assert {model(name) for name in files} == {model(name) for name in JOBS}


@pytest.mark.parametrize("name", JOBS)
def test_steps_of_every_stage_keep_within_their_bounds(name: str, seen: dict[str, dict[str, Any]]) -> None:
    assert "error" not in seen[name], seen[name].get("traceback")
    for stage in Stage:
        step, bounds = seen[name][stage.name.lower()], JOBS[name].bounds
        assert step["stage"] == stage
        assert step["advanced"] == 1
        assert step["finite"]
        if stage is Stage.PIXEL:
            bounds = replace(bounds, waits=LOGGED_WAITS)
        assert problems(step, bounds) == [], stage


@pytest.mark.parametrize("name", [name for name, job in JOBS.items() if job.teacher])
def test_the_teacher_costs_a_forward_pass_in_bf16(name: str, seen: dict[str, dict[str, Any]]) -> None:
    without, with_teacher = seen[name]["visual_text"]["flops"], seen[name]["pixel"]["flops"]
    assert with_teacher["bfloat16"] > 1.05 * without["bfloat16"]
    assert with_teacher["float32"] < 1.1 * without["float32"]


@pytest.mark.parametrize("name", JOBS)
def test_what_doctor_says_without_a_device_is_what_the_device_sees(
    name: str, seen: dict[str, dict[str, Any]], synthetic: Path
) -> None:
    config = _load(name, JOBS[name], synthetic)
    cost, ranks = image_cost(config, ConfigCase(config).segmentor), JOBS[name].ranks
    memory = rank_memory(cost, config, ranks)
    plain, taught = seen[name]["visual_text"], seen[name]["pixel"]
    flops = sum(plain["flops"].values())
    teacher = (sum(taught["flops"].values()) - flops) / config.ppar.bank.teacher_every
    assert math.isclose(cost.train_flops, flops, rel_tol=0.1)
    assert math.isclose(cost.teacher_flops, teacher, rel_tol=0.1, abs_tol=1e-3 * flops)
    assert math.isclose(rank_bytes(cost, memory, batching(config, ranks)), taught["peak"], rel_tol=0.1)


def _case(name: str, job: Job, root: Path) -> dict[str, Any]:
    path = CONFIGS / f"{name}.yaml"
    overrides = _overrides(job, root)
    return {
        "name": name,
        "config": str(path),
        "overrides": overrides,
        "ranks": job.ranks,
        "actions": ["steps"],
    }


def _load(name: str, job: Job, root: Path) -> Config:
    return load_config(CONFIGS / f"{name}.yaml", _overrides(job, root))


def _overrides(job: Job, root: Path) -> list[str]:
    files = [f"data.root={root}", f"text.file={root}/text-{job.width}.npz", "targets={}"]
    return [*files, "engine.compile=false"]  # kernels are what the device lacks
