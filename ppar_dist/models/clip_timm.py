"""open_clip's timm towers (EVA02, SigLIP, ConvNeXt, Swin) with dense features (a reconstruction).

Every cell goes through the trunk's own head as an image of one cell: pooling one cell leaves that cell (an
attention pool its value path), then come the trunk's norm and the projection to the joint space.

Letters: B images, C trunk width, D width of the joint image-text space, (h, w) feature grid.
"""

from __future__ import annotations

from typing import Any

import timm
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from torch import Tensor, nn, unflatten

from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import Backbone
from ppar_dist.models.features import Features, FeatureShape
from ppar_dist.models.pyramid import SimplePyramid, level_depths, pyramid_strides
from ppar_dist.models.timm_trunk import any_size_options


class ClipTimm(Backbone):
    """Token trunks get a simple pyramid; of trunks with stages, the last four are the levels."""

    tower: TimmModel

    def __init__(
        self,
        visual: TimmModel,
        cfg: BackboneConfig,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        vision_cfg: dict[str, Any],
    ) -> None:
        if vision_cfg.get("timm_pool") in ("abs_attn", "rot_attn"):
            raise UserError(
                f"model.backbone.name={cfg.name}: no dense features through its attention pool; use another"
            )
        trunk: Any = _any_image_size(visual.trunk, vision_cfg)
        visual.trunk = trunk
        strides = [info["reduction"] for info in trunk.feature_info]
        plain = len(set(strides)) == 1
        width = _joint_width(visual)
        neck: SimplePyramid | None = SimplePyramid(trunk.num_features) if plain else None
        if neck is not None:
            shape = FeatureShape(neck.channels, pyramid_strides(strides[0]), strides[0], width, strides[0])
        else:
            channels = tuple(info["num_chs"] for info in trunk.feature_info[-4:])
            levels = tuple(float(stride) for stride in strides[-4:])
            shape = FeatureShape(channels, levels, strides[-1], width, strides[-1])
        super().__init__(visual, shape, cfg, mean, std)
        self.neck = neck
        last = len(trunk.feature_info) - 1
        self.levels = sorted(level_depths(last)) if plain else list(range(last - 3, last + 1))
        self.prefix = getattr(trunk, "num_prefix_tokens", 0) if plain else 0

    def run_tower(self, images: Float[Tensor, "B 3 H W"], dense: bool) -> Features:
        """Maps (B, C_l, h_l, w_l) of four levels, and dense features (B, D, h, w)."""
        trunk = self.tower.trunk
        final, found = trunk.forward_intermediates(images, indices=self.levels, output_fmt="NCHW")
        maps = dict(zip(sorted(set(self.levels)), found, strict=True))  # timm returns a level once
        levels = [maps[level] for level in self.levels]
        if not dense:
            return Features(levels, None)
        grid = levels[-1].shape[-2:] if self.neck is None else images.shape[-2:]
        if self.neck is not None:
            grid = (grid[0] // self.dense_stride, grid[1] // self.dense_stride)
        return Features(levels, self._joint(final, grid))

    def finish(self, features: Features, dense: bool, pyramid: bool) -> Features:
        """The pyramid over token maps."""
        if self.neck is None:
            return features
        return Features(self.neck(features.pyramid) if pyramid else [], features.dense)

    def _joint(self, final: Tensor, grid: tuple[int, ...]) -> Tensor:
        if self.neck is None and getattr(self.tower.trunk, "output_fmt", None) == "NHWC":
            cells = final.reshape(-1, 1, 1, final.shape[3])  # (B·h·w, 1, 1, C)
        elif self.neck is None:
            cells = final.permute(0, 2, 3, 1).reshape(-1, final.shape[1], 1, 1)  # (B·h·w, C, 1, 1)
        else:
            tokens = final[:, self.prefix :].flatten(0, 1)  # (B·h·w, C)
            cells = tokens[:, None].expand(
                -1, 1 + self.prefix, -1
            )  # wherever the head looks, it sees the cell
        joint: Tensor = self.tower.head(self.tower.trunk.forward_head(cells))  # (B·h·w, D)
        return unflatten(joint, 0, (final.shape[0], *grid)).permute(0, 3, 1, 2)  # (B, D, h, w)


def _any_image_size(trunk: Any, vision_cfg: dict[str, Any]) -> Any:
    """The same trunk with the same weights, made for any image size (ViT, EVA and Swin fix it when made)."""
    name = vision_cfg["timm_model_name"]
    options: dict[str, Any] = {}
    if name.startswith("swin"):
        options = {"drop_path_rate": 0.0, **any_size_options(name, {})}
    elif hasattr(trunk, "dynamic_img_size"):
        options = {"dynamic_img_size": True}
    if not options:
        return trunk
    options["img_size"] = trunk.patch_embed.img_size
    if vision_cfg.get("timm_drop_path") is not None:
        options["drop_path_rate"] = vision_cfg["timm_drop_path"]
    pool, projection = vision_cfg.get("timm_pool", "avg"), vision_cfg.get("timm_proj", "linear")
    if projection in ("linear", "mlp"):
        dynamic: Any = timm.create_model(name, **options)
        dynamic.reset_classifier(0, **({"global_pool": pool} if pool else {}))
    else:
        classes = trunk.num_classes
        dynamic = timm.create_model(name, num_classes=classes, global_pool=pool, **options)
    dynamic.load_state_dict(trunk.state_dict())
    return dynamic


def _joint_width(visual: TimmModel) -> int:
    """D, of the adapter's projection, else of the trunk's own."""
    linear = [module for module in visual.head.modules() if isinstance(module, nn.Linear)]
    width: int = linear[-1].out_features if linear else visual.trunk.num_classes or visual.trunk.num_features
    return width
