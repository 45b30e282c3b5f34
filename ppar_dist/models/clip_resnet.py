"""open_clip's ModifiedResNet with dense features (reconstruction; see README, Method).

The attention pool maps each cell x to c_proj(v_proj(x)) and averages over cells: as 1×1 convolutions the
two give every cell a vector of the joint space (MaskCLIP, Zhou et al. 2022). The pool's queries, keys and
positional embedding serve only the averaging; they are not used, and frozen.

Letters: B images, D width of the joint image-text space, (h, w) feature grid of stride 32.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.models.backbone import Backbone
from ppar_dist.models.features import Features, FeatureShape


class ClipResNet(Backbone):
    """Levels of strides 4, 8, 16, 32; dense features of stride 32."""

    tower: ModifiedResNet

    def __init__(
        self, visual: ModifiedResNet, cfg: BackboneConfig, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        shape = FeatureShape(
            channels=tuple(stage[-1].conv3.out_channels for stage in stages),
            strides=(4.0, 8.0, 16.0, 32.0),
            dense_stride=32,
            embed_dim=visual.attnpool.c_proj.out_features,
            multiple=32,  # its average pools drop what does not fill a window
        )
        pool = visual.attnpool
        pool.positional_embedding.requires_grad_(False)
        pool.q_proj.requires_grad_(False)
        pool.k_proj.requires_grad_(False)
        super().__init__(visual, shape, cfg, mean, std)

    def run_tower(self, images: Float[Tensor, "B 3 H W"], dense: bool) -> Features:
        """Stem, four stages, then value and output projection per cell."""
        features = self.tower.stem(images)
        pyramid = []
        for stage in (self.tower.layer1, self.tower.layer2, self.tower.layer3, self.tower.layer4):
            features = stage(features)
            pyramid.append(features)
        if not dense:
            return Features(pyramid, None)
        values = _per_cell(self.tower.attnpool.v_proj, features)
        return Features(pyramid, _per_cell(self.tower.attnpool.c_proj, values))  # (B, D, h, w)


def _per_cell(linear: nn.Linear, features: Tensor) -> Tensor:
    return F.conv2d(features, linear.weight[:, :, None, None], linear.bias)
