"""A file of tensors, for everybody to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ppar_dist.errors import UserError
from ppar_dist.text import one_line


def save_tensors(tensors: Mapping[str, Tensor], path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Write contiguous tensors as safetensors.

    Args:
        tensors: by name.
        path: the file.
        facts: for its header.

    Raises:
        UserError: there is no room for it.
    """
    try:
        save_file(
            dict(tensors), path, metadata={"format": "pt", **(facts or {})}
        )  # as other libraries ask for
    except SafetensorError as error:  # its own, also for a full disk
        raise UserError(
            f"cannot write the weights to {path.parent}: {one_line(error)}; a file that is written needs "
            "room: free some, raise the limit, or choose another --out"
        ) from None
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets only the owner read
