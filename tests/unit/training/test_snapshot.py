"""What a checkpoint holds is what a resume restores, also where parts are linked to an earlier one's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ppar_dist import checkpoint
from ppar_dist.config.load import parse_config
from ppar_dist.distributed.world import World
from ppar_dist.training import snapshot
from ppar_dist.training.learner import Learner, build_learner
from ppar_dist.training.plan import make_plan
from tests.ranks import tiny_config, write_blocks_domain


def learner(root: Path, world: World, teacher: str, seed: int) -> tuple[Learner, Any]:
    tower = {"kind": "timm", "name": "test_convnext", "embed_dim": 16, "dense_stride": 8, "trainable": "none"}
    model = {"backbone": tower, "decoder": {"width": 16}}
    tree = tiny_config(root, root / "run", model=model, ppar={"bank": {"teacher": teacher}})
    plan = make_plan(parse_config(tree | {"seed": seed}), 1)
    return build_learner(plan, world), plan


@pytest.mark.parametrize("teacher", ["frozen", "ema"])
def test_a_learner_is_restored_from_files_of_two_checkpoints(
    world: World, tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_MANY", 1)
    for number, name in enumerate(("left", "right")):
        write_blocks_domain(tmp_path / name, 8, number, None)
    first, plan = learner(tmp_path, world, teacher, seed=1)
    run, folder = tmp_path / "run", None
    for step in (0, 1):
        first.state.step, first.state.samples_seen = step, step * plan.config.train.global_batch
        folder = checkpoint.publish(run, snapshot.snapshot(first, plan, world, folder))
    assert folder is not None
    files = checkpoint.read_manifest(folder)["files"]
    linked = {name for name, entry in files.items() if "linked" in entry}
    assert linked == {"frozen.safetensors"} | ({"teacher.safetensors"} if teacher == "frozen" else set())
    second, plan = learner(tmp_path, world, teacher, seed=2)
    assert any(not torch.equal(*pair) for pair in zip(tensors(first), tensors(second), strict=True))
    snapshot.restore(second, folder, plan, world)
    assert all(torch.equal(*pair) for pair in zip(tensors(first), tensors(second), strict=True))
    assert second.state == first.state


def tensors(of: Learner) -> Iterator[torch.Tensor]:
    assert of.teacher is not None
    for part in (of.engine.module, of.teacher, SimpleNamespace(state_dict=of.objective.state_dict)):
        yield from part.state_dict().values()
