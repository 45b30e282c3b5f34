"""The tensors of a checkpoint, read back: its model, and the moments that one rank or many have written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ppar_dist.checkpoint.layout import FROZEN, MODEL, is_of_moments, read_manifest

if TYPE_CHECKING:
    from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, per parameter


def read_model(folder: Path) -> dict[str, Tensor]:
    """Parameters and buffers of the model, what is frozen included.

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    from safetensors.torch import load_file  # late: who only looks for a checkpoint needs no torch

    frozen = load_file(folder / FROZEN) if (folder / FROZEN).exists() else {}
    return load_file(folder / MODEL) | frozen


def read_moments(folder: Path) -> dict[str, Tensor]:
    """Moments and number of updates by parameter name, whole, however many ranks have written them.

    Returns:
        ``exp_avg.<name>``, ``exp_avg_sq.<name>`` and ``step.<name>`` of each parameter that was updated yet.

    Raises:
        OSError, ValueError, KeyError: a file is missing or damaged, or the parts leave a gap.
    """
    from safetensors.torch import load_file

    whole: dict[str, Tensor] = {}
    pieces: dict[str, list[dict[str, Tensor]]] = {}
    for file in sorted(filter(is_of_moments, read_manifest(folder)["files"])):
        part = load_file(folder / file)
        for name in _names(part):
            if f"start.{name}" in part:
                keys = (*MOMENTS, "step", "start", "shape")
                pieces.setdefault(name, []).append({key: part[f"{key}.{name}"] for key in keys})
            else:
                whole |= {f"{key}.{name}": part[f"{key}.{name}"] for key in (*MOMENTS, "step")}
    for name, found in pieces.items():
        whole |= {f"{key}.{name}": value for key, value in _joined(name, found).items()}
    return whole


def _names(part: dict[str, Tensor]) -> Iterator[str]:
    return (key.removeprefix("step.") for key in part if key.startswith("step."))


def _joined(name: str, pieces: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One parameter's moments from its consecutive pieces."""
    import torch

    pieces = sorted(pieces, key=lambda piece: int(piece["start"]))
    shape = pieces[0]["shape"].tolist()
    end = 0
    for piece in pieces:
        if int(piece["start"]) != end:
            raise ValueError(f"moments of {name}: a part begins at {int(piece['start'])}, not at {end}")
        end += piece[MOMENTS[0]].numel()
    if end != math.prod(shape):
        raise ValueError(f"moments of {name}: its parts hold {end} values, not {math.prod(shape)}")
    joined = {key: torch.cat([piece[key] for piece in pieces]).view(shape) for key in MOMENTS}
    return joined | {"step": pieces[0]["step"]}
