"""What an export tells of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ppar_dist.text import visible


@dataclass(frozen=True)
class Exported:
    """What was written: the file or folder, the classes in logit order, and the largest deviation found."""

    file: Path
    format: str
    checkpoint: str
    classes: tuple[str, ...]
    max_deviation: float  # of logits (or of the tower's weights) from the model's; 0: bit for bit
    weights: str = field(default="raw", kw_only=True)  # of the last step, or "averaged"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        return asdict(self) | {"file": str(self.file)}

    def __str__(self) -> str:
        what = f"{self.checkpoint}, {self.weights} weights, as {self.format}"
        return visible(f"{self.file}: {what}: {self._told()}")

    def _told(self) -> str:
        """What a user of this format has to know."""
        raise NotImplementedError


@dataclass(frozen=True)
class ExportedProgram(Exported):
    """A program from images to logits: a ``.pt2`` or ``.onnx`` file."""

    input_shape: tuple[int | str, ...]  # a word where any number will do
    output_shape: tuple[int | str, ...]
    multiple: int  # of which any height and width are multiples, from twice on; 1 where they are fixed
    opset: int | None = None  # of ONNX

    def _told(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        sides = f" (multiples of {self.multiple})" if self.multiple > 1 else ""
        opset = f"opset {self.opset}, " if self.opset is not None else ""
        return f"{opset}for uint8 {shape}{sides}, logits within {self.max_deviation:.1e}"


@dataclass(frozen=True)
class ExportedFolder(Exported):
    """A model folder."""

    bytes: int

    def _told(self) -> str:
        return f"{self.bytes / 1e6:.1f} MB; fill in the licences in its README.md before you share it"


@dataclass(frozen=True)
class ExportedTower(Exported):
    """The image tower in its library's own format."""

    parts: str  # what the file holds
    load: str  # the Python expression that loads it

    def _told(self) -> str:
        return f"{self.parts}; load it with {self.load}"
