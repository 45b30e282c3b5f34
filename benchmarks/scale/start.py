"""What the start of a rank takes, part by part: a process of its own for each, on this machine.

    python -m benchmarks.scale.start [--config gta5_vitb16] [--rounds 3]

Wall seconds, medians over rounds. ``imports`` are those of a rank; ``build`` is the model with random
weights; ``copy`` takes a checkpoint's tensors (parameters and moments) out of the model, ``write`` stores
them, synced, and ``read`` loads them again (from the page cache).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.arguments import described
from benchmarks.pages import markdown

PARTS = ("imports", "build", "copy", "write", "read")


def parts(name: str, folder: Path) -> dict[str, float]:
    """Seconds by part, of this process."""
    import gc

    gc.disable()  # as `train` does
    began = time.perf_counter()
    import ppar_dist.training.rank_job  # noqa: F401

    times = [time.perf_counter() - began]
    import torch
    from safetensors.torch import load_file, save_file

    from ppar_dist.class_sets import class_set
    from ppar_dist.config.load import load_config
    from ppar_dist.models.segmentor import build_segmentor

    config = load_config(Path(name))

    def done() -> None:
        nonlocal began
        times.append(time.perf_counter() - began)
        began = time.perf_counter()

    began = time.perf_counter()
    model = build_segmentor(config, class_set(str(config.data.classes)), load_weights=False)[0]
    done()
    state = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
    for key, value in model.named_parameters():
        if value.requires_grad:
            state |= {f"{key}.first": value.detach().clone(), f"{key}.second": value.detach().clone()}
    done()
    save_file(state, folder / "all.safetensors")
    with (folder / "all.safetensors").open("rb") as file:
        os.fsync(file.fileno())
    done()
    sum(float(value.sum()) for value in load_file(folder / "all.safetensors").values())
    done()
    size = sum(value.numel() * value.element_size() for value in state.values())
    assert torch.is_grad_enabled()
    return dict(zip(PARTS, times, strict=True)) | {"bytes": size}


def main() -> None:
    """Print the medians."""
    parser = described(__doc__)
    parser.add_argument("--config", nargs="+", default=["gta5_vitb16", "gta5_dinov2l_lora"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part_of:
        print(json.dumps(parts(options.config[0], options.part_of)))
        return
    rows = [["configuration", "MB", *(f"{part} s" for part in PARTS)]]
    for name in options.config:
        found = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                line = [sys.executable, "-m", "benchmarks.scale.start", "--config", name, "--part-of", folder]
                output = subprocess.run(line, check=True, capture_output=True, text=True).stdout
                found.append(json.loads(output.splitlines()[-1]))
        seconds = [f"{statistics.median(each[part] for each in found):.1f}" for part in PARTS]
        rows.append([name, f"{found[0]['bytes'] / 1e6:.0f}", *seconds])
    print(markdown(rows))


if __name__ == "__main__":
    main()
