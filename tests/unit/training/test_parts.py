"""Compiled and recomputed parts compute what the model computes as written."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from ppar_dist.config.load import parse_config
from ppar_dist.config.model_section import BackboneConfig, DecoderConfig, ModelConfig
from ppar_dist.models.backbone import build_backbone
from ppar_dist.models.blocks import blocks
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.training.parts import as_written, compile_parts, recompute
from tests.ranks import tiny_config

TOWERS = {
    "vit": ("vit_tiny_patch16_224", {}, 12),
    "resnet": ("resnet18", {"norm_layer": "groupnorm"}, 8),
    "convnext": ("convnext_atto", {}, 12),
}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on CPUs")


def build(tower: str, decoder: str = "fpn") -> Segmentor:
    name, options, _ = TOWERS[tower]
    torch.manual_seed(0)
    backbone = BackboneConfig(kind="timm", name=name, embed_dim=32, options=options)
    head = DecoderConfig.model_validate({"kind": decoder, "width": 16})
    model = ModelConfig(backbone=backbone, classifier="linear", decoder=head)
    return Segmentor(model, build_backbone(backbone), None, 5)


def images(batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, 64, 96), dtype=torch.uint8, generator=generator)


def outcome(model: Segmentor) -> dict[str, Tensor]:
    """Logits, dense features and gradients of all that is trained."""
    model.zero_grad()
    found = model(images())
    (found.logits.square().mean() + found.dense.square().mean()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": found.logits.detach(), "dense": found.dense.detach()} | gradients


@pytest.mark.parametrize("tower", TOWERS)
def test_a_tower_has_its_blocks(tower: str) -> None:
    assert len(blocks(build(tower).backbone.tower)) == TOWERS[tower][2]


@pytest.mark.parametrize("tower", TOWERS)
def test_recomputed_parts_give_the_same_bits(tower: str) -> None:
    model = build(tower)
    plain, names = outcome(model), list(model.state_dict())
    assert recompute(model) == TOWERS[tower][2]
    assert list(model.state_dict()) == names
    again = outcome(model)
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        assert torch.equal(value, again[name]), name


def test_recomputed_parts_keep_less() -> None:
    """What autograd saves between forward and backward pass, in elements."""

    def saved(model: Segmentor) -> int:
        kept: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(images())
        return sum(kept)

    model = build("vit")
    whole = saved(model)
    recompute(model)
    assert saved(model) < whole / 2


def test_a_copy_of_a_recomputed_part_runs_itself() -> None:
    """As the teacher is: its features follow its own weights."""
    model = build("vit")
    recompute(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.backbone.tower.parameters():
            parameter.mul_(1.5)
    with torch.enable_grad():
        assert not torch.equal(other.dense(images()), model.dense(images()))


@needs_compiler
@pytest.mark.process  # the compiler's
def test_compiled_and_eager_agree(tmp_path: Path) -> None:
    """One graph serves all blocks, another the decoder; other sizes run as written."""
    model = build("vit")
    plain = outcome(model)
    torch._dynamo.reset()
    counters.clear()
    assert compile_parts(model) == 13
    compiled = outcome(model)
    assert counters["stats"]["unique_graphs"] == 2
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-5, msg=name)
    compiled_run = parse_config(tiny_config(tmp_path, tmp_path / "run", engine={"compile": True}))
    with as_written(compiled_run), torch.no_grad():
        model(images()[..., :32])
    assert counters["stats"]["unique_graphs"] == 2


def test_a_level_that_no_decoder_asks_for_is_not_trained() -> None:
    model = build("vit", "aspp")
    found = outcome(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained <= found.keys()
    assert not any(name.startswith("backbone.neck.levels.1") for name in trained)
    assert "backbone.neck.levels.1.weight" in model.state_dict()
