"""Backbones: dense features against the towers' own paths and naive loops; weights, activation, freezing."""

from __future__ import annotations

import math
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import Backbone, build_backbone
from ppar_dist.models.clip_vit import resize_positions, value_path
from tests.unit.models.tiny_clip import noise, randomise, register, tower

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])


@pytest.fixture(scope="module", autouse=True)
def _tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    register(tmp_path_factory.mktemp("models"))


def saved(model: torch.nn.Module, folder: Path, name: str = "weights.pt") -> str:
    torch.save(model.state_dict(), folder / name)
    return str(folder / name)


def built(name: str, weights: str | None = None, **options: object) -> Backbone:
    return build_backbone(BackboneConfig(name=name, pretrained=weights, **options)).eval()


def test_resnet_dense_feature_of_one_cell_is_the_towers_own_output(tmp_path: Path) -> None:
    model = tower("tiny-rn-cell")
    torch.nn.init.zeros_(model.visual.attnpool.positional_embedding)
    backbone = built("tiny-rn-cell", saved(model, tmp_path))
    images = noise(32, 32)
    with torch.no_grad():  # the mean token equals the only cell, so any attention gives its value
        torch.testing.assert_close(
            backbone(images).dense[..., 0, 0], model.visual(images), atol=1e-5, rtol=1e-4
        )


def test_resnet_mean_over_cells_is_the_tower_under_uniform_attention(tmp_path: Path) -> None:
    model = tower("tiny-rn")
    pool = model.visual.attnpool
    for projection in (pool.q_proj, pool.k_proj):
        torch.nn.init.zeros_(projection.weight)
        torch.nn.init.zeros_(projection.bias)
    backbone = built("tiny-rn", saved(model, tmp_path))
    images = noise(64, 64)
    with torch.no_grad():
        position = pool.positional_embedding.mean(0) @ pool.v_proj.weight.T @ pool.c_proj.weight.T
        expected = model.visual(images) - position
        torch.testing.assert_close(backbone(images).dense.mean((2, 3)), expected, atol=1e-5, rtol=1e-4)
    assert [tuple(level.shape[1:]) for level in backbone(images).pyramid] == [
        (32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)
    ]  # fmt: skip


