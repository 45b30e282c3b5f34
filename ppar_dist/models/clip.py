"""open_clip models: creation, weights, activation and statistics; one Backbone class per kind of image tower.

Weights are loaded in fp32 whatever the file holds. The activation follows the configuration: a name that
ends in ``-quickgelu`` or a tag trained with QuickGELU (``openai``) gives QuickGELU; a file that is known to
want the other one is refused (``clip_weights``). Mean and standard deviation are those of the tag, else those
all tags of the model share, else CLIP's own; ``options: {force_preprocess_cfg: {mean: …, std: …}}`` overrides
them.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.config.weights import REMEDY
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import Backbone
from ppar_dist.models.clip_resnet import ClipResNet
from ppar_dist.models.clip_timm import ClipTimm
from ppar_dist.models.clip_vit import ClipViT
from ppar_dist.models.clip_weights import load_clip
from ppar_dist.models.load_errors import UNREADABLE
from ppar_dist.models.weight_file import LoadReport
from ppar_dist.text import one_line

_NOT_LOADED = ("No pretrained weights loaded", "No potential checkpoint path found")  # of open_clip's log
_NOT_DOWNLOADED = "Failed to download weights"
_SCHEMAS = ("local-dir:", "hf-hub:")  # open_clip names that bring configuration and weights themselves


def build(cfg: BackboneConfig, load_weights: bool = True) -> Backbone:
    """Build the image tower of an open_clip model and attach its text tower; see ``build_backbone``."""
    model, report = _create(cfg, load_weights)
    visual = model.visual
    statistics = visual.preprocess_cfg["mean"], visual.preprocess_cfg["std"]
    backbone: Backbone
    if isinstance(visual, ModifiedResNet):
        backbone = ClipResNet(visual, cfg, *statistics)
    elif isinstance(visual, VisionTransformer):
        backbone = ClipViT(visual, cfg, *statistics)
    elif isinstance(visual, TimmModel):
        backbone = ClipTimm(visual, cfg, *statistics, _vision_config(cfg))
    else:
        raise UserError(
            f"model.backbone.name={cfg.name}: no dense features for {type(visual).__name__}; use another"
        )
    backbone.report = report
    if report is None or report.has_text:
        model.visual = nn.Identity()  # the text tower does not keep the image tower alive
        backbone.attach_text_tower(ClipText(model.eval().requires_grad_(False), cfg.name))
    return backbone


@dataclass
class ClipText:
    """The text tower of an open_clip model."""

    model: Any
    name: str  # open_clip's model name, which decides the tokenizer

    @torch.no_grad()
    def encode(self, sentences: Sequence[str]) -> Float[Tensor, "N D"]:
        """Embeddings of N sentences in float32, not normalised.

        Raises:
            UserError: the tokenizer is neither installed nor reachable.
        """
        try:
            tokenizer = open_clip.get_tokenizer(self.name, context_length=self.model.context_length)
        except (OSError, ImportError, ValueError, AssertionError, TypeError) as error:
            raise UserError(
                f"the tokenizer of {self.name} is not available: {one_line(error)}; "
                "install transformers and allow its download once, or set text.file"
            ) from None
        tokens = tokenizer(list(sentences)).to(self.model.logit_scale.device)
        embeddings: Tensor = self.model.encode_text(tokens).float()
        return embeddings


def _create(cfg: BackboneConfig, load_weights: bool) -> tuple[Any, LoadReport | None]:
    schema = cfg.name.startswith(_SCHEMAS)
    tag = _check_names(cfg, load_weights) if not schema else None
    file = Path(cfg.pretrained) if cfg.pretrained and load_weights and not schema and not tag else None
    settings: dict[str, Any] = {} if schema else _settings_of_tags(cfg.name, tag)
    settings |= cfg.options
    try:
        with _quieter_log(cfg.pretrained is None and load_weights):
            model = open_clip.create_model(
                cfg.name,
                pretrained=cfg.pretrained if load_weights and tag else None,
                load_weights=load_weights,
                precision="fp32",
                pretrained_text=False,
                **settings,
            )
    except UNREADABLE as error:
        if str(error).startswith(_NOT_DOWNLOADED):
            raise UserError(
                f"the weights {cfg.pretrained} of {cfg.name} are not on this machine and cannot be "
                "downloaded: download them elsewhere and set model.backbone.pretrained (--pretrained of "
                "`ppar-dist text`) to the file, or start where there is a network "
                f"({one_line(error).split(' Last error: ')[-1]})"
            ) from None
        raise UserError(
            f"model.backbone: cannot build {cfg.name} with pretrained={cfg.pretrained}: {one_line(error)}; "
            "give options that it takes and weights of this very model"
        ) from None
    report = load_clip(model, cfg, file) if file is not None else None
    _check_finite(model, cfg)
    return model, report


@contextlib.contextmanager
def _quieter_log(random: bool) -> Iterator[None]:
    """Hide what open_clip logs and raises, and its warning of random weights, but where they stay random."""
    root = logging.getLogger()

    def shows(record: logging.LogRecord) -> bool:
        hidden = (_NOT_DOWNLOADED,) if random else (_NOT_DOWNLOADED, *_NOT_LOADED)  # it loads no file here
        return not str(record.msg).startswith(hidden)

    root.addFilter(shows)
    try:
        yield
    finally:
        root.removeFilter(shows)


def _check_names(cfg: BackboneConfig, load_weights: bool) -> dict[str, Any] | None:
    """Refuse unknown names and weights; the settings of the pretrained tag if it is one."""
    known = open_clip.list_models()
    name = cfg.name.replace("/", "-")
    if name not in known:
        near = difflib.get_close_matches(name, known, 3) or ["RN50", "ViT-B-16-quickgelu", "EVA02-L-14-336"]
        raise UserError(
            f"unknown open_clip model model.backbone.name={cfg.name}; did you mean {', '.join(near)}?"
        )
    if cfg.pretrained is None:
        return None
    tag = get_pretrained_cfg(name, cfg.pretrained)
    if not tag and load_weights and not Path(cfg.pretrained).is_file():
        tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        raise UserError(
            f"model.backbone.pretrained={cfg.pretrained} is neither a file nor a tag of {name} "
            f"(tags: {tags}); correct the path or take a tag, {REMEDY}"
        )
    return tag or None


def _settings_of_tags(name: str, tag: dict[str, Any] | None) -> dict[str, Any]:
    """Activation and statistics that the weights want."""
    name = name.replace("/", "-")
    tags = (
        [tag] if tag else [get_pretrained_cfg(name, known) for known in list_pretrained_tags_by_model(name)]
    )
    statistics = {(tuple(each["mean"]), tuple(each["std"])) for each in tags}
    settings: dict[str, Any] = {}
    if len(statistics) == 1:
        mean, std = statistics.pop()
        settings["force_preprocess_cfg"] = {"mean": mean, "std": std}
    if tag and tag.get("quick_gelu"):
        settings["force_quick_gelu"] = True
    return settings


def _vision_config(cfg: BackboneConfig) -> dict[str, Any]:
    config = open_clip.get_model_config(
        cfg.name.replace("/", "-") if not cfg.name.startswith(_SCHEMAS) else cfg.name
    )
    return {**config["vision_cfg"], **cfg.options.get("vision_cfg", {})}


def _check_finite(model: nn.Module, cfg: BackboneConfig) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()) and "attn_mask" not in name:
            raise UserError(
                f"weights of {cfg.name} (pretrained={cfg.pretrained}) are not finite in {name}; "
                "save them in fp32"
            )
