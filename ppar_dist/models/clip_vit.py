"""open_clip's VisionTransformer with dense features (reconstruction; see README, Method).

In the last block every token attends to itself alone, which leaves the value path of its attention
(MaskCLIP, Zhou et al. 2022); ``ln_post`` and ``proj`` then take each token to the joint space. The positional
embedding is resized bicubically to the grid of each batch; at the native size it is used as it is.

Letters: B images, C token width, D width of the joint image-text space, (h, w) token grid, N = h·w.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import Backbone
from ppar_dist.models.features import Features, FeatureShape
from ppar_dist.models.pyramid import SimplePyramid, level_depths, pyramid_strides


class ClipViT(Backbone):
    """Simple pyramid of strides p/4, p/2, p, 2p over patches of p pixels; dense features of stride p.

    The pyramid takes the tokens at four even depths before the last block. Its convolutions are new.
    """

    tower: VisionTransformer

    def __init__(
        self, visual: VisionTransformer, cfg: BackboneConfig, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        if visual.attn_pool is not None or visual.proj is None:
            raise UserError(
                f"model.backbone.name={cfg.name} pools by attention (CoCa): no dense features; use another"
            )
        patch, width = visual.patch_size[0], visual.conv1.out_channels
        if visual.patch_size[0] != visual.patch_size[1]:
            raise UserError(
                f"model.backbone.name={cfg.name}: patches are square, got {visual.patch_size}; use another"
            )
        neck = SimplePyramid(width)
        shape = FeatureShape(neck.channels, pyramid_strides(patch), patch, visual.proj.shape[1], patch)
        super().__init__(visual, shape, cfg, mean, std)
        self.neck = neck
        self.depths = level_depths(len(visual.transformer.resblocks) - 1)

    def run_tower(self, images: Float[Tensor, "B 3 H W"], dense: bool) -> Features:
        """Maps (B, C, h, w) at four depths, and dense features (B, D, h, w)."""
        tokens, grid = self._embed(images)  # (B, 1+N, C)
        *blocks, last = self.tower.transformer.resblocks
        states = [tokens]
        for block in blocks:
            tokens = block(tokens)
            states.append(tokens)
        maps = [_to_map(states[depth][:, 1:], grid) for depth in self.depths]
        if not dense:
            return Features(maps, None)
        joint = self.tower.ln_post(value_path(last, tokens[:, 1:])) @ self.tower.proj  # (B, N, D)
        return Features(maps, _to_map(joint, grid))

    def finish(self, features: Features, dense: bool, pyramid: bool) -> Features:
        """The pyramid over the maps."""
        return Features(self.neck(features.pyramid) if pyramid else [], features.dense)

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        patches = self.tower.conv1(images)  # (B, C, h, w)
        grid = (patches.shape[2], patches.shape[3])
        tokens = patches.flatten(2).transpose(1, 2)  # (B, N, C)
        first = self.tower.class_embedding.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        position = resize_positions(self.tower.positional_embedding, self.tower.grid_size, grid)
        tokens = torch.cat([first, tokens], 1) + position.to(tokens.dtype)  # the class token is first, once
        return self.tower.ln_pre(tokens), grid


def value_path(block: nn.Module, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
    """A transformer block in which every token attends to itself alone."""
    if not isinstance(block, ResidualAttentionBlock):  # open_clip's custom blocks: say the same by a mask
        count = tokens.shape[1]
        alone = torch.full((count, count), float("-inf"), device=tokens.device).fill_diagonal_(0.0)
        alike: Tensor = block(tokens, attn_mask=alone)
        return alike
    attention = block.attn
    values = slice(2 * attention.embed_dim, None)  # in_proj stacks query, key and value
    value = F.linear(block.ln_1(tokens), attention.in_proj_weight[values], attention.in_proj_bias[values])
    tokens = tokens + block.ls_1(attention.out_proj(value))
    tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
    return tokens


def resize_positions(
    positions: Float[Tensor, "native_rows C"], native: tuple[int, int], grid: tuple[int, int]
) -> Float[Tensor, "rows C"]:
    """Positional embedding of a native grid → of another, bicubic with antialiasing.

    The class token's row is kept. At the native grid the embedding is returned as it is.
    """
    if tuple(native) == tuple(grid):
        return positions
    square = positions[1:].float().T.reshape(1, -1, *native)  # (1, C, h', w')
    resized = F.interpolate(square, grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1].float(), resized[0].flatten(1).T])


def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return torch.unflatten(tokens.transpose(1, 2), 2, grid)  # (B, N, C) → (B, C, h, w)
