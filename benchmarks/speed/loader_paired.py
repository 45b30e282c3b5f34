"""CPU time per image of this loader and of another version's, paired: rounds of both in turn.

    PPAR_TEST_DATA=D/.. python -m benchmarks.speed.loader_paired CHECKOUT OUT [--rounds 7]
    python -m benchmarks.speed.loader_paired CHECKOUT OUT --domain shards/camvid_0016E5 --crop 180 240

CHECKOUT is a checkout of the other version (``git worktree add``). The frames are large by default, as
those of GTA5 are: twelve of 1914x1052 pixels, made of the Cityscapes frames that are there. Each version
prepares them into OUT, as JPEG of quality 90 and labels of its own making, and takes crops of 512x512. With
``--domain`` both read the same shards. A side is a process of its own and augments with the defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from PIL import Image

from benchmarks.arguments import described
from benchmarks.streets import real_data

HERE = Path(__file__).parents[2]
SIZE = (1914, 1052)  # width and height
VIEWS = (1.0, 0.97, 0.94, 0.91)  # parts of a frame of which a large one is made


def make_frames(root: Path) -> None:
    """Twelve frames and their labels, in the layout of Cityscapes."""
    source = real_data() / "data" / "cityscapes"
    for path in sorted(source.glob("*/train/*/*.png")):
        kind = path.relative_to(source)
        if not path.stem.endswith(("leftImg8bit", "labelIds")):
            continue
        place, frame, rest = path.stem.split("_", 2)
        for number, part in enumerate(VIEWS):
            target = root / kind.parent / f"{place}_{number}{frame[1:]}_{rest}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            view(path, part).save(target)


def view(path: Path, part: float) -> Image.Image:
    """The upper left part of a picture, at the large size."""
    image = Image.open(path)
    how = Image.Resampling.NEAREST if image.mode in ("L", "P") else Image.Resampling.BICUBIC
    return image.resize(SIZE, how, (0, 0, part * image.width, part * image.height))


def run(code: Path, *arguments: str) -> str:
    """What Python prints with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{code}: {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def prepared(code: Path, frames: Path, out: Path) -> Path:
    """The domain that a version makes of the frames."""
    command = ["-m", "ppar_dist", "prepare", "cityscapes", "--root", str(frames), "--out", str(out)]
    run(code, *command, "--classes", "cityscapes19", "--jpeg", "90")
    return out / "cityscapes_train"


def milliseconds(code: Path, domain: Path, options: argparse.Namespace, contestant: str) -> float:
    """CPU time per image of a contestant of ``loader.py``, in a process with a version's package."""
    script = str(HERE / "benchmarks" / "speed" / "loader.py")
    crop = [str(extent) for extent in options.crop]
    amount = ["--workers", "0", "--rounds", "1", "--samples", str(options.samples)]
    text = run(code, script, str(domain), *amount, "--crop", *crop, "--only", contestant, "--json")
    return 1e3 / float(json.loads(text)["samples_per_second"][contestant])


def main() -> None:
    """Make the data, run the rounds, print medians and the median of the rounds' ratios."""
    parser = described(__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--domain", type=Path, help="instead of large frames")
    parser.add_argument("--crop", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--samples", type=int, default=48)
    options = parser.parse_args()
    sides, out = {"before": options.checkout.resolve(), "now": HERE}, options.out.resolve()
    if options.domain is not None:
        domains = dict.fromkeys(sides, options.domain.resolve())
    else:
        make_frames(out / "frames")
        domains = {name: prepared(code, out / "frames", out / name) for name, code in sides.items()}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            taken[name].append(milliseconds(sides[name], domains[name], options, "loader+aug"))
    for name, each in taken.items():
        print(
            f"{name:7s} {statistics.median(each):6.2f} ms CPU per image   [{min(each):.2f}, {max(each):.2f}]"
        )
    ratios = [before / now for before, now in zip(taken["before"], taken["now"], strict=True)]
    print(f"faster  {statistics.median(ratios):6.2f} times   [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
