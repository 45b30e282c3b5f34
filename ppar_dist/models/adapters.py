"""Adapters (LoRA and its kin) in an image tower: peft's layers, put into it in place.

A layer L becomes one with the layer itself as ``L.base_layer``, frozen, and with ``L.lora_A.default`` and
``L.lora_B.default`` beside it; all other names stay. B is 0 at first, so nothing changes yet. A tower may use
a layer's matrix without calling the layer, past the adapter: which adapters learn is therefore tried out.

Sources: LoRA, Hu et al. 2021; rsLoRA, Kalajdzievski 2023; DoRA, Liu et al. 2024.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

from torch import nn

from ppar_dist.config.model_section import BackboneConfig, LoraConfig
from ppar_dist.errors import UserError
from ppar_dist.models.blocks import layers

_NAME = "default"  # of the adapter; peft allows several
_KINDS = (nn.Linear, nn.MultiheadAttention, nn.Conv2d)
MAGNITUDE = "lora_magnitude_vector"  # of DoRA, in names of parameters: lengths, no matrix


@dataclass(frozen=True)
class AdapterReport:
    """Where the adapters are."""

    kind: str
    rank: int
    adapted: tuple[str, ...]  # names of layers in the tower
    left_out: tuple[str, ...]  # layers whose adapters would learn nothing

    def text(self) -> str:
        """One line for a log."""
        text = f"{self.kind} of rank {self.rank} in {len(self.adapted)} layers of the tower"
        if not self.left_out:
            return text
        return (
            f"{text}; none in {', '.join(self.left_out)}: the tower uses these past an adapter, or not at all"
        )


def add_adapters(tower: nn.Module, cfg: BackboneConfig, gradients: Callable[[], None]) -> AdapterReport:
    """Put adapters into a tower, whose own parameters are frozen.

    Args:
        tower: of which layers are replaced.
        cfg: ``lora`` says which and how.
        gradients: sends a gradient through everything that is made of the tower's features.

    Raises:
        UserError: peft is missing, or the targets are not layers that can learn so.
    """
    names = _targets(tower, cfg)
    _inject(tower, cfg.lora, names)
    gradients()
    silent = tuple(name for name in names if _learns_nothing(tower.get_submodule(name)))
    if silent and (cfg.lora.targets is not None or len(silent) == len(names)):
        raise UserError(
            f"model.backbone.lora.targets: adapters of {_few(silent)} in {cfg.name} would learn nothing, as "
            "the tower uses these layers past an adapter, or not at all; leave them out, or take null"
        )
    for name in silent:
        _replace(tower, name, _plain(tower.get_submodule(name), merge=False))
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_("lora_" in name)
    adapted = tuple(name for name in names if name not in silent)
    return AdapterReport(cfg.lora.kind, cfg.lora.rank, adapted, silent)


def remove_adapters(tower: nn.Module, merge: bool) -> None:
    """Put the layers below all adapters back into the tower; ``merge``: with what the adapters add."""
    for name in [name for name, module in tower.named_modules() if _is_outermost(name, module)]:
        _replace(tower, name, _plain(tower.get_submodule(name), merge))


def _targets(tower: nn.Module, cfg: BackboneConfig) -> list[str]:
    """Names of the layers that get adapters."""
    inside_attention = {
        id(inner)
        for module in tower.modules()
        if isinstance(module, nn.MultiheadAttention)
        for inner in module.modules()
        if inner is not module
    }
    known: dict[str, nn.Module] = {
        name: module
        for name, module in tower.named_modules()
        if isinstance(module, _KINDS) and id(module) not in inside_attention
    }
    names = _of_blocks(tower, known) if cfg.lora.targets is None else _matching(known, cfg)
    attention = [name for name in names if isinstance(known[name], nn.MultiheadAttention)]
    if attention and cfg.lora.kind == "dora":
        raise UserError(
            f"model.backbone.lora.kind=dora has no adapter for attention as torch has it ({attention[0]} of "
            f"{cfg.name}); give targets without it, as '[\"*.mlp.*\"]', or take kind=lora"
        )
    return names


def _of_blocks(tower: nn.Module, known: dict[str, nn.Module]) -> list[str]:
    """All matrices of the blocks; of convolutional blocks, where there are none, the convolutions."""
    inside = {id(module) for block in layers(tower) for module in block.modules()}
    names = [name for name, module in known.items() if id(module) in inside]
    matrices = [name for name in names if not isinstance(known[name], nn.Conv2d)]
    return matrices or [name for name in names if getattr(known[name], "groups", 1) == 1]


def _matching(known: dict[str, nn.Module], cfg: BackboneConfig) -> list[str]:
    patterns = cfg.lora.targets or ()
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UserError(
                f"model.backbone.lora.targets: no layer of {cfg.name} is called {pattern}; there are "
                f"{_few(list(known)[-3:])}, for example (attention of torch's kind is adapted as a whole)"
            )
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _inject(tower: nn.Module, lora: LoraConfig, names: list[str]) -> None:
    if not names:
        raise UserError(
            "model.backbone.trainable=lora: the tower has no blocks with matrices; give lora.targets"
        )
    peft = _peft()
    from ppar_dist.models.lora_attention import for_attention  # late: it imports peft

    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules="|".join(map(re.escape, names)),  # an expression for whole names
        use_rslora=lora.kind == "rslora",
        use_dora=lora.kind == "dora",
    )
    try:
        peft.inject_adapter_in_model(for_attention(config), tower, _NAME)
    except ValueError as error:  # groups of a convolution that the rank does not divide by, for one
        raise UserError(f"model.backbone.lora: {error}; give other targets, or another rank") from None


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError:
        raise UserError(
            "model.backbone.trainable=lora needs peft, which is not installed: pip install 'ppar-dist[lora]'"
        ) from None
    return peft


def _learns_nothing(layer: nn.Module) -> bool:
    return all(each.grad is None for name, each in layer.named_parameters() if "lora_" in name)


def _is_outermost(name: str, module: nn.Module) -> bool:
    """Whether a module is an adapted layer, but not the output projection in an adapted attention."""
    return hasattr(module, "lora_A") and ".base_layer." not in f".{name}."


def _plain(layer: Any, merge: bool) -> nn.Module:
    """The layer below an adapter."""
    if hasattr(layer, "unload_and_optionally_merge_module"):
        plain: nn.Module = layer.unload_and_optionally_merge_module(merge, False, None)
        return plain
    if merge:
        layer.merge()
    plain = layer.get_base_layer()
    return plain


def _replace(tower: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(tower.get_submodule(parent), last, module)


def _few(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
