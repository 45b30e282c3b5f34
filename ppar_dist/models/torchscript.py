"""Tensors of a TorchScript archive, without its program.

``torch.jit.load`` would compile the program that such an archive holds and run parts of it, and TorchScript
can open and write files. So nothing of it is loaded here: the archive's tensors and the names of its
attributes are read as those of a plain ``torch.save`` file, with ``weights_only``; every class of the archive
becomes an object without methods. The names of the classes say which activation the program used.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_OWN = "__torch__."  # begins the name of every class of an archive
# How an archive marks its lists; torch's own functions of these names return what they are given, too.
_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")
_COPIED = ("data.pkl", "version", ".data/version", "byteorder")  # where the version is depends on it


class _Scripted:
    """In place of any class of an archive: attributes alone."""


def _as_given(value: Any, *_: str) -> Any:
    return value


def is_torchscript(names: list[str]) -> bool:
    """Whether a zip file with these entries is a TorchScript archive."""
    return any(name.endswith("/constants.pkl") for name in names)


def read_torchscript(path: Path) -> tuple[dict[str, Tensor], bool | None]:
    """Tensors by the names of a state dict, and whether the program used QuickGELU (None: neither GELU).

    Raises:
        An error of ``UNREADABLE``: damaged, or it holds more than modules, numbers, texts and tensors.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).split("/")[0]
        classes = _classes(archive.read(f"{root}/data.pkl"))
        plain = _without_program(archive, root)
    allowed: list[Any] = [(_Scripted, name) for name in classes]
    allowed += [(_as_given, f"torch.jit._pickle.{name}") for name in _LISTS]
    with torch.serialization.safe_globals(allowed):
        module = torch.load(plain, map_location="cpu", weights_only=True)
    return dict(_tensors(module, "")), _quick_gelu(classes)


def _classes(content: bytes) -> list[str]:
    """The archive's own classes; ``genops`` reads a pickle without doing what it says."""
    named = (
        str(arg).replace(" ", ".") for code, arg, _ in pickletools.genops(content) if code.name == "GLOBAL"
    )
    return [name for name in named if name.startswith(_OWN)]


def _without_program(archive: zipfile.ZipFile, root: str) -> io.BytesIO:
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as copy:
        for name in archive.namelist():
            inner = name.removeprefix(f"{root}/")
            if inner in _COPIED or inner.startswith("data/"):
                copy.writestr(f"weights/{inner}", archive.read(name))
    plain.seek(0)
    return plain


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Scripted):
        for key, inner in vars(value).items():
            yield from _tensors(inner, f"{name}.{key}" if name else key)


def _quick_gelu(classes: list[str]) -> bool | None:
    kinds = {name.rpartition(".")[2] for name in classes}
    return "QuickGELU" in kinds if kinds & {"QuickGELU", "GELU"} else None
