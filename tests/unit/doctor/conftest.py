"""``ppar-dist doctor`` on a healthy configuration that a test breaks: every failure is a real one."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppar_dist.cli.parser import main
from tests.ranks import tiny_config, write_config
from tests.unit.doctor.worlds import EXIT_CODES, Doctor


@pytest.fixture
def doctor(blocks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """``ppar-dist doctor`` on a healthy configuration with changes; returns checks by name.

    The exit code is held against the status each time.
    """

    def examine(*options: str, root: Path = blocks, **sections: dict[str, Any]) -> dict[str, Any]:
        sections.setdefault("checkpoint", {"every": 4})
        tree = tiny_config(root, tmp_path / "run", **sections)
        path = str(write_config(tmp_path / "config.yaml", tree))
        code = main(["doctor", path, "--json", "--quick", *options])
        report = json.loads(capsys.readouterr().out)
        assert code == EXIT_CODES[report["status"]]
        return {check["name"]: check for check in report["checks"]}

    return examine


@pytest.fixture
def own(blocks: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may damage."""
    return Path(shutil.copytree(blocks, tmp_path / "own"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system in memory with the given options; needs root."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
            pytest.skip("mounting a file system is not allowed here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)
