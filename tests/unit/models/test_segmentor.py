"""The segmentor: the narrow cosine, grids for any image size, classifiers, parameter groups."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppar_dist.class_sets import class_set
from ppar_dist.config.load import parse_config
from ppar_dist.config.model_section import BackboneConfig, ModelConfig
from ppar_dist.config.schema import OptimConfig
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import Backbone, build_backbone
from ppar_dist.models.cosine import EPSILON, cosine_logits
from ppar_dist.models.features import Features, FeatureShape
from ppar_dist.models.segmentor import Segmentor, build_segmentor
from tests.unit.models.tiny_clip import register

K, D = 6, 16


@pytest.fixture(scope="module", autouse=True)
def _tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    register(tmp_path_factory.mktemp("models"))


def unit_rows(rows: int, width: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def segmentor(
    name: str = "tiny-vit", features: str = "dense", prototypes: bool = False, **model: Any
) -> Segmentor:
    torch.manual_seed(0)
    backbone = BackboneConfig(name=name)
    cfg = ModelConfig(backbone=backbone, decoder={"width": 8, **model.pop("decoder", {})}, **model)
    text = None if cfg.classifier == "linear" else unit_rows(K, D)
    return Segmentor(cfg, build_backbone(backbone), text, K, features, prototypes).eval()


def photos(height: int, width: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("width", [3, 8, 24])  # narrower than D, and wider
def test_cosine_logits_equal_the_explicit_normalised_embedding(width: int) -> None:
    features, projection, classes = torch.randn(2, width, 3, 4), torch.randn(D, width), unit_rows(K, D)
    found = cosine_logits(features, projection, classes, 20.0)
    expected = torch.zeros(2, K, 3, 4, dtype=torch.float64)
    for b in range(2):
        for i in range(3):
            for j in range(4):
                embedding = projection.double() @ features[b, :, i, j].double()  # (D,)
                length = math.sqrt(float(embedding @ embedding) + EPSILON)
                for k in range(K):
                    expected[b, k, i, j] = 20.0 * float(embedding @ classes[k].double()) / length
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)


def test_cosine_logits_gradients() -> None:
    features = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    projection = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    classes = unit_rows(2, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, p, t: cosine_logits(f, p, t, 2.0), (features, projection, classes)
    )
    zero = cosine_logits(
        torch.zeros(1, 3, 2, 2, requires_grad=True), projection.float(), classes.float(), 2.0
    )
    assert torch.equal(zero, torch.zeros_like(zero))  # a dead pixel is no NaN


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (37, 50), (1, 97), (180, 240)])
def test_grids_cover_images_of_any_size(name: str, height: int, width: int) -> None:
    model = segmentor(name)
    with torch.no_grad():
        found = model(photos(height, width, batch=1))
    stride = model.backbone.dense_stride
    assert found.logits.shape == (1, K, math.ceil(height / 4), math.ceil(width / 4))
    assert found.dense.shape == (1, D, math.ceil(height / stride), math.ceil(width / stride))
    assert found.logits.isfinite().all()
    assert found.logits.abs().max() <= 20.0 + 1e-4


class Ruler(Backbone):
    """A backbone of any stride whose finest level holds the pixel coordinates of its cells."""

    def __init__(self, stride: float) -> None:
        patch = int(4 * stride)
        shape = FeatureShape((2,), (stride,), patch, D, patch)
        super().__init__(nn.Conv2d(3, 1, 1), shape, BackboneConfig(), (0.5,) * 3, (0.5,) * 3)

    def run_tower(self, images: Tensor, dense: bool) -> Features:
        sizes = [int(size / self.strides[0]) for size in images.shape[-2:]]
        axes = [(torch.arange(size) + 0.5) * self.strides[0] for size in sizes]
        return Features(
            [torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(images), 2, *sizes)], None
        )


@pytest.mark.parametrize("stride", [2.0, 3.5, 4.0, 8.0])
def test_logits_lie_where_their_pixels_are_whatever_the_stride(stride: float) -> None:
    cfg = ModelConfig(backbone=BackboneConfig(), decoder={"width": 2}, classifier="linear")
    model = Segmentor(cfg, Ruler(stride), None, 2)
    model.decoder = nn.Module()
    model.decoder.forward = lambda pyramid: pyramid[0]
    with torch.no_grad():
        model.linear.weight.copy_(torch.eye(2)[:, :, None, None])
        model.linear.bias.zero_()
        logits = model(photos(90, 122, batch=1), dense=False).logits[0]
    assert logits.shape == (2, 23, 31)
    inner = slice(2, -2)  # at the border, interpolation between cell centres has nothing beyond
    torch.testing.assert_close(logits[0, inner, 5], 4 * (torch.arange(23.0) + 0.5)[inner])
    torch.testing.assert_close(logits[1, 5, inner], 4 * (torch.arange(31.0) + 0.5)[inner])


def test_images_are_normalised_inside_and_floats_equal_bytes() -> None:
    backbone = segmentor().backbone
    images = photos(16, 20)
    prepared = backbone.prepare(images)
    expected = (images / 255.0 - backbone.mean[:, None, None]) / backbone.std[:, None, None]
    torch.testing.assert_close(prepared[..., :16, :20], expected, atol=1e-5, rtol=1e-5)
    assert prepared.shape == (2, 3, 16, 32)
    assert not prepared[..., 20:].any()
    torch.testing.assert_close(backbone.prepare(images.float()), prepared)


def test_otp_is_frozen_and_otp_init_starts_there_and_learns() -> None:
    images = photos(48, 48)
    otp, learned = segmentor(classifier="otp"), segmentor(classifier="otp_init")
    torch.testing.assert_close(learned(images).logits, otp(images).logits, atol=1e-4, rtol=1e-4)
    assert "text" in dict(otp.named_buffers())
    assert "class_vectors" not in dict(otp.named_parameters())
    learned(images).logits[:, 0].sum().backward()
    assert learned.class_vectors.grad.abs().sum() > 0
    assert learned.projection.grad.abs().sum() > 0


def test_embedding_features_are_the_projected_mean_over_cells() -> None:
    model = segmentor(classifier="linear", features="embedding")
    images = photos(40, 56)
    with torch.no_grad():
        narrow = model.decoder(model.backbone(model.backbone.prepare(images)).pyramid)  # (2, 8, 12, 16)
        dense = model(images).dense
    assert dense.shape == (2, D, 3, 4)
    for i in range(3):
        for j in range(4):
            mean = narrow[:, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean((2, 3))
            torch.testing.assert_close(dense[:, :, i, j], mean @ model.projection.T, atol=1e-5, rtol=1e-4)


def test_dense_features_can_be_left_out_and_the_teachers_are_the_same() -> None:
    model = segmentor()
    images = photos(40, 56)
    with torch.no_grad():
        full, lean = model(images), model(images, dense=False)
        torch.testing.assert_close(lean.logits, full.logits)
        assert lean.dense.shape == (2, D, 0, 0)
        torch.testing.assert_close(model.backbone.dense_features(images), full.dense)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn", "tiny-convnext"])
@pytest.mark.parametrize("classifier", ["otp", "linear"])
def test_bf16_autocast_keeps_logits_in_fp32_and_close(name: str, classifier: str) -> None:
    model = segmentor(name, classifier=classifier)
    images = photos(64, 64)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(images)
    assert rough.logits.dtype == torch.float32
    assert rough.dense.isfinite().all()
    assert (rough.logits - exact.logits).abs().max() < 0.15 * exact.logits.abs().max() + 0.05


@pytest.mark.parametrize("decoder", ["fpn", "aspp"])
def test_parameter_groups_hold_each_trainable_parameter_once(decoder: str) -> None:
    model = segmentor("tiny-rn", decoder={"kind": decoder})
    groups = model.param_groups(OptimConfig(lr=1e-3, backbone_lr=1e-4, weight_decay=0.1))
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for group in groups:
        assert group["lr"] == {"backbone": 1e-4, "head": 1e-3}[group["name"]]
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
    tower = {id(p) for p in model.backbone.tower.parameters()}
    assert all((id(p) in tower) == (g["name"] == "backbone") for g in groups for p in g["params"])


def config(tmp_path: Path, **model: Any) -> Any:
    tree = {
        "run": {"dir": str(tmp_path)},
        "data": {"root": str(tmp_path), "classes": "roads6", "sources": ["a"]},
        "model": {"backbone": {"name": "tiny-vit"}, "decoder": {"width": 8}, **model},
        "train": {"steps": 1, "global_batch": 1},
    }
    return parse_config(tree)


@pytest.mark.parametrize("classifier", ["otp", "otp_init", "linear"])
def test_built_without_weights_it_takes_a_checkpoint_and_answers_the_same(
    tmp_path: Path, classifier: str
) -> None:
    cfg = config(tmp_path, classifier=classifier)
    model, text = build_segmentor(cfg, class_set("roads6"))
    assert text.shape == (K, D)
    assert model.backbone.text_tower() is None
    bare, nothing = build_segmentor(cfg, class_set("roads6"), load_weights=False)
    bare.load_state_dict(model.state_dict(), strict=True)
    assert nothing is None
    images = photos(32, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            bare.eval()(images).logits, model.eval()(images).logits, atol=0.0, rtol=0.0
        )


def test_text_of_another_shape_is_refused() -> None:
    backbone = build_backbone(BackboneConfig(name="tiny-vit"))
    cfg = ModelConfig(backbone=BackboneConfig(name="tiny-vit"))
    with pytest.raises(UserError, match=r"text prototypes are .*take text of the same classes"):
        Segmentor(cfg, backbone, unit_rows(K, D + 1), K)
    with pytest.raises(UserError, match=r"need text prototypes; set text.file or classifier=linear"):
        Segmentor(cfg, backbone, None, K)


@pytest.mark.parametrize("classifier", ["otp", "linear"])
def test_prototypes_of_the_image_correct_a_prediction_and_not_training(classifier: str) -> None:
    plain = segmentor(classifier=classifier)
    model = segmentor(classifier=classifier, prototypes=True)
    for each in (plain, model):
        if each.linear is not None:
            each.linear.weight.data *= 50  # sure of what it says
    images = photos(50, 61)
    torch.testing.assert_close(model(images).logits, plain(images).logits)  # nothing is fitted yet
    width = 8 + model.backbone.channels[2]
    fitted = {
        "means": torch.randn(K, width),
        "precision": 0.1 * torch.eye(width),
        "shares": torch.full((K,), 0.5),
    }
    model.load_refit({f"image_prototypes.{name}": value for name, value in fitted.items()})
    features = torch.stack([model.pixel_features(image) for image in images])  # (2, W + C, 13, 16)
    assert model.image_prototypes is not None
    expected = model.image_prototypes(plain(images).logits, features)
    assert features.shape[2:] == expected.shape[2:] == (13, 16)  # cells of padding do not speak
    assert not torch.allclose(expected, plain(images).logits)
    torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.train()(images).logits, plain.train()(images).logits)


def test_a_linear_classifier_is_replaced() -> None:
    model = segmentor(classifier="linear")
    weights, biases = torch.randn(K, 8), torch.randn(K)
    model.load_refit({"linear.weight": weights, "linear.bias": biases})
    image = photos(48, 64, 1)
    features = model.pixel_features(image[0])[:8]
    expected = torch.einsum("kd,dhw->khw", weights, features) + biases.view(-1, 1, 1)
    torch.testing.assert_close(model(image).logits[0], expected, rtol=1e-4, atol=1e-4)
