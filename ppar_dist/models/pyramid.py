"""A pyramid from the tokens of a plain ViT (Li et al., "Exploring plain vision transformer backbones", 2022).

Letters: B images, C token width, (h, w) token grid, p patch size in pixels.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class SimplePyramid(nn.Module):
    """Four maps on the token grid (stride p) → maps of strides p/4, p/2, p and 2p.

    Odd grids are kept whole: the coarsest map has ceil(h/2) × ceil(w/2) cells.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unused: frozenset[int] = frozenset()  # levels that nobody asks for
        self.channels = (width // 4, width // 2, width, width)
        self.levels = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width // 2, 2, 2),
                    nn.GroupNorm(1, width // 2),
                    nn.GELU(),
                    nn.ConvTranspose2d(width // 2, width // 4, 2, 2),
                ),
                nn.ConvTranspose2d(width, width // 2, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )

    def forward(self, maps: list[Float[Tensor, "B C h w"]]) -> list[Float[Tensor, "B _ _ _"]]:
        """Four maps, shallow to deep → a pyramid, fine to coarse.

        Returns:
            (B, C/4, 4h, 4w), (B, C/2, 2h, 2w), (B, C, h, w) and (B, C, ceil(h/2), ceil(w/2)); an unused level
            is the map as it came.
        """
        pairs = enumerate(zip(self.levels, maps, strict=True))
        return [features if number in self.unused else level(features) for number, (level, features) in pairs]

    def leave_out(self, unused: frozenset[int]) -> None:
        """Neither compute nor train these levels."""
        self.unused = unused
        for number in unused:
            self.levels[number].requires_grad_(False)


def pyramid_strides(patch: int) -> tuple[float, ...]:
    """Strides in pixels of the pyramid over patches of a size."""
    return (patch / 4, patch / 2, float(patch), 2.0 * patch)


def level_depths(last: int) -> tuple[int, int, int, int]:
    """Four depths at even distances up to block ``last`` (0 is the input of the first block)."""
    quarter, half, three = (round(last * share / 4) for share in (1, 2, 3))
    return quarter, half, three, last
