"""What is done to the parts of a model before it trains: compiled, or recomputed in the backward pass.

Both go block by block: the blocks of a tower have one code, so one is compiled for all, and the memory of the
activations falls from that of all blocks to that of one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ppar_dist.config.schema import Config
from ppar_dist.models.blocks import blocks
from ppar_dist.models.segmentor import Segmentor


def compile_parts(segmentor: Segmentor) -> int:
    """Have torch compile each block of the tower, and the decoder, at their next call; returns how many.

    For one size of images: others belong under ``as_written``.
    """
    parts = [*blocks(segmentor.backbone.tower), segmentor.decoder]
    for part in parts:
        part.compile(dynamic=False)
    return len(parts)


def as_written(config: Config) -> AbstractContextManager[object]:
    """Compiled parts run as they are written meanwhile, at any size."""
    return torch.compiler.set_stance("force_eager") if config.engine.compile else nullcontext()


def recompute(segmentor: Segmentor) -> int:
    """Have each block of the tower keep its input alone, and compute the rest again in the backward pass.

    What is computed stays the same, random numbers included. Returns how many blocks there are.
    """
    found = blocks(segmentor.backbone.tower)
    for block in found:
        # A class of its own rather than a forward of its own: a copy of the block keeps the first, and would
        # call the original's second.
        block.__class__ = _recomputed(type(block))
    return len(found)


def compute_once(model: nn.Module) -> None:
    """Undo ``recompute``: for a copy whose operations are counted."""
    for part in model.modules():
        part.__class__ = getattr(type(part), "written", type(part))


def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return checkpoint(kind.forward, self, *args, use_reentrant=False, **kwargs)
        return kind.forward(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, "written": kind})
