"""The image tower in its library's own format: the library's own function loads it, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.export import export
from tests.unit.export.models import ATTO, make_run
from tests.unit.models import tiny_clip


@pytest.fixture(scope="module", autouse=True)
def _registered(tmp_path_factory: pytest.TempPathFactory) -> None:
    tiny_clip.register(tmp_path_factory.mktemp("models"))


def same(tower: Any, state: dict[str, torch.Tensor]) -> bool:
    found = tower.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit-quickgelu", "tiny-eva"])
def test_open_clip_loads_a_tower_with_the_text_tower_it_began_with(name: str, tmp_path: Path) -> None:
    began = tiny_clip.tower(name, seed=7)
    save_file(
        {key: value.contiguous() for key, value in began.state_dict().items()}, tmp_path / "began.safetensors"
    )
    backbone = {"kind": "open_clip", "name": name, "pretrained": str(tmp_path / "began.safetensors")}
    make_run(tmp_path / "run", backbone)
    made = export(tmp_path / "run", tmp_path / "tower.safetensors", "tower")
    model = open_clip.create_model(name, pretrained=str(tmp_path / "tower.safetensors"))
    segmentor, *_ = load_segmentor(tmp_path / "run")
    assert same(model.visual, segmentor.backbone.tower.state_dict())
    assert not torch.equal(next(model.visual.parameters()), next(began.visual.parameters()))  # it was trained
    tokens = torch.tensor([[49406, 320, 49407] + [0] * 74])
    assert torch.equal(model.encode_text(tokens), began.encode_text(tokens))
    namespace: dict[str, Any] = {"open_clip": open_clip}
    assert same(eval(made.load, namespace).visual, segmentor.backbone.tower.state_dict())


def test_without_pretrained_weights_the_image_tower_is_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "run", {"kind": "open_clip", "name": "tiny-vit"})
    made = export(tmp_path / "run", tmp_path / "tower.safetensors", "tower")
    assert "alone" in str(made)
    model = open_clip.create_model("tiny-vit", pretrained_image_path=str(made.file))
    segmentor, *_ = load_segmentor(tmp_path / "run")
    assert same(model.visual, segmentor.backbone.tower.state_dict())


def test_timm_loads_a_trunk(tmp_path: Path) -> None:
    make_run(tmp_path / "run", ATTO)
    made = export(tmp_path / "run", tmp_path / "tower.safetensors", "tower")
    trunk = timm.create_model(
        "convnext_atto",
        features_only=True,
        out_indices=(-4, -3, -2, -1),
        checkpoint_path=str(made.file),
        **ATTO["options"],
    )
    segmentor, *_ = load_segmentor(tmp_path / "run")
    assert same(trunk, segmentor.backbone.tower.state_dict())


def test_weights_that_are_gone_are_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone.safetensors"
    make_run(tmp_path / "run", {"kind": "open_clip", "name": "tiny-vit", "pretrained": str(gone)})
    with pytest.raises(UserError, match=r"text tower is in the weights.*gone\.safetensors"):
        export(tmp_path / "run", tmp_path / "tower.safetensors", "tower")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_adapters_are_merged_into_the_weights(tmp_path: Path) -> None:
    make_run(tmp_path / "run", {"kind": "open_clip", "name": "tiny-vit", "trainable": "lora"})
    made = export(tmp_path / "run", tmp_path / "tower.safetensors", "tower")
    model = open_clip.create_model("tiny-vit", pretrained_image_path=str(made.file)).eval()
    segmentor, *_ = load_segmentor(tmp_path / "run")
    assert same(model.visual, segmentor.backbone.tower.state_dict())
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors")
    layer = "transformer.resblocks.0.mlp.c_fc"
    down, up = (kept[f"backbone.tower.{layer}.lora_{part}.default.weight"] for part in "AB")
    added = model.visual.get_parameter(f"{layer}.weight") - kept[f"backbone.tower.{layer}.base_layer.weight"]
    lora = segmentor.backbone.cfg.lora
    assert torch.allclose(added, up @ down * lora.alpha / lora.rank, atol=1e-5)
    assert added.abs().max() > 0.1
