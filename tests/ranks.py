"""Real ranks for tests: tiny data, a tiny model, and processes joined by gloo that cannot hang a test."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ppar_dist.data.reading import eval_samples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.writer import ShardSample, write_domain
from tests.bucket import in_bucket
from tests.forkserver import Forked

TIMEOUT_S = 240
# Below the kernel's ephemeral ports: no other process gets one of these by chance.
_PORTS = range(20000, 29000)
_next_port = itertools.count(random.SystemRandom().randrange(len(_PORTS)))
_COLOURS = np.random.default_rng(0).integers(0, 256, (6, 3))


def write_blocks_domain(folder: Path, samples: int, seed: int, rare_in: int | None) -> None:
    """Images of 64×96 made of coloured blocks; class 5 only in sample ``rare_in``."""

    def draw() -> Iterator[ShardSample]:
        rng = np.random.default_rng(seed)
        for number in range(samples):
            label = rng.integers(0, 5, (2, 3)).repeat(32, 0).repeat(32, 1).astype(np.uint8)
            if number == rare_in:
                label[:32, :32] = 5
            noise = rng.normal(0, 20, (64, 96, 3))
            pixels = (_COLOURS[label] + noise + 10 * seed).clip(0, 255).astype(np.uint8)
            yield ShardSample(f"s{number:04d}", encode(pixels, "JPEG"), encode(label, "PNG"), {})

    write_domain(folder, "roads6", draw())


def exchange_labels(source: Path, folder: Path, every: int = 1) -> None:
    """A copy of a blocks domain that calls road sidewalk, and sidewalk road, in one of ``every`` samples."""

    def change() -> Iterator[ShardSample]:
        index = DomainIndex.open(source)
        for number, sample in enumerate(eval_samples(index, 0, len(index), 64)):
            label = sample.label.numpy()
            exchanged = np.where(label == 0, 1, np.where(label == 1, 0, label))
            named = (label if number % every else exchanged).astype(np.uint8)
            pixels = sample.image.permute(1, 2, 0).numpy()
            yield ShardSample(sample.key, encode(pixels, "JPEG"), encode(named, "PNG"), {})

    write_domain(folder, "roads6", change())


def tiny_config(root: Path, run: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A configuration that trains in seconds; ``sections`` are merged into it."""
    text = root / "text.npz"
    if not text.exists():
        names = np.array(["road", "sidewalk", "building", "vegetation", "sky", "car"])
        np.savez(text, names=names, embeddings=np.random.default_rng(5).normal(size=(6, 16)).astype("f4"))
    tree: dict[str, Any] = {
        "run": {"dir": str(run)},
        "data": {
            "root": str(root),
            "classes": "roads6",
            "sources": ["left", "right"],
            "size": 48,
            "crop": [48, 64],
            "holdout": 0.0,
            "workers": 0,
        },
        "model": {
            "backbone": {"kind": "timm", "name": "test_convnext", "embed_dim": 16, "dense_stride": 8},
            "decoder": {"width": 16},
        },
        "text": {"file": str(text)},
        "ppar": {
            "alignment": {"boundaries": [0.15, 0.35, 0.6]},
            "vtp": {"count_0": 50},
            "reweighting": {
                "beta": 1.0,
                "min_spread": 0.05,
                "max": 3.0,
                "trust": {"enabled": True, "gamma": 1.0},
            },
        },
        "refit": {"prototypes": True, "images": 4},
        "train": {"steps": 8, "global_batch": 6, "log_every": 1},
        "checkpoint": {"every": 0},
        "monitoring": {"enabled": False},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return in_bucket(tree, run)


def write_config(path: Path, tree: dict[str, Any]) -> Path:
    """Write ``tree`` as YAML."""
    path.write_text(yaml.safe_dump(in_bucket(tree, path)), encoding="utf-8")
    return path


class Rank(Forked):
    """A rank, whose output goes to a file: an unread pipe would block it when it is full."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        super().__init__(command, environment, self._output, self._output)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it has said. One that does not end in time is killed, and fails the test."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()
            raise AssertionError(f"did not end in {timeout} s:\n{self._read()}") from None
        return self._read(), ""

    def _read(self) -> str:
        self._output.seek(0)
        return self._output.read()


def start_ranks(
    arguments: Sequence[str], ranks: int, module: Sequence[str] = ("ppar_dist",), **environment: str
) -> list[Rank]:
    """Start ``ppar-dist ARGUMENTS`` (or another module) once per rank, as a launcher would."""
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    return [Rank([*module, *arguments], rank_environment() | shared | each | environment) for each in own]


def free_port(count: int = 1) -> int:
    """The first of ``count`` ports in a row that are free now; no two calls give the same."""
    while True:
        places = [next(_next_port) % len(_PORTS) for _ in range(count)]
        if places[-1] - places[0] == count - 1 and all(_is_free(_PORTS[place]) for place in places):
            return _PORTS[places[0]]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def run_ranks(arguments: Sequence[str], ranks: int) -> None:
    """Run to the end; a rank that fails or hangs fails the test with its output."""
    processes = start_ranks(arguments, ranks)
    try:
        for rank, process in enumerate(processes):
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, f"rank {rank} ended with {process.returncode}:\n{output}"
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_command(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run ``ppar-dist ARGUMENTS`` as a user would; what starts a launcher is started in the common way."""
    if "--nproc" in arguments:
        command = [sys.executable, "-m", "ppar_dist", *arguments]
        options: dict[str, Any] = {"text": True, "capture_output": True, "timeout": TIMEOUT_S, "check": False}
        return subprocess.run(command, env=rank_environment(), **options)
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = Forked(["ppar_dist", *arguments], rank_environment(), stdout, stderr)
        try:
            process.wait(TIMEOUT_S)
        finally:
            process.kill()
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            texts.append(stream.read())
    return subprocess.CompletedProcess(arguments, process.returncode or 0, *texts)


def succeed(*arguments: object) -> str:
    """What ``ppar-dist ARGUMENTS`` prints; it must end with 0."""
    done = run_command([str(argument) for argument in arguments])
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for_file(path: Path) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def rank_environment() -> dict[str, str]:
    """This environment without a launcher's variables, one thread, the CPU."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return kept | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def encode(pixels: np.ndarray, kind: str) -> bytes:
    """``pixels`` as the bytes of a JPEG or PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()
