"""The configuration itself: can it be read, and can its model be built?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

from ppar_dist.config.evaluation_section import EvaluationConfig
from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.config.weights import REMEDY, weights_file
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.findings import Check, Finding, counted, failure, listing, ok, size, warning
from ppar_dist.errors import UserError
from ppar_dist.evaluation.survey import NO_TRUST, RANDOM_TOWER, is_random, lacks_trust
from ppar_dist.models.text import text_prototypes
from ppar_dist.models.timm_trunk import tagged_models


def refusal(problems: str) -> Finding:
    """The configuration could not be read: every problem in it."""
    return failure(problems, "correct the configuration; all other checks need it and did not run")


def settings(case: ConfigCase) -> Finding:
    """A summary of the configuration."""
    backbone, train = case.config.model.backbone, case.config.train
    ranks = counted(case.world_size, "rank")
    ranks += f" on {case.nodes} machines" if case.nodes > 1 else ""
    return ok(
        f"{backbone.kind} {backbone.name}, {'PPAR' if case.config.ppar.enabled else 'plain fine-tuning'}, "
        f"{counted(train.steps, 'step')} of {counted(train.global_batch, 'image')}, {ranks}",
        run_dir=str(case.config.run.dir),
        steps=train.steps,
        ranks=case.world_size,
    )


def model(case: ConfigCase) -> Finding:
    """The model can be built; weights are not read."""
    try:
        segmentor = case.segmentor
    except UserError as error:
        return failure(str(error), "correct model.* as the message says")
    values = sum(parameter.numel() for parameter in segmentor.parameters())
    trained = sum(parameter.numel() for parameter in segmentor.parameters() if parameter.requires_grad)
    width = segmentor.backbone.embed_dim
    return ok(
        f"{values / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained; joint space {width} wide",
        parameters=values,
        trained=trained,
        embed_dim=width,
    )


def weights(case: ConfigCase) -> Finding | None:
    """The file of the backbone's weights can be loaded; a tag's weights are on this machine already."""
    backbone = case.config.model.backbone
    if backbone.pretrained is None:
        return ok("model.backbone.pretrained is not set: trained from random initialisation")
    file = Path(backbone.pretrained)
    if file.is_file():
        return _loaded(case, file)
    if weights_file(backbone.pretrained) is not None:
        return failure(
            f"model.backbone.pretrained={backbone.pretrained} is neither a file nor a tag of {backbone.name}",
            f"correct the path, {REMEDY}",
        )
    if ":" in backbone.name:
        return None  # the library itself decides where these come from
    if backbone.kind == "timm":
        tagged = tagged_models(backbone.name)
        known = f"{backbone.name.split('.')[0]}.{backbone.pretrained}" in tagged
        return None if known else _unknown_tag(backbone, tagged)
    model = backbone.name.replace("/", "-")
    tag = get_pretrained_cfg(model, backbone.pretrained)
    if not tag:
        return _unknown_tag(backbone, list_pretrained_tags_by_model(model))
    found = _downloaded(tag)
    if found is None:
        return warning(
            f"the weights {backbone.pretrained} of {backbone.name} are not on this machine: the first start "
            "downloads them",
            "start once where there is a network and share its cache with every machine, "
            "or set model.backbone.pretrained to a file",
        )
    return ok(f"{backbone.pretrained} of {backbone.name}, downloaded before: {found}", file=str(found))


def _unknown_tag(backbone: BackboneConfig, known: Sequence[str]) -> Finding:
    return failure(
        f"model.backbone.pretrained={backbone.pretrained} is neither a file nor a tag of {backbone.name}",
        f"correct the path, or take what {backbone.kind} has of it: {listing(known) or 'nothing'}",
    )


def text(case: ConfigCase) -> Finding | None:
    """The text embeddings are there, complete and as wide as the model's joint space."""
    config = case.config
    if not case.needs_text:
        return None
    file = config.text.file
    if file is None:
        return _text_tower(case)
    try:
        vectors = text_prototypes(config.text, case.classes, None)  # (K, D)
    except UserError as error:
        remedy = "give text.file as an absolute path, or put its folder into $PPAR_WEIGHTS"
        return failure(str(error), remedy)
    found, wanted = vectors.shape[1], _embed_dim(case)
    facts: dict[str, Any] = {"file": str(file), "width": found, "classes": len(vectors)}
    if wanted is not None and found != wanted:
        return failure(
            f"{file} is {found} wide, the model's joint space {wanted}",
            "take text.file from the same CLIP model, or set model.backbone.embed_dim (kind: timm)",
            **facts,
        )
    return ok(f"{file}: {len(vectors)} classes, {found} wide, as the model", **facts)


