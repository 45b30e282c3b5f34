"""``ppar-dist predict`` on a folder as people have them: what it prints, its exit code and its memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppar_dist.data.shards.writer import write_domain
from tests.ranks import TIMEOUT_S, encode, rank_environment, run_command
from tests.unit.evaluation.test_predict_videos import make_video
from tests.unit.tiny_run import make_run

PEAK = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "ppar_dist", *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""  # a process between: a child counts what its parent held when it was forked


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("predict")
    make_run(root / "shards", root / "run")
    return root / "run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one of them below with a name that is no UTF-8, between two that are none."""
    below = tmp_path / "in" / "below"
    below.mkdir(parents=True)
    Image.new("RGB", (70, 50), "green").save(tmp_path / "in" / "b.jpg")
    Image.new("RGB", (70, 50), "blue").save(below / os.fsdecode(b"\xff.png"))
    (tmp_path / "in" / "a.jpg").touch()
    (tmp_path / "in" / "c.jpg").write_bytes(b"%PDF-1.7")
    (below / "up").symlink_to(tmp_path / "in")
    return tmp_path / "in"


def test_a_batch_goes_on_and_exits_with_78(run: Path, folder: Path, tmp_path: Path) -> None:
    done = run_command(["predict", str(run), str(folder), "--out", str(tmp_path / "out")])
    assert done.returncode == 78, done.stdout + done.stderr
    printed = done.stdout.splitlines()
    assert len(printed) == 3
    assert printed[0].startswith(f"{folder}/b.jpg: ")
    assert printed[1].startswith(f"{folder}/below/\\udcff.png: ")
    assert printed[2] == f"legend: {tmp_path}/out/legend.png"
    told = [line for line in done.stderr.splitlines() if line.startswith(str(folder))]
    assert [line.split(": ")[0] for line in told] == [
        f"{folder}/{name}" for name in ("below/up", "a.jpg", "c.jpg")
    ]
    assert done.stderr.splitlines()[-1] == "2 of 5 done, 3 failed"
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "below" / os.fsdecode(b"\xff.png")).exists()


def test_json_names_results_and_failures(run: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_command(["predict", str(run), str(folder), "--out", str(out), "--batch", "2", "--json"])
    assert done.returncode == 78, done.stderr
    found = json.loads(done.stdout)
    assert [item["image"] for item in found["images"]] == [f"{folder}/b.jpg", f"{folder}/below/\udcff.png"]
    for item in found["images"]:
        assert Path(item["labels"]).is_file()
        assert Path(item["overlay"]).is_file()
    assert [item["image"] for item in found["failures"]] == [
        f"{folder}/{name}" for name in ("below/up", "a.jpg", "c.jpg")
    ]
    assert all(item["error"] for item in found["failures"])
    assert found["legend"] == f"{out}/legend.png"


def test_the_memory_is_that_of_the_picture(run: Path, tmp_path: Path) -> None:
    sizes = {"small": (60, 40), "large": (6000, 4000)}
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    peaks = {}
    for name, size in sizes.items():
        noise.resize(size).save(tmp_path / f"{name}.jpg")
        arguments = ["predict", str(run), str(tmp_path / f"{name}.jpg"), "--out", str(tmp_path / name)]
        command = [sys.executable, "-c", PEAK, *arguments]
        done = subprocess.run(
            command, env=rank_environment(), text=True, stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=True
        )
        peaks[name] = int(done.stdout)
    each = (peaks["large"] - peaks["small"]) / (6000 * 4000)
    assert each < 14, f"{each:.1f} bytes a pixel"  # 8 while it is decoded; the planes of 6 classes are 24


def limited(arguments: list[str], kib: int) -> subprocess.CompletedProcess[str]:
    """``ppar-dist ARGUMENTS`` where no file may grow beyond ``kib`` KiB: to a writer, a disk that is full."""
    command = [
        "bash",
        "-c",
        f'ulimit -f {kib}; exec "$@"',
        "-",
        sys.executable,
        "-m",
        "ppar_dist",
        *arguments,
    ]
    return subprocess.run(
        command, env=rank_environment(), text=True, capture_output=True, timeout=TIMEOUT_S, check=False
    )


def test_a_result_that_has_no_room_is_no_result(run: Path, tmp_path: Path) -> None:
    # An overlay of 20 to 64 KiB, which Pillow writes at once: of that, storage takes a part without an error.
    noise = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.jpg")
    Image.fromarray(noise[:40, :60]).save(tmp_path / "small.jpg")
    pictures, out = [str(tmp_path / f"{name}.jpg") for name in ("large", "small")], tmp_path / "out"
    done = limited(["predict", str(run), *pictures, "--out", str(out)], 20)
    assert done.returncode == 78
    assert "large.jpg: cannot write its results: File too large; make room" in done.stderr
    assert done.stderr.splitlines()[-1] == "1 of 2 done, 1 failed"
    assert {path.name for path in out.iterdir()} == {"legend.png", "small.png", "small_overlay.jpg"}
    for path in out.iterdir():
        with Image.open(path) as picture:
            picture.load()  # raises where a part is missing


def test_a_video_that_has_no_room_is_no_video(run: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    video = make_video(tmp_path / "noise.mp4", list(noise), range(0, 60_000, 3000))
    done = limited(["predict", str(run), str(video), "--out", str(tmp_path / "out")], 12)
    assert done.returncode == 78
    assert "noise.mp4: cannot write its results: File too large; make room" in done.stderr
    assert done.stderr.splitlines()[-1] == "0 of 1 done, 1 failed"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"legend.png"}


@pytest.mark.parametrize("command", ["report", "export", "evaluate"])
def test_a_file_that_has_no_room_leaves_the_one_before(run: Path, tmp_path: Path, command: str) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    out, options = run / "report.html", []
    if command == "export":
        out = tmp_path / "model.pt2"
        options = ["--out", str(out), "--overwrite"]
    elif command == "evaluate":  # its pictures do not fit
        out, options = run / "results.json", ["--target", f"a={tmp_path / 'large'}"]
        pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
        label = np.zeros((300, 400), np.uint8)
        write_domain(tmp_path / "large", "roads6", [("s", encode(pixels, "JPEG"), encode(label, "PNG"), {})])
    out.write_text("before")
    done = limited([command, str(run), *options], 1)
    assert done.returncode == 78, done.stderr
    assert "File too large; a file that is written needs room" in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_text() == "before"
    assert not [path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")]


@pytest.mark.parametrize("line", ["report RUN", "evaluate RUN --target a=A", "export RUN --out RUN/m.pt2"])
def test_a_folder_with_the_name_of_a_file(run: Path, tmp_path: Path, line: str) -> None:
    domain, run = run.parent / "shards" / "a", Path(shutil.copytree(run, tmp_path / "run"))
    for name in ("report.html", "m.pt2", *(["results.json"] if "evaluate" in line else [])):
        (run / name).mkdir()
    done = run_command(line.replace("a=A", f"a={domain}").replace("RUN", str(run)).split())
    assert done.returncode == 78, done.stderr
    assert "folder" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
