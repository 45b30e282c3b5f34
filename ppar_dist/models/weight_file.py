"""Files of weights: which form a file has, by its content, and its tensors by name.

Nothing that a file holds is run: it is read by safetensors, by ``torch.load`` with ``weights_only``, or, of a
TorchScript archive, for its tensors alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ppar_dist.errors import UserError
from ppar_dist.models.load_errors import UNREADABLE
from ppar_dist.models.torchscript import is_torchscript, read_torchscript
from ppar_dist.text import one_line, printable

FORMS = (
    "OpenAI's TorchScript archive, a state dict saved by torch (.pt, .bin; plain or under state_dict) or "
    "safetensors, with the names of open_clip or of Hugging Face's CLIPModel or "
    "CLIPVisionModelWithProjection, whole or the image tower alone"
)
_OPENAI = "input_resolution"  # open_clip and Hugging Face save no such entry
_CODE = "it holds Python objects, which could run code: save model.state_dict() instead"


@dataclass(frozen=True)
class WeightFile:
    """What a file holds."""

    path: Path
    form: str
    tensors: dict[str, Tensor]
    quick_gelu: bool | None  # what the file itself says of its activation; None: nothing


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's tensors."""

    path: Path
    form: str
    tensors: int  # in the file
    used: int | None = None  # None: the library that loaded it does not say
    missing: tuple[str, ...] = ()  # in the model, not in the file
    left_over: tuple[str, ...] = ()  # in the file, not in the model
    zeros: tuple[str, ...] = ()  # matrices without a value but 0
    activation: str = ""  # and what decided it
    has_text: bool = False  # the text tower's weights are there

    def text(self) -> str:
        """One line for a log."""
        count = (
            f"{self.tensors} tensors" if self.used is None else f"{self.used} of {self.tensors} tensors used"
        )
        parts = [f"{self.form}, {count}", self.activation]
        parts += [f"missing: {named(self.missing)}" if self.missing else ""]
        parts += [f"left over: {named(self.left_over)}" if self.left_over else ""]
        return "; ".join(part for part in parts if part)


def read_weights(path: Path, accepted: str = FORMS, under: Sequence[str] = ("state_dict",)) -> WeightFile:
    """Read a file of weights.

    Args:
        path: the file.
        accepted: ends a refusal.
        under: entries of a file saved by torch that may hold the weights; the first that is there does.

    Raises:
        UserError: it has none of the forms, is damaged, or would run code.
    """
    form = "weights"
    try:
        form = form_of(path)
        if form == "TorchScript archive":
            tensors, quick = read_torchscript(path)
        else:
            content = load_file(path) if form == "safetensors" else _load(path)
            entry = _entry(content, under)
            tensors, quick = _tensors(content if entry is None else content[entry]), None
            form += "" if entry is None else f" under {entry}"
    except UNREADABLE as error:
        cause = _CODE if isinstance(error, UnpicklingError) else one_line(error)
        raise UserError(
            f"model.backbone.pretrained={path} cannot be read as {form}: {cause}; accepted are {accepted}"
        ) from None
    if quick is None and _OPENAI in tensors:
        quick = True  # all of OpenAI's were trained with it
    return WeightFile(path, form, tensors, quick)


def form_of(path: Path) -> str:
    """The form of a file by its first bytes and entries, whatever its name; raises ValueError for none."""
    with path.open("rb") as file:
        start = file.read(64)
    if start[8:9] == b"{":
        return "safetensors"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if is_torchscript(names):
            return "TorchScript archive"
        if any(name.endswith("/data.pkl") for name in names):
            return "state dict"
        raise ValueError(f"it is a zip file with {named(names)}")
    if start[:2] == b"\x80\x02":  # torch.save before 1.6
        return "state dict"
    raise ValueError(f"it begins with {printable(repr(start), 90)}" if start else "it is empty")


def named(names: Iterable[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_values(path: Path, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of matrices that are 0 throughout, where not all are; what no training leaves is refused."""
    zeros, matrices = [], sum(value.ndim > 1 for value in tensors.values())
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(
                f"model.backbone.pretrained={path}: weights are not finite in {name}; save them in fp32"
            )
        if name.endswith("running_var") and bool((value < 0).any()):
            raise UserError(
                f"model.backbone.pretrained={path}: a variance is at least 0, but {name} is not; the file is "
                "damaged, take another"
            )
        if value.ndim > 1 and not bool(value.any()):
            zeros.append(name)
    if matrices and len(zeros) == matrices:
        raise UserError(f"model.backbone.pretrained={path}: all of its weights are 0; take another file")
    return tuple(zeros)


def types_of(tensors: Iterable[Tensor]) -> str:
    """Their kinds of numbers, and whether they become float32."""
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in tensors})
    return " and ".join(kinds) + (" (converted to float32)" if any(_converts(kind) for kind in kinds) else "")


def _converts(kind: str) -> bool:
    return "float" in kind and kind != "float32"


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _entry(content: Any, under: Sequence[str]) -> str | None:
    """Where a file keeps its weights; None: it holds nothing else."""
    known = content if isinstance(content, Mapping) else {}
    return next((name for name in under if known.get(name) is not None), None)


def _tensors(content: Any) -> dict[str, Tensor]:
    entries = content if isinstance(content, Mapping) else {}
    tensors = {str(name): value for name, value in entries.items() if isinstance(value, Tensor)}
    if not tensors:
        found = [f"{name} ({type(value).__name__})" for name, value in entries.items()]
        raise ValueError(f"it holds no tensors by name, but {named(found) or type(content).__name__}")
    return tensors