def _loaded(case: ConfigCase, file: Path) -> Finding:
    """What loading a file of weights gave."""
    try:
        report = case.loaded
    except UserError as error:
        return failure(str(error), "correct it as the message says: training refuses this", file=str(file))
    facts: dict[str, Any] = {"file": str(file)}
    text = f"{file}, {size(file.stat().st_size)}"
    if report is None:  # the library read it by itself
        return ok(f"{text}, loaded", **facts)
    facts |= {"form": report.form, "tensors": report.tensors, "used": report.used, "zeros": [*report.zeros]}
    facts |= {"missing": [*report.missing], "left_over": [*report.left_over]}
    text += f"; {report.text()}"
    if report.zeros:
        return warning(
            f"{text}; 0 throughout: {listing(report.zeros)}",
            "give a whole file, unless that is intended",
            **facts,
        )
    return ok(text, **facts)


def _text_tower(case: ConfigCase) -> Finding | None:
    """The text embeddings come from the tower, which must then have its weights."""
    name, pretrained = case.config.model.backbone.name, case.config.model.backbone.pretrained
    try:
        report = case.loaded if Path(pretrained or "").is_file() else None
    except UserError:
        return None  # the check of the weights says why
    if report is not None and not report.has_text:
        return failure(
            f"{report.path} holds no text tower, and text.file is not set",
            "set text.file to embeddings of the same CLIP model (`ppar-dist text` writes such a file), or "
            "give weights of the whole model",
        )
    return ok(f"from the text tower of {name}, when training starts")


def _embed_dim(case: ConfigCase) -> int | None:
    try:
        return case.segmentor.backbone.embed_dim
    except UserError:
        return None  # the check of the model says why


def _downloaded(tag: dict[str, Any]) -> Path | None:
    """The file that open_clip would otherwise download for a tag, where it looks for it."""
    repository, name = os.path.split(str(tag.get("hf_hub", "")))
    if repository:
        names = [name] if name else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        cached = (try_to_load_from_cache(repository, name) for name in names)
        return next((Path(path) for path in cached if isinstance(path, str)), None)
    file = Path("~/.cache/clip").expanduser() / Path(str(tag.get("url", ""))).name
    return file if file.is_file() else None


def windows(case: ConfigCase) -> Finding | None:
    """Keys of windows, where images are seen whole."""
    section, usual = case.config.evaluation, EvaluationConfig()
    idle = [key for key in ("crop", "stride") if getattr(section, key) != getattr(usual, key)]
    if section.mode == "slide" or not idle:
        return None
    named = " and ".join(f"evaluation.{key}={list(getattr(section, key))}" for key in idle)
    return warning(
        f"{named}: of windows, and evaluation.mode={section.mode} sees images whole, so without effect",
        "set evaluation.mode=slide, or remove them",
    )


def trust(case: ConfigCase) -> Finding | None:
    """Trust is on where it is asked for, and judged by a tower that has learned something."""
    section = case.config.ppar
    if lacks_trust(section):
        return warning(*NO_TRUST)
    if not (section.enabled and section.reweighting.enabled and section.reweighting.trust.enabled):
        return None
    random = case.config.init_from is None and is_random(case.config.model.backbone)
    return warning(*RANDOM_TOWER) if random else None


CHECKS = (
    Check("configuration", settings),
    Check("windows", windows),
    Check("model", model),
    Check("weights", weights),
    Check("trust", trust),
    Check("text", text),
)
