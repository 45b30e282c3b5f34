"""What a checkpoint holds is what a resume restores, also where parts are linked to an earlier one's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ppar_dist import checkpoint
from ppar_dist.config.load import dump_config, parse_config
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.export import export
from ppar_dist.training import snapshot
from ppar_dist.training.learner import Learner, build_learner
from ppar_dist.training.plan import make_plan
from tests.ranks import tiny_config, write_blocks_domain


def learner(
    root: Path, world: World, teacher: str, seed: int, dtype: str = "float32", init_from: Path | None = None
) -> tuple[Learner, Any]:
    tower = {"kind": "timm", "name": "test_convnext", "embed_dim": 16, "dense_stride": 8, "trainable": "none"}
    model = {"backbone": tower | {"frozen_dtype": dtype}, "decoder": {"width": 16}}
    folder = root / ("next" if init_from else "run")
    tree = tiny_config(root, folder, model=model, ppar={"bank": {"teacher": teacher}})
    tree |= {"init_from": str(init_from)} if init_from else {}
    plan = make_plan(parse_config(tree | {"seed": seed}), 1)
    return build_learner(plan, world), plan


@pytest.mark.parametrize(
    ("teacher", "dtype"), [("frozen", "float32"), ("frozen", "bfloat16"), ("ema", "bfloat16")]
)
def test_a_learner_is_restored_from_files_of_two_checkpoints(
    world: World, tmp_path: Path, teacher: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_MANY", 1)
    for number, name in enumerate(("left", "right")):
        write_blocks_domain(tmp_path / name, 8, number, None)
    first, plan = learner(tmp_path, world, teacher, seed=1, dtype=dtype)
    run, folder = tmp_path / "run", None
    for step in (0, 1):
        first.state.step, first.state.samples_seen = step, step * plan.config.train.global_batch
        folder = checkpoint.publish(run, snapshot.snapshot(first, plan, world, folder))
    assert folder is not None
    files = checkpoint.read_manifest(folder)["files"]
    linked = {name for name, entry in files.items() if "linked" in entry}
    assert linked == {"frozen.safetensors"} | ({"teacher.safetensors"} if teacher == "frozen" else set())
    second, plan = learner(tmp_path, world, teacher, seed=2, dtype=dtype)
    assert any(not torch.equal(*pair) for pair in zip(tensors(first), tensors(second), strict=True))
    snapshot.restore(second, folder, plan, world)
    assert all(torch.equal(*pair) for pair in zip(tensors(first), tensors(second), strict=True))
    assert second.state == first.state
    matrices = [value for value in load_file(folder / "frozen.safetensors").values() if value.ndim > 1]
    assert {str(value.dtype) for value in matrices} == {f"torch.{dtype}"}


@pytest.mark.parametrize(("there", "here"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_frozen_weights_in_bf16_are_evaluated_exported_and_begun_with(
    world: World, tmp_path: Path, there: str, here: str
) -> None:
    for number, name in enumerate(("left", "right")):
        write_blocks_domain(tmp_path / name, 8, number, None)
    trained, plan = learner(tmp_path, world, "student", 1, there)
    run = tmp_path / "run"
    checkpoint.publish(run, snapshot.snapshot(trained, plan, world))
    (run / "config.yaml").write_text(dump_config(plan.config))
    images = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    with torch.no_grad():
        expected = trained.engine.module.eval()(images)
        found = load_segmentor(run)[0](images)
        export(run, tmp_path / "model")
        exported = load_segmentor(tmp_path / "model")[0](images)
    for other in (found, exported):
        assert torch.equal(other.logits, expected.logits)
        assert torch.equal(other.dense, expected.dense)
    begun, _ = learner(tmp_path, world, "student", 2, here, run)
    assert begun.state.started_from is not None
    notes = {
        "bfloat16": "are rounded to bfloat16 here",
        "float32": "frozen there are rounded to bfloat16, and",
    }
    assert notes[here] in begun.state.started_from["report"]
    own = trained.engine.module.state_dict()
    for name, value in begun.engine.module.state_dict().items():
        if name.startswith("backbone."):
            assert torch.equal(value.to(own[name].dtype), own[name].to(value.dtype).to(own[name].dtype)), name


def tensors(of: Learner) -> Iterator[torch.Tensor]:
    assert of.teacher is not None
    for part in (of.engine.module, of.teacher, SimpleNamespace(state_dict=of.objective.state_dict)):
        yield from part.state_dict().values()


def test_prototypes_of_an_end_are_forgotten_where_more_steps_follow(world: World, tmp_path: Path) -> None:
    for number, name in enumerate(("left", "right")):
        write_blocks_domain(tmp_path / name, 8, number, None)
    first, plan = learner(tmp_path, world, "student", seed=1)
    steps, batch = plan.config.train.steps, plan.config.train.global_batch
    first.engine.module.image_prototypes.shares.fill_(0.5)
    first.state.step, first.state.samples_seen = steps, steps * batch
    first.state.evaluations_since = 3  # without a rise
    folder = checkpoint.publish(tmp_path / "run", snapshot.snapshot(first, plan, world))
    for more, patience, kept in ((0, None, 0.5), (1, None, 0.0), (1, 3, 0.5), (1, 4, 0.0)):
        early = plan.config.train.stop_early.model_copy(update={"patience": patience})
        train = plan.config.train.model_copy(update={"steps": steps + more, "stop_early": early})
        longer = make_plan(plan.config.model_copy(update={"train": train}), 1)
        second = build_learner(longer, world)
        snapshot.restore(second, folder, longer, world)
        assert (second.engine.module.image_prototypes.shares == kept).all()


def test_prototypes_of_an_earlier_form_are_refused_in_a_line(world: World, tmp_path: Path) -> None:
    for number, name in enumerate(("left", "right")):
        write_blocks_domain(tmp_path / name, 8, number, None)
    first, plan = learner(tmp_path, world, "student", seed=1)
    taken = snapshot.snapshot(first, plan, world)
    taken.tensors[checkpoint.MODEL]["prototype_weights"] = torch.zeros(6, 3)
    folder = checkpoint.publish(tmp_path / "run", taken)
    with pytest.raises(UserError, match=r"an earlier form of refit\.prototypes.*train it again"):
        snapshot.restore(first, folder, plan, world)
