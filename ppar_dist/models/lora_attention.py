"""Low-rank adapters of torch's own attention, whose input projections are one matrix and no layer.

peft's layer for it adds the adapters to the weights before each pass, those of the output twice, and
subtracts them after it, which leaves a rounding error in the frozen weights each time. Here the sums are
handed to the pass and the weights stay as they are, bit for bit. Importing this takes seconds: peft brings
transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraConfig
from peft.tuners.lora.layer import MultiheadAttention
from torch import Tensor, nn
from torch.func import functional_call


class LoraAttention(MultiheadAttention):
    """Attention with adapters of the stacked input projections and of the output projection."""

    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As ``nn.MultiheadAttention``, with the adapted weights."""
        output: Any = self.out_proj
        weight = output.get_base_layer().weight + _change(output)
        weights = {"in_proj_weight": self.in_proj_weight, "out_proj.base_layer.weight": weight}
        return functional_call(self.get_base_layer(), weights, (query, *args), kwargs)

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]  # of peft: without the adapter
        """The stacked projections as they act, adapter included."""
        attention: Any = self.get_base_layer()
        weight: Tensor = attention.in_proj_weight + _change(self)
        return weight

    @property
    def out_proj(self) -> nn.Module:
        """The output projection, adapter included."""
        attention: Any = self.get_base_layer()
        layer: nn.Module = attention.out_proj
        return layer

    def _restore_weights(self) -> None:
        """Nothing: the weights stay where they are, while peft's layer takes them out and puts in others."""

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.MultiheadAttention:
        """The attention below the adapters, with or without what they add."""
        attention = self.get_base_layer()
        assert isinstance(attention, nn.MultiheadAttention)
        output: Any = self.out_proj
        plain = output.get_base_layer()
        if merge:
            with torch.no_grad():
                attention.in_proj_weight.add_(_change(self))
                plain.weight.add_(_change(output))
        attention.out_proj = plain
        return attention


def _change(layer: Any) -> Tensor:
    """What the adapters add to a layer's matrix."""
    changes = [layer.get_delta_weight(name) for name in layer.active_adapters]
    total: Tensor = sum(changes[1:], changes[0])
    return total


def for_attention(config: LoraConfig) -> LoraConfig:
    """``config``, by which torch's attention gets the adapter of this module."""
    config._register_custom_module({nn.MultiheadAttention: LoraAttention})
    return config