def naive_vit(model: torch.nn.Module, image: Tensor, heads: int, quick: bool) -> Tensor:
    """Dense features (h, w, D) of one image in float64, token by token, from the weights alone."""
    w = {name: value.double() for name, value in model.visual.state_dict().items()}
    patch, depth = 16, 1 + max(int(n.split(".")[2]) for n in w if n.startswith("transformer.resblocks"))

    def norm(x: Tensor, name: str) -> Tensor:
        return (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5) * w[name + ".weight"] + w[
            name + ".bias"
        ]

    def mlp(x: Tensor, at: str) -> Tensor:
        hidden = w[at + "mlp.c_fc.weight"] @ norm(x, at + "ln_2") + w[at + "mlp.c_fc.bias"]
        gate = torch.sigmoid(1.702 * hidden) if quick else 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return w[at + "mlp.c_proj.weight"] @ (hidden * gate) + w[at + "mlp.c_proj.bias"]

    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    tokens = [w["class_embedding"] + w["positional_embedding"][0]]
    for i in range(rows):
        for j in range(columns):
            block = image.double()[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            value = (w["conv1.weight"] * block).sum((1, 2, 3))
            tokens.append(value + w["positional_embedding"][1 + i * columns + j])
    tokens = [norm(token, "ln_pre") for token in tokens]
    for layer in range(depth):
        at = f"transformer.resblocks.{layer}."
        normed = [norm(token, at + "ln_1") for token in tokens]
        qkv = [w[at + "attn.in_proj_weight"] @ x + w[at + "attn.in_proj_bias"] for x in normed]
        width = len(tokens[0])
        size = width // heads
        attended = []
        for i in range(len(tokens)):
            out = torch.zeros(width, dtype=torch.float64)
            for head in range(heads):
                q, k, v = (
                    slice(part * width + head * size, part * width + (head + 1) * size) for part in range(3)
                )
                seen = range(len(tokens)) if layer < depth - 1 else [i]
                scores = torch.stack([qkv[i][q] @ qkv[j][k] / math.sqrt(size) for j in seen])
                for share, j in zip(torch.softmax(scores, 0), seen, strict=True):
                    out[head * size : (head + 1) * size] += share * qkv[j][v]
            attended.append(tokens[i] + w[at + "attn.out_proj.weight"] @ out + w[at + "attn.out_proj.bias"])
        tokens = [token + mlp(token, at) for token in attended]
    joint = [norm(token, "ln_post") @ w["proj"] for token in tokens[1:]]
    return torch.stack(joint).reshape(rows, columns, -1)


@pytest.mark.parametrize(("name", "quick"), [("tiny-vit", False), ("tiny-vit-quickgelu", True)])
def test_vit_dense_features_equal_naive_loops(tmp_path: Path, name: str, quick: bool) -> None:
    model = tower(name)
    backbone = built(name, saved(model, tmp_path))
    images = noise(64, 64, batch=1)
    with torch.no_grad():
        dense = backbone(images).dense[0].permute(1, 2, 0).double()
    torch.testing.assert_close(dense, naive_vit(model, images[0], heads=2, quick=quick), atol=1e-4, rtol=1e-4)
    other = naive_vit(model, images[0], heads=2, quick=not quick)
    assert (dense - other).abs().max() > 1e-3  # mixing up GELU and QuickGELU would be noticed


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-vit-custom"])
def test_value_path_is_the_block_when_tokens_see_themselves_alone(name: str) -> None:
    block = tower(name).visual.transformer.resblocks[-1]
    tokens = torch.randn(2, 5, 32)
    alone = torch.full((5, 5), float("-inf")).fill_diagonal_(0.0)
    with torch.no_grad():
        torch.testing.assert_close(
            value_path(block, tokens), block(tokens, attn_mask=alone), atol=1e-5, rtol=1e-4
        )


def test_positions_are_identity_at_native_size_and_resized_elsewhere(tmp_path: Path) -> None:
    positions = torch.randn(17, 8)
    assert resize_positions(positions, (4, 4), (4, 4)) is positions
    resized = resize_positions(positions, (4, 4), (6, 3))
    assert resized.shape == (19, 8)
    torch.testing.assert_close(resized[0], positions[0])
    ramp = torch.cat(
        [torch.zeros(1, 1), torch.arange(4.0).repeat_interleave(4)[:, None]]
    )  # rises with the row
    down = resize_positions(ramp, (4, 4), (8, 4))[1:].reshape(8, 4)
    assert (down.diff(dim=0)[1:-1] > 0).all()
    assert (down.diff(dim=1).abs() < 1e-5).all()
    model = tower("tiny-vit")
    first = built("tiny-vit", saved(model, tmp_path))(noise(96, 48)).dense
    with torch.no_grad():
        model.visual.positional_embedding[1:] = model.visual.positional_embedding[1:].flip(0)
    second = built("tiny-vit", saved(model, tmp_path))(noise(96, 48)).dense
    assert first.shape == (2, 16, 6, 3)
    assert (first - second).abs().max() > 1e-2


@pytest.mark.parametrize("wrap", ["plain", "half", "trained", "safetensors"])
def test_a_file_in_open_clips_format_gives_the_same_features(tmp_path: Path, wrap: str) -> None:
    first = built("tiny-vit-quickgelu", saved(tower("tiny-vit-quickgelu"), tmp_path))
    state = tower("tiny-vit-quickgelu").state_dict()
    path = tmp_path / ("again.safetensors" if wrap == "safetensors" else "again.pt")
    if wrap == "half":
        state = {name: value.half() for name, value in state.items()}
    if wrap == "safetensors":
        save_file(state, path)
    else:
        trained = {"epoch": 1, "state_dict": {"module." + name: value for name, value in state.items()}}
        torch.save(trained if wrap == "trained" else state, path)
    again = built("tiny-vit-quickgelu", str(path))
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    tolerance = 4e-3 if wrap == "half" else 0.0
    images = noise(64, 80)
    torch.testing.assert_close(again(images).dense, first(images).dense, atol=tolerance, rtol=tolerance)
    mixed = built("tiny-vit", str(path))
    assert (mixed(images).dense - first(images).dense).abs().max() > 8e-3


def test_the_openai_tag_implies_quickgelu_also_without_its_weights() -> None:
    small = {"vision_cfg": {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32}}
    text = {"text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    cfg = BackboneConfig(name="ViT-B-16", pretrained="openai", options=small | text)
    kinds = {type(m).__name__ for m in build_backbone(cfg, load_weights=False).modules()}
    assert "QuickGELU" in kinds
    assert "GELU" in kinds
    plain = cfg.model_copy(update={"pretrained": "laion2b_s34b_b88k"})
    assert "QuickGELU" not in {type(m).__name__ for m in build_backbone(plain, load_weights=False).modules()}


def test_a_download_that_fails_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"^the weights openai of RN50 .*: download them elsewhere and set "
    ) as e:
        built("RN50", "openai")
    assert str(e.value).count("ownload") == 2, "the remedy, and no library's words about it"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_statistics_are_those_of_the_weights() -> None:
    torch.testing.assert_close(built("tiny-rn").mean, CLIP_MEAN)
    siglip = {"embed_dim": 192, "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map"}}
    siglip["vision_cfg"]["timm_proj"] = "none"
    text = {"text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    backbone = built("ViT-B-16-SigLIP", options=siglip | text)
    torch.testing.assert_close(backbone.mean, torch.full((3,), 0.5))
    white = backbone.prepare(torch.full((1, 3, 16, 16), 255, dtype=torch.uint8))
    torch.testing.assert_close(white, torch.ones(1, 3, 16, 16))  # (1 − mean) / std


@pytest.mark.parametrize(("name", "size"), [("tiny-siglip", 16), ("tiny-convnext", 32), ("tiny-swin", 32)])
def test_timm_tower_of_one_cell_is_the_towers_own_output(name: str, size: int) -> None:
    backbone = built(name)
    randomise(backbone.tower)
    images = noise(size, size)
    with torch.no_grad():
        dense, own = backbone(images).dense, backbone.tower(images)
    assert dense.shape[2:] == (1, 1)
    torch.testing.assert_close(dense[..., 0, 0], own, atol=1e-4, rtol=1e-3)


def test_eva_tokens_through_norm_and_head_and_any_size_trunk_is_the_same(tmp_path: Path) -> None:
    model = tower("tiny-eva")
    backbone = built("tiny-eva", saved(model, tmp_path))
    with torch.no_grad():
        native, wide = noise(224, 224, batch=1), noise(70, 98, batch=1)
        torch.testing.assert_close(backbone.tower(native), model.visual(native), atol=1e-4, rtol=1e-3)
        trunk = backbone.tower.trunk
        tokens = trunk.head(trunk.forward_features(wide)[:, 1:])  # (1, 35, D)
        found = backbone(wide)
        torch.testing.assert_close(found.dense.flatten(2).transpose(1, 2), tokens, atol=1e-4, rtol=1e-3)
    assert [tuple(level.shape[2:]) for level in found.pyramid] == [(20, 28), (10, 14), (5, 7), (3, 4)]


def test_frozen_batch_norm_keeps_statistics_and_affine_parameters_also_in_training() -> None:
    backbone = build_backbone(BackboneConfig(name="tiny-rn"))
    backbone.train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone(noise(64, 64)).dense.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
    assert backbone.tower.bn1.weight.grad is None
    assert not backbone.tower.bn1.training
    assert backbone.tower.conv1.weight.grad is not None
    assert backbone.tower.training


def test_a_frozen_tower_gets_no_gradient_but_its_new_layers_do() -> None:
    backbone = build_backbone(BackboneConfig(name="tiny-vit", trainable="none")).train()
    found = backbone(noise(64, 64))
    (sum(level.sum() for level in found.pyramid)).backward()
    assert not backbone.tower.training
    assert not found.dense.requires_grad
    assert all(not p.requires_grad and p.grad is None for p in backbone.tower_parameters())
    assert all(p.grad is not None for p in backbone.neck.parameters())


@pytest.mark.parametrize(
    ("name", "options", "multiple", "grids"),
    [
        ("resnet18", {"norm_layer": "groupnorm"}, 4, [(9, 13), (5, 7), (3, 4), (2, 2)]),
        ("convnext_atto", {}, 32, [(16, 16), (8, 8), (4, 4), (2, 2)]),
        ("vit_tiny_patch16_224", {}, 16, [(12, 16), (6, 8), (3, 4), (2, 2)]),
    ],
)
def test_timm_trunks_take_any_size(name: str, options: dict, multiple: int, grids: list) -> None:
    cfg = BackboneConfig(kind="timm", name=name, options=options, embed_dim=8)
    backbone = build_backbone(cfg).eval()
    images = torch.randint(0, 256, (1, 3, 36, 50), dtype=torch.uint8)
    found = backbone(backbone.prepare(images))
    assert backbone.multiple == multiple
    assert [tuple(level.shape[2:]) for level in found.pyramid] == grids
    assert tuple(level.shape[1] for level in found.pyramid) == backbone.channels
    assert backbone.dense_features(images).shape == (1, 8, 3, 4)
    assert backbone.dense_stride == 16


def test_timm_dense_features_sum_projected_levels() -> None:
    cfg = BackboneConfig(kind="timm", name="convnext_atto", embed_dim=8, dense_stride=16)
    backbone = build_backbone(cfg).eval()
    images = noise(64, 96)
    with torch.no_grad():
        found = backbone(images)
        fine, coarse = found.pyramid[2], found.pyramid[3]
        bigger = torch.nn.functional.interpolate(coarse, fine.shape[2:], mode="bilinear")
        first, second = backbone.projections
        expected = torch.einsum("dc,bchw->bdhw", first.weight[..., 0, 0], fine) + first.bias[:, None, None]
        expected += torch.einsum("dc,bchw->bdhw", second.weight[..., 0, 0], bigger)
    torch.testing.assert_close(found.dense, expected, atol=1e-5, rtol=1e-4)
    coarsest = build_backbone(cfg.model_copy(update={"dense_stride": 64}))
    assert coarsest.dense_stride == 32
    assert len(coarsest.projections) == 1


def test_timm_weights_come_from_a_file_and_foreign_ones_are_refused(tmp_path: Path) -> None:
    model = timm.create_model("convnext_atto", num_classes=7)
    path = saved(model, tmp_path)
    cfg = BackboneConfig(kind="timm", name="convnext_atto", embed_dim=8, pretrained=path)
    backbone = build_backbone(cfg)
    assert torch.equal(backbone.tower.stem_0.weight, model.stem[0].weight)
    torch.save({"stem.0.weight": model.stem[0].weight.detach()}, tmp_path / "part.pt")
    with pytest.raises(UserError, match=r"does not hold .* give a checkpoint of this very model"):
        build_backbone(cfg.model_copy(update={"pretrained": str(tmp_path / "part.pt")}))
    with pytest.raises(UserError, match="neither a file nor a timm tag"):
        build_backbone(cfg.model_copy(update={"pretrained": "missing.pt"}))


def test_mistakes_are_named_with_their_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown open_clip model .*ViT-B-61; did you mean ViT-B-16"):
        built("ViT-B-61")
    with pytest.raises(UserError, match=r"unknown timm model .*resnet81; did you mean"):
        build_backbone(BackboneConfig(kind="timm", name="resnet81", embed_dim=8))
    with pytest.raises(UserError, match=r"neither a file nor a tag of tiny-vit .*correct the path"):
        built("tiny-vit", str(tmp_path / "missing.pt"))
    with pytest.raises(UserError, match=r"does not fit tiny-rn: .*give weights of this very model"):
        built("tiny-rn", saved(tower("tiny-vit"), tmp_path))
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"broken.pt cannot be read .*b'not a checkpoint'"):
        built("tiny-vit", str(tmp_path / "broken.pt"))
    with pytest.raises(UserError, match=r"cannot build tiny-vit .*colour"):
        built("tiny-vit", options={"colour": "red"})
    with pytest.raises(UserError, match=r"timm cannot make resnet18 .*colour.*correct the options"):
        build_backbone(BackboneConfig(kind="timm", name="resnet18", embed_dim=8, options={"colour": 1}))
    model = tower("tiny-vit")
    torch.nn.init.constant_(model.visual.conv1.weight, float("nan"))
    with pytest.raises(UserError, match=r"not finite in visual.conv1.weight; save them in fp32"):
        built("tiny-vit", saved(model, tmp_path))


def test_text_tower_is_no_part_of_the_module() -> None:
    backbone = built("tiny-vit")
    assert backbone.text_tower().encode(["a road", "a car"]).shape == (2, 16)
    assert not any("token" in name for name in backbone.state_dict())
    backbone.drop_text_tower()
    assert backbone.text_tower() is None
    assert isinstance(open_clip.create_model("tiny-vit").visual, torch.nn.Module)
