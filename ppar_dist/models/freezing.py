"""Which parameters of an image tower train, as ``model.backbone.trainable`` says.

``all``, ``none``; ``last``: the last blocks and what comes behind them; ``norm``: scale and shift of the norm
layers; ``lora``: none of the tower's own, the adapters come later (``adapters``). A frozen BatchNorm layer
stays frozen in all of them.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.errors import UserError
from ppar_dist.models.blocks import Part, is_norm, layers, parts


def freeze(tower: nn.Module, cfg: BackboneConfig) -> None:
    """Take the gradient from the parameters that do not train; those without one stay without.

    Raises:
        UserError: ``trainable`` leaves nothing to train, or names more blocks than there are.
    """
    if cfg.trainable in ("none", "lora"):
        tower.requires_grad_(False)
    elif cfg.trainable == "last":
        for part in _below_last(tower, cfg):
            if part.module is not None:
                part.module.requires_grad_(False)
            if part.parameter is not None:
                part.parameter.requires_grad_(False)
    elif cfg.trainable == "norm":
        _freeze_all_but_norms(tower)
    if cfg.batch_norm == "frozen":
        for module in _batch_norms(tower):
            module.requires_grad_(False)
    if cfg.trainable in ("last", "norm") and not any(each.requires_grad for each in tower.parameters()):
        frozen = (
            " (model.backbone.batch_norm=frozen keeps its BatchNorm layers)" if _batch_norms(tower) else ""
        )
        raise UserError(
            f"model.backbone.trainable={cfg.trainable} leaves nothing to train in {cfg.name}{frozen}; "
            "take all, last, lora or none"
        )


def without_noise(tower: nn.Module, cfg: BackboneConfig) -> list[nn.Module]:
    """Modules that stay in evaluation mode while the rest trains: those that are frozen as a whole."""
    if cfg.trainable == "none":
        return [tower]
    found = _batch_norms(tower) if cfg.batch_norm == "frozen" else []
    if cfg.trainable == "last":
        found += [part.module for part in _below_last(tower, cfg) if part.module is not None]
    return found


def _below_last(tower: nn.Module, cfg: BackboneConfig) -> list[Part]:
    count, last = len(layers(tower)), cfg.last_blocks or 0
    if last > count:
        raise UserError(
            f"model.backbone.last_blocks={last}, but {cfg.name} has {count} blocks; give fewer, or "
            "trainable=all"
        )
    return [part for part in parts(tower) if part.depth <= count - last]


def _freeze_all_but_norms(tower: nn.Module) -> None:
    trained = {id(p) for m in tower.modules() if is_norm(m) for p in m.parameters(recurse=False)}
    for parameter in tower.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)


def _batch_norms(tower: nn.Module) -> list[nn.Module]:
    return [module for module in tower.modules() if isinstance(module, _BatchNorm)]
