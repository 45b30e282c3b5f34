"""The base class of image towers, and the registry that builds them.

A new backbone is one file with a ``build(cfg, load_weights)`` that returns a ``Backbone``, and one line
in ``BUILDERS``.

Letters: B images, C_l channels of level l, D width of the joint image-text space, (h, w) feature grid,
(H, W) pixels.
"""

from __future__ import annotations

import importlib
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.errors import UserError
from ppar_dist.models.adapters import AdapterReport, add_adapters, remove_adapters
from ppar_dist.models.features import Features, FeatureShape, ceil_div
from ppar_dist.models.freezing import freeze, without_noise
from ppar_dist.models.frozen_weights import StorageReport, keep_in_bf16
from ppar_dist.models.load_errors import UNREADABLE
from ppar_dist.models.text import TextEncoder
from ppar_dist.models.weight_file import LoadReport
from ppar_dist.text import one_line

# kind of BackboneConfig → module of this package with build(cfg, load_weights); imported when asked for
BUILDERS = {"open_clip": "clip", "timm": "timm_trunk"}

_USABLE = "use a ResNet, ViT (CLIP, DINOv2, DINOv3), EVA02, SigLIP, ConvNeXt or Swin"


def build_backbone(cfg: BackboneConfig, load_weights: bool = True) -> Backbone:
    """Build the backbone a configuration names.

    Args:
        cfg: kind, name and weights of the tower.
        load_weights: False builds the same architecture (activation and statistics included) without
            reading or downloading weights, for a checkpoint that brings them.

    Raises:
        UserError: unknown kind, model name, option or weights; a tower that cannot give dense features.
    """
    if cfg.kind not in BUILDERS:
        raise UserError(f"unknown model.backbone.kind={cfg.kind}; known are {', '.join(BUILDERS)}")
    module = importlib.import_module(f"{__package__}.{BUILDERS[cfg.kind]}")
    backbone: Backbone = module.build(cfg, load_weights)
    _check_features(backbone, cfg)
    if cfg.trainable == "lora":
        backbone.add_adapters()
    return backbone


