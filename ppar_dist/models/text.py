"""Original text prototypes (OTP): one frozen text vector per class (reconstruction; see README, Method).

t_k = norm(mean over the names and templates of class k of norm(E_text(template(name)))), optionally
centred over the classes and renormalised. E_text is a text tower, or a file of its embeddings.

Letters: K classes, D width of the joint image-text space, N names.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ppar_dist.class_sets import ClassSet
from ppar_dist.config.model_section import TextConfig
from ppar_dist.errors import UserError
from ppar_dist.files.durable import write_atomically
from ppar_dist.text import one_line

if TYPE_CHECKING:
    from ppar_dist.models.backbone import Backbone


_SAME = 1e-6  # of 1 - cosine: far above rounding, far below any two texts


class TextEncoder(Protocol):
    """Turns sentences into vectors of the joint space."""

    def encode(self, sentences: Sequence[str]) -> Float[Tensor, "N D"]:
        """Embeddings of N sentences in float32, not normalised."""


def text_prototypes(cfg: TextConfig, classes: ClassSet, backbone: Backbone | None) -> Float[Tensor, "K D"]:
    """The OTP of every class.

    Args:
        cfg: a file of embeddings, or templates for the text tower; whether to centre.
        classes: whose ``prompts`` are looked up or encoded. Of several names of a class, those the file
            lacks are left out; a class with none is refused.
        backbone: brings the text tower and the width D; None with a file alone.

    Returns:
        Rows of length 1, in float32.

    Raises:
        UserError: the file is missing, malformed, of another width or lacks a class; there is no text
            tower; two classes have the same vector; centring leaves nothing of a class.
    """
    if cfg.file is not None:
        means = _from_file(Path(str(cfg.file)), classes)
    else:
        means = _from_tower(cfg.templates, classes, backbone)
    if backbone is not None and means.shape[1] != backbone.embed_dim:
        raise UserError(
            f"text embeddings are {means.shape[1]} wide, the backbone's joint space {backbone.embed_dim}: "
            "take text.file from the same CLIP model, or set model.backbone.embed_dim (kind: timm)"
        )
    prototypes = F.normalize(means.double(), dim=1)
    _refuse_same(prototypes, classes.classes)
    if cfg.center:
        prototypes = _centred(prototypes)
    return prototypes.float()


def write_embeddings(
    path: Path, names: Sequence[str], templates: Sequence[str], encoder: TextEncoder
) -> None:
    """Write the .npz that ``text.file`` reads: a row norm(mean over templates of norm(E_text)) per name.

    Raises:
        UserError: a template lacks its {}, two names have the same vector, or the file cannot be written.
    """
    check_templates(templates, "a template")
    rows = []
    for name in names:
        sentences = [template.replace("{}", name) for template in templates]
        mean = F.normalize(encoder.encode(sentences).double(), dim=1).mean(0)  # (D,)
        rows.append(F.normalize(mean, dim=0).float())
    _refuse_same(torch.stack(rows).double(), names)
    content = io.BytesIO()
    np.savez(content, names=np.array(list(names)), embeddings=torch.stack(rows).numpy())
    try:
        write_atomically(path, content.getbuffer())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another --out") from None


def check_templates(templates: Sequence[str], what: str) -> None:
    """Refuse templates without a place for the name: all classes would have the same text.

    Raises:
        UserError: there is one, or no template at all.
    """
    wrong = [template for template in templates if "{}" not in template]
    if wrong or not templates:
        raise UserError(f"{what} is a sentence with {{}} for the name, got {wrong or 'none'}; add {{}}")


def _refuse_same(vectors: Float[Tensor, "N D"], names: Sequence[str]) -> None:
    """Refuse unit vectors of which two are equal up to rounding: what they stand for cannot be told apart."""
    near = (vectors @ vectors.t()).triu(1) > 1 - _SAME
    if bool(near.any()):
        first, second = (names[int(number)] for number in near.nonzero()[0])
        raise UserError(
            f"the text embeddings of {first} and {second} are the same: no model could tell them "
            "apart; give each a text of its own (a template holds {} for the name)"
        )


def _centred(prototypes: Tensor) -> Tensor:
    centred = prototypes - prototypes.mean(0)
    lengths: Tensor = centred.norm(dim=1)
    if bool((lengths < 1e-6).any()):
        raise UserError("text.center leaves nothing of a class (there is one class); set text.center=false")
    return centred / lengths[:, None]


def _from_tower(templates: tuple[str, ...], classes: ClassSet, backbone: Backbone | None) -> Tensor:
    encoder = backbone.text_tower() if backbone is not None else None
    if encoder is None:
        raise UserError("the backbone has no text tower: set text.file to an .npz of names and embeddings")
    check_templates(templates, "each of text.templates")
    means = []
    for prompts in classes.prompts:
        sentences = [template.replace("{}", prompt) for prompt in prompts for template in templates]
        means.append(F.normalize(encoder.encode(sentences).double(), dim=1).mean(0))  # (D,)
    return torch.stack(means)  # (K, D)


def _from_file(path: Path, classes: ClassSet) -> Tensor:
    vectors = _read_embeddings(path)
    lacking = [
        name
        for name, prompts in zip(classes.classes, classes.prompts, strict=True)
        if not any(prompt in vectors for prompt in prompts)
    ]
    if lacking:
        raise UserError(
            f"text.file={path} has no embedding of {', '.join(lacking)} "
            f"(it has {', '.join(sorted(vectors))}); add them, or use an open_clip backbone's text tower"
        )
    means = []
    for prompts in classes.prompts:
        found = np.stack([vectors[prompt] for prompt in prompts if prompt in vectors])
        means.append(F.normalize(torch.from_numpy(found), dim=1).mean(0))  # (D,)
    return torch.stack(means)  # (K, D)


def _read_embeddings(path: Path) -> dict[str, np.ndarray]:
    """Name → (D,) float64, from an .npz with ``names`` (N,) and ``embeddings`` (N, D)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names, embeddings = archive["names"], archive["embeddings"].astype(np.float64)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read text.file={path}: {one_line(error)}; "
            "it is an .npz with names (N,) and embeddings (N, D)"
        ) from None
    if embeddings.ndim != 2 or names.shape != embeddings.shape[:1]:
        raise UserError(
            f"text.file={path} holds names (N,) and embeddings (N, D), got {names.shape} "
            f"and {embeddings.shape}; write one row per name"
        )
    if not np.isfinite(embeddings).all() or not np.linalg.norm(embeddings, axis=1).all():
        raise UserError(f"text.file={path} holds a non-finite or zero embedding; compute it again in fp32")
    vectors = dict(zip((str(name) for name in names), embeddings, strict=True))
    if len(vectors) < len(names):
        twice = sorted(name for name in vectors if (names == name).sum() > 1)
        raise UserError(
            f"text.file={path} holds one row per name, but several of {', '.join(twice)}; keep one"
        )
    return vectors
