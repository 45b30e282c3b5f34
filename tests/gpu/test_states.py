"""A run's life on a pretended device, under each way to divide its state; and that faults are seen."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ppar_dist.config.load import dump_config
from tests.gpu.checks import Bounds, misplaced, problems
from tests.gpu.pretended import run_cases
from tests.unit.tiny_run import make_config, make_domain

RANKS, LOCAL_BATCH = 2, 2
TEACHERS = ("student", "ema", "frozen")
WAYS = list(itertools.product((0, 1, 2), TEACHERS, (1, 2)))  # ZeRO stage, teacher, micro-batches of a step
# Whole lives, each stage and each teacher once; of the others a single step.
LIVES = [(0, "student", 1), (1, "ema", 2), (2, "frozen", 1)]
FAULTY = (0, "ema", 1)  # where faults are made: without ZeRO, whose buckets hide the images' memory
# Of a model of a few thousand parameters, whose classifier, in fp32, is a large part of it.
TINY = Bounds(waits=2, fp32_share=0.5, peak_gib=0.5, operations=3000)
FAULTS = {
    "forgotten autocast": "fp32",
    "questions": "waits",
    "collective in the forward pass": "collective",
    "twice the images": "memory",
    "small calls": "operations",
}


@pytest.fixture(scope="module")
def seen(device: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each case did: lives, single steps, an evaluation, and a step with each fault."""
    root = tmp_path_factory.mktemp("tiny")
    for name in "ab":
        make_domain(root / name, 5)
    (root / "gone.npz").touch()  # what it holds is not read
    cases = [_case(root, way, "life" if way in LIVES else "one") for way in WAYS]
    looks = ("evaluate", "predict", "export")
    cases.append(_case(root, (1, "student", 1), *looks, name="looking"))
    for fault in ("buffer on the CPU", *FAULTS):
        cases.append(_case(root, FAULTY, "one", name=fault, fault=fault))
    return run_cases(device, cases)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_step_is_taken(way: tuple[int, str, int], seen: dict[str, dict[str, Any]]) -> None:
    found = seen[str(way)]
    assert "error" not in found, found.get("traceback")
    assert found["built"]["micro_batch"] == LOCAL_BATCH // way[2]
    _is_a_good_step(found["step"], way)


@pytest.mark.parametrize("way", LIVES, ids=str)
def test_a_checkpoint_is_taken_to_the_cpu_and_put_back(
    way: tuple[int, str, int], seen: dict[str, dict[str, Any]]
) -> None:
    saved, stage, teacher = seen[str(way)]["saved"], way[0], way[1]
    assert saved["places"] == ["cpu"]
    sizes = saved["sizes"]
    (moments,) = (size for name, size in sizes.items() if name.startswith("optimizer-00000-of-"))
    assert 0 < moments <= 3 * seen[str(way)]["built"]["trained"], "this rank's part"
    assert ("teacher.safetensors" in sizes) == (teacher == "frozen")
    assert (sizes["ppar.safetensors"] > sizes["model.safetensors"]) == (teacher == "ema")
    assert saved["collectives"] == {}, f"each rank has its part of ZeRO stage {stage}"
    _is_a_good_step(seen[str(way)]["loaded"], way)


@pytest.mark.parametrize("way", LIVES, ids=str)
def test_a_step_that_is_not_finite_is_dropped(
    way: tuple[int, str, int], seen: dict[str, dict[str, Any]]
) -> None:
    dropped = seen[str(way)]["dropped"]
    assert (dropped["advanced"], dropped["dropped"], dropped["finite"]) == (1, True, False)
    assert "step" not in dropped["collectives"], "nothing was updated, so there is nothing to gather"
    assert list(misplaced(dropped)) == []
    _is_a_good_step(seen[str(way)]["after"], way)


def test_evaluation_prediction_and_export_run_in_bf16(seen: dict[str, dict[str, Any]]) -> None:
    looking = seen["looking"]
    assert "error" not in looking, looking.get("traceback")
    evaluated, predicted, exported = (looking[name] for name in ("evaluated", "predicted", "exported"))
    assert evaluated["images"] == 2
    assert predicted["labels"] == ["cuda", 96, 128]
    assert exported["logits"] == ["cuda", "torch.float32", 1, 6, 24, 32]
    for found in (evaluated, predicted, exported):
        assert found["flops"]["bfloat16"] > found["flops"].get("float32", 0.0)
        assert found["collectives"] == {}
    # Images and their labels go there, once the matrix, and nothing is asked before its end.
    assert sum(evaluated["waits"].values()) <= 2 * evaluated["images"] + 1
    assert predicted["waits"] == exported["waits"] == {}


def test_a_tensor_on_another_device_is_seen(seen: dict[str, dict[str, Any]]) -> None:
    assert "FakeTensorDeviceMismatchError" in seen["buffer on the CPU"]["traceback"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen_by_its_check_alone(fault: str, seen: dict[str, dict[str, Any]]) -> None:
    good = seen[str(FAULTY)]["step"]
    # The tightest bounds that the step without a fault keeps.
    bounds = Bounds(
        waits=sum(good["waits"].values()),
        fp32_share=good["flops"]["float32"] / sum(good["flops"].values()),
        peak_gib=good["peak"] / 2**30,
        operations=good["operations"],
    )
    assert problems(good, bounds) == []
    spoiled = seen[fault]
    assert "error" not in spoiled, spoiled.get("traceback")
    kinds = {problem.partition(" ")[0].rstrip(":") for problem in problems(spoiled["step"], bounds)}
    assert FAULTS[fault] in kinds


def _is_a_good_step(step: dict[str, Any], way: tuple[int, str, int]) -> None:
    assert (step["advanced"], step["dropped"], step["finite"]) == (1, False, True)
    assert problems(step, replace(TINY, operations=way[2] * TINY.operations)) == []


def _case(
    root: Path, way: tuple[int, str, int], *actions: str, name: str | None = None, fault: str | None = None
) -> dict[str, Any]:
    stage, teacher, accumulation = way
    name = name or str(way)
    config = make_config(
        root,
        root / "run",
        engine={"precision": "bf16", "zero_stage": stage},
        ppar={"bank": {"teacher": teacher, "teacher_every": 2}},
        train={"steps": 40, "global_batch": RANKS * LOCAL_BATCH, "micro_batch": LOCAL_BATCH // accumulation},
    )
    path = root / f"{name}.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    case = {"name": name, "config": str(path), "overrides": [], "ranks": RANKS, "actions": list(actions)}
    return case | ({} if fault is None else {"fault": fault})
