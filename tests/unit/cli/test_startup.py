"""Imports of a command: one that neither trains nor predicts does not load the libraries for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.tiny_run import make_run

pytestmark = pytest.mark.process

_HEAVY = ("torch", "torchvision", "timm", "open_clip", "deepspeed", "webdataset", "matplotlib")
_PROGRAM = f"""
import sys
from ppar_dist.cli.parser import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
found = [name for name in {_HEAVY} if name in sys.modules]
sys.exit(f"imported: {{', '.join(found)}}" if found else code)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("startup")
    make_run(root / "shards", root / "run")
    return root


@pytest.mark.process
@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "train --help",
        "classes cityscapes19",
        "inspect run",
        "inspect run/checkpoints/step-00000040",
        "inspect shards/a",
        "index shards/b --classes roads6",
        "config run/config.yaml",
        "ledger run",
        "doctor run",
    ],
)
def test_a_light_command_imports_no_heavy_library(home: Path, line: str) -> None:
    command = [sys.executable, "-c", _PROGRAM, *line.split()]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=60)
    assert "imported: " not in done.stderr
    assert done.returncode in (0, 78), done.stderr  # 78: no ledger was kept
    assert "internal error" not in done.stderr