class Backbone(nn.Module):
    """An image tower with multi-level features and dense features in the joint image-text space.

    A subclass implements ``run_tower`` (pretrained part) and, where new layers follow, ``finish``.
    ``trainable`` freezes the tower, or parts of it (``freezing``): no gradients, and what is frozen as a
    whole is in eval mode, also after ``train()``; layers that are not the tower's stay trainable.
    ``batch_norm: frozen`` does the same to the tower's BatchNorm layers alone: running statistics and affine
    parameters stay what they are.
    """

    mean: Float[Tensor, " 3"]  # of pixels in 0..1
    std: Float[Tensor, " 3"]

    def __init__(
        self,
        tower: nn.Module,
        shape: FeatureShape,
        cfg: BackboneConfig,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.channels, self.strides = shape.channels, shape.strides
        self.dense_stride, self.embed_dim, self.multiple = shape.dense_stride, shape.embed_dim, shape.multiple
        self.cfg, self.frozen = cfg, cfg.trainable == "none"
        self.tower = tower if cfg.batch_norm == "frozen" else _synchronised(tower)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.report: LoadReport | None = None  # of the file of weights that was loaded
        self._text: list[TextEncoder] = []  # a list, so that it is not a submodule: never trained nor saved
        self.adapters: AdapterReport | None = None  # where trainable is lora
        self._stored_in_bf16 = False  # frozen matrices; the tower computes in float32
        freeze(self.tower, cfg)
        self.train()

    def forward(self, images: Float[Tensor, "B 3 H W"], dense: bool = True, pyramid: bool = True) -> Features:
        """Features of prepared images.

        Args:
            images: normalised, H and W multiples of ``multiple`` (see ``prepare``).
            dense: compute the dense joint features.
            pyramid: compute the multi-level features.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.run_tower(images, dense)
        return self.finish(features, dense, pyramid)

    def run_tower(self, images: Float[Tensor, "B 3 H W"], dense: bool) -> Features:
        """The pretrained part; runs without gradients when the tower is frozen."""
        raise NotImplementedError

    def finish(self, features: Features, dense: bool, pyramid: bool) -> Features:
        """Layers that come on top of the tower, always trainable; none by default."""
        return features

    def prepare(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H_2 W_2"]:
        """Normalise and pad at the bottom and right with the mean colour.

        Args:
            images: uint8 or float 0..255.

        Returns:
            Images of the type that the tower computes in; H_2 and W_2 are the least multiples of ``multiple``
            that hold every started 4×4 block of the image.
        """
        scale = 1.0 / (255.0 * self.std.float())
        shift = -self.mean.float() / self.std.float()
        normalised = images.float() * scale[:, None, None] + shift[:, None, None]
        height, width = (self._padded(size) - size for size in images.shape[-2:])
        if height or width:
            normalised = F.pad(normalised, (0, width, 0, height))
        convolutional = normalised.is_cuda and getattr(self, "neck", None) is None
        layout = torch.channels_last if convolutional else torch.contiguous_format  # for tensor cores
        dtype = torch.float32 if self._stored_in_bf16 else next(self.tower.parameters()).dtype
        return normalised.to(dtype).contiguous(memory_format=layout)

    def dense_features(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        """Dense joint features of raw images, as a teacher needs them."""
        dense = self(self.prepare(images), pyramid=False).dense
        return self.crop_dense(dense, images.shape[-2], images.shape[-1])

    def crop_dense(
        self, dense: Float[Tensor, "B D _ _"], height: int, width: int
    ) -> Float[Tensor, "B D h w"]:
        """Drop the cells that hold padding alone: h = ceil(H / dense_stride), w likewise."""
        rows, columns = (ceil_div(side, self.dense_stride) for side in (height, width))
        return dense[..., :rows, :columns]

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; what is frozen stays in eval mode."""
        super().train(mode)
        for module in without_noise(self.tower, self.cfg):
            module.eval()
        return self

    def tower_parameters(self) -> list[nn.Parameter]:
        """Parameters of the tower proper, which learn at ``backbone_lr``."""
        return list(self.tower.parameters())

    def add_adapters(self) -> None:
        """Give the tower the adapters of ``cfg.lora``, which change nothing yet; see ``adapters``."""
        training = self.training
        self.eval()
        self.adapters = add_adapters(self.tower, self.cfg, self._send_gradients)
        self.zero_grad()
        self.train(training)

    def remove_adapters(self, merge: bool) -> None:
        """Leave a plain tower; ``merge``: its weights have what the adapters add."""
        remove_adapters(self.tower, merge)
        self.adapters = None

    def keep_frozen_in_bf16(self) -> StorageReport:
        """Keep the tower's frozen matrices rounded to bfloat16, see ``frozen_weights``; last of all."""
        adapts = self.adapters is not None
        self._stored_in_bf16 = True
        return keep_in_bf16(self.tower, exact=adapts and self.cfg.lora.kind == "dora")

    @torch.enable_grad()
    def _send_gradients(self) -> None:
        """Through everything that a segmentor may make of a small image's features."""
        side = max(self.multiple, math.ceil(max(self.strides)))
        found = self(self.mean.new_zeros(1, 3, side, 2 * side))
        assert found.dense is not None
        ends = [each.sum() for each in (*found.pyramid, found.dense)]
        torch.autograd.backward([each for each in ends if each.requires_grad])

    def attach_text_tower(self, encoder: TextEncoder) -> None:
        """Keep the text tower that belongs to the image tower, outside parameters and state."""
        self._text = [encoder]

    def text_tower(self) -> TextEncoder | None:
        """The text tower of the same joint space, or None (dropped, or the model lacks one)."""
        return self._text[0] if self._text else None

    def drop_text_tower(self) -> None:
        """Free the text tower; the prototypes have been computed, or come from a file."""
        self._text = []

    def _padded(self, size: int) -> int:
        return ceil_div(4 * ceil_div(size, 4), self.multiple) * self.multiple


def _check_features(backbone: Backbone, cfg: BackboneConfig) -> None:
    """Refuse a tower whose features are not as declared, on a small image; parameters stay what they are."""
    coarsest = max(backbone.multiple, math.ceil(max(backbone.strides)))
    height, width = 2 * coarsest, 3 * coarsest
    training = backbone.training
    try:
        with torch.no_grad():
            found = backbone.eval()(backbone.mean.new_zeros(1, 3, height, width))
    except UNREADABLE as error:
        raise UserError(
            f"model.backbone.name={cfg.name}: its tower takes no image of {height}x{width} pixels, as dense "
            f"features need ({one_line(error)}); {_USABLE}"
        ) from None
    backbone.train(training)
    assert found.dense is not None
    shapes = [tuple(level.shape[1:]) for level in (*found.pyramid, found.dense)]
    channels = (*backbone.channels, backbone.embed_dim)
    strides = (*backbone.strides, backbone.dense_stride)
    expected = [(c, round(height / s), round(width / s)) for c, s in zip(channels, strides, strict=True)]
    if shapes != expected:
        raise UserError(
            f"model.backbone.name={cfg.name}: its features are not maps of channels, rows and columns "
            f"({shapes} instead of {expected}); {_USABLE}"
        )


def _synchronised(tower: nn.Module) -> nn.Module:
    from timm.layers import convert_sync_batchnorm  # late: its import takes a second

    synchronised: nn.Module = convert_sync_batchnorm(tower)
    return synchronised
