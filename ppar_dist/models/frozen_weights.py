"""Frozen matrices of a tower kept in bfloat16: half the memory of what no optimiser touches.

Kept so are the matrices of linear, convolutional and attention layers that do not train, nearly all of a
tower. Vectors (biases, norms) and embeddings stay float32. Whoever reads such a matrix from its layer gets it
in float32, made at that moment: a layer computes as one in float32 whose weights were rounded once. Under
autocast to bfloat16 a plain layer gets what is stored, which autocast would have made of it.

``parameters()`` and ``state_dict()`` hold what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_KINDS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
# Of these, whose own pass hands its matrix to nothing but a product. Others may compute with it first.
_PLAIN = (nn.Linear.forward, nn.Conv2d.forward, nn.MultiheadAttention.forward)


@dataclass(frozen=True)
class StorageReport:
    """What the frozen matrices of a tower take."""

    matrices: int
    values: int  # of them
    all_values: int  # parameters of the tower

    def text(self) -> str:
        """One line for a log."""
        return (
            f"{self.matrices} frozen matrices of the tower, {self.values} of its {self.all_values} values, "
            f"kept in bfloat16: {2 * self.values / 2**20:.1f} MiB instead of {4 * self.values / 2**20:.1f}"
        )


def keep_in_bf16(tower: nn.Module, exact: bool = False) -> StorageReport:
    """Round the frozen matrices of a tower to bfloat16 and keep them so.

    Adapters are in place, and weights are loaded: what is written into a matrix afterwards is rounded too.

    Args:
        tower: whose layers are changed in place.
        exact: matrices are read in float32 under autocast too, as DoRA needs them for their lengths.
    """
    matrices = values = 0
    for module in tower.modules():
        frozen = [name for name, each in module.named_parameters(recurse=False) if _is_frozen_matrix(each)]
        if not isinstance(module, _KINDS) or not frozen:
            continue
        for name in frozen:
            rounded = module.get_parameter(name).to(torch.bfloat16)
            module.register_parameter(name, nn.Parameter(rounded, requires_grad=False))
            matrices, values = matrices + 1, values + rounded.numel()
        # A class of its own and no hook: who takes the matrix without calling the layer gets it so too.
        module.__class__ = _reading_float32(type(module), exact)  # type: ignore[assignment]
    return StorageReport(matrices, values, sum(each.numel() for each in tower.parameters()))


def _is_frozen_matrix(parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not parameter.requires_grad and parameter.dtype == torch.float32


def _reading_float32(kind: type[nn.Module], exact: bool) -> type[nn.Module]:
    """A class as ``kind``, whose matrices in bfloat16 are read in float32."""
    as_stored = not exact and kind.forward in _PLAIN

    def read(self: nn.Module, name: str) -> Any:
        value = kind.__getattr__(self, name)
        if not isinstance(value, Tensor) or value.dtype != torch.bfloat16:
            return value
        if as_stored and _autocast_makes_bf16(value.device.type):
            return value
        return value.float()

    return type(kind.__name__, (kind,), {"__getattr__": read, "__module__": kind.__module__})


def _autocast_makes_bf16(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
