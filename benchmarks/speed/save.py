"""The cost of a checkpoint for training, written by a background thread or by the training thread itself.

    python -m benchmarks.speed.save --parameters 100e6 --out /shared/storage [--work matmul python]

The checkpoint is that of AdamW: parameters and two moments, fp32, 12 bytes a parameter. One thread "trains":
``matmul`` multiplies matrices on one core (Python's lock is free meanwhile), ``python`` counts in a Python
loop (it never is). A round times steps alone, then a save, and the steps taken until it has ended:

* ``copy``     the training thread copies the tensors (here from memory; on a GPU, from the device)
* ``submit``   what handing them over held it: the writing itself without a thread
* ``writing``  from the first byte to the checkpoint's name: written, synced, read back, hashed
* ``slower``   a step while a thread writes, over a step alone: medians of one round
* ``lost``     all that a save costs training: copy, submit and the steps' delay
* ``longest``  the longest step while a thread writes

Figures are medians over rounds; the first round only warms up.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.arguments import described
from ppar_dist.checkpoint import Snapshot, Writer

_PIECE = 1_000_000  # values in a tensor
_ALONE = 20  # steps timed alone, before and after each save


@dataclass(frozen=True)
class Save:
    """One save, in seconds; ``alone`` and ``meanwhile`` are steps' times."""

    copy: float
    submit: float
    writing: float
    bytes: int
    alone: list[float]
    meanwhile: list[float]

    def figures(self) -> dict[str, float]:
        """The columns of the table."""
        alone = statistics.median(self.alone)
        return {
            "copy s": self.copy,
            "submit s": self.submit,
            "writing s": self.writing,
            "MB/s": self.bytes / self.writing / 1e6,
            "step ms": 1e3 * alone,
            "slower": statistics.median(self.meanwhile) / alone if self.meanwhile else float("nan"),
            "longest ms": 1e3 * max(self.meanwhile, default=float("nan")),
            "lost s": self.copy + self.submit + sum(step - alone for step in self.meanwhile),
        }


def matmul() -> Callable[[], None]:
    """A step of about 20 ms in matrix products."""
    matrix = torch.randn(768, 768)

    def step() -> None:
        for _ in range(2):
            torch.mm(matrix, matrix)

    return step


def python() -> Callable[[], None]:
    """A step of about 20 ms in a Python loop."""

    def step() -> None:
        total = 0
        for number in range(400_000):
            total += number

    return step


WORKS = {"matmul": matmul, "python": python}


def timed(step: Callable[[], None]) -> float:
    """Seconds of one step."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def training_state(parameters: int) -> dict[str, dict[str, Tensor]]:
    """Model and optimiser as a snapshot has them."""
    sizes = [_PIECE] * (parameters // _PIECE) or [parameters]

    def draw() -> dict[str, Tensor]:
        return {f"layer.{number}.weight": torch.randn(size) for number, size in enumerate(sizes)}

    moments = {f"{moment}/{k}": v for moment in ("exp_avg", "exp_avg_sq") for k, v in draw().items()}
    return {"model.safetensors": draw(), "optimizer.safetensors": moments}


def save(
    number: int, state: dict[str, dict[str, Tensor]], step: Callable[[], None], out: Path, background: bool
) -> Save:
    """Save one checkpoint between steps."""
    writer = Writer(out, background)
    alone = [timed(step) for _ in range(_ALONE)]
    began = time.perf_counter()
    tensors = {file: {k: v.clone() for k, v in of.items()} for file, of in state.items()}
    copied = time.perf_counter() - began
    held = writer.submit(Snapshot(number, tensors, {"state.json": "{}"}, {}))
    del tensors
    meanwhile = []
    while writer.busy:
        meanwhile.append(timed(step))
    outcome = writer.finish()
    if outcome is None or outcome.folder is None:
        raise SystemExit(f"no checkpoint was written: {outcome and outcome.error}")
    alone += [timed(step) for _ in range(_ALONE)]
    shutil.rmtree(outcome.folder)
    return Save(copied, held, outcome.seconds, outcome.bytes, alone, meanwhile)


def report(saves: dict[tuple[str, bool], list[Save]]) -> None:
    """Print the table."""
    rows = []
    for (work, background), rounds in saves.items():
        figures = [found.figures() for found in rounds]
        middle = {name: statistics.median(f[name] for f in figures) for name in figures[0]}
        cells = ["–" if value != value else f"{value:.3g}" for value in middle.values()]
        rows.append([work, "thread" if background else "none", *cells])
    print("| step | background | " + " | ".join(figures[0]) + " |")
    print("|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def main() -> None:
    """Take turns between the contestants, round by round."""
    parser = described(__doc__)
    parser.add_argument("--parameters", type=float, default=100e6)
    parser.add_argument("--out", type=Path, help="a folder on the storage to measure; default: temporary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", nargs="+", choices=tuple(WORKS), default=list(WORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    state = training_state(int(options.parameters))
    steps = {name: WORKS[name]() for name in options.work}
    saves: dict[tuple[str, bool], list[Save]] = {(w, b): [] for w in steps for b in (True, False)}
    with tempfile.TemporaryDirectory(dir=options.out, prefix="save-") as folder:
        for number in range(options.rounds + 1):
            for (work, background), found in saves.items():
                one = save(number, state, steps[work], Path(folder), background)
                if number:
                    found.append(one)
    size = saves[options.work[0], True][0].bytes
    print(f"{options.parameters:.3g} parameters, {size / 1e9:.2f} GB; medians of {options.rounds} rounds")
    report(saves)


if __name__ == "__main__":
    main()
