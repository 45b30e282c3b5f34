"""The blocks of an image tower, and the order of its parameters from the image to the features.

Depth counts from below, with n blocks: 0 what comes before the first block (patches, stem, positions), 1..n
the blocks, n + 1 what comes behind the last one (the projection to the joint space). What lies between two
blocks (a stage's downsampling) belongs to the later one, a norm right behind the last block to that block.
This is the order by which BEiT and timm decay learning rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

_BELOW = ("embed", "token", "pos")  # in names of parameters that a tower adds to its patches


@dataclass(frozen=True)
class Part:
    """A module of a tower whose parameters have one depth, or a single parameter."""

    depth: int
    name: str  # within the tower
    module: nn.Module | None
    parameter: nn.Parameter | None = None


def blocks(tower: nn.Module) -> list[nn.Module]:
    """The repeated parts of a tower: the members of each list of modules of one class, outermost first."""
    return list(_blocks(tower))


def layers(tower: nn.Module) -> list[nn.Module]:
    """The blocks, or where these are stages of blocks, as in a Swin or ConvNeXt, the blocks of the stages."""
    found = blocks(tower)
    while found and all(inner := [blocks(each) for each in found]):
        found = [each for stage in inner for each in stage]
    return found


def parts(tower: nn.Module) -> list[Part]:
    """A tower cut at its blocks, in the order in which it registers them; together all of its parameters."""
    return list(_Cut(tower).parts(tower, ""))


def depths(tower: nn.Module) -> dict[str, int]:
    """The depth of each parameter by its name within the tower."""
    found = {}
    for part in parts(tower):
        if part.module is None:
            found[part.name] = part.depth
        else:
            found |= {f"{part.name}.{name}": part.depth for name, _ in part.module.named_parameters()}
    return found


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: it is called so, and has vectors alone."""
    own = list(module.parameters(recurse=False))
    return bool(own) and "norm" in type(module).__name__.lower() and all(each.ndim <= 1 for each in own)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        members = list(child.children()) if isinstance(child, (nn.ModuleList, nn.Sequential)) else []
        own = {type(getattr(member, "base_layer", member)) for member in members}  # below an adapter
        if len(own) == 1 and not own.pop().__module__.startswith("torch.nn"):
            yield from members
        else:
            yield from _blocks(child)


class _Cut:
    """Walks a tower in order, and counts the blocks that it has come to."""

    def __init__(self, tower: nn.Module) -> None:
        own = layers(tower)
        self._blocks = {id(block) for block in own}
        self._above = {
            id(m) for m in tower.modules() if any(id(each) in self._blocks for each in m.modules())
        }
        self._above -= {id(inner) for block in own for inner in block.modules()}
        self._count, self._seen = len(own), 0

    def parts(self, module: nn.Module, prefix: str) -> Iterator[Part]:
        for name, parameter in module.named_parameters(prefix, recurse=False):
            below = any(word in name.rpartition(".")[2] for word in _BELOW)
            yield Part(0 if below else self._count + 1, name, None, parameter)
        for name, child in module.named_children():
            path = f"{prefix}.{name}" if prefix else name
            if id(child) in self._blocks:
                self._seen += 1
                yield Part(self._seen, path, child)
            elif id(child) in self._above:
                yield from self.parts(child, path)
            else:
                yield Part(self._depth_beside(name, child), path, child)

    def _depth_beside(self, name: str, module: nn.Module) -> int:
        """Of a module that is not a block and holds none, by the blocks before it."""
        if self._seen == 0:
            return 0
        if self._seen == self._count and is_norm(module) and not name.startswith("fc_"):  # of pooled features
            return self._count
        return self._seen + 1
