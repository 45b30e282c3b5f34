"""What is installed is what the clone holds: a wheel brings configurations, class sets and the template."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.process
def test_a_wheel_names_and_reads_its_configurations_outside_a_clone(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("configs", "ppar_dist"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    done = subprocess.run([sys.executable, "-m", *build], capture_output=True, text=True, check=False)
    if "No module named pip" in done.stderr or "setuptools" in done.stderr:
        pytest.skip(f"needs pip and setuptools >= 77: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert (tmp_path / "site" / "ppar_dist" / "report" / "template.html").is_file()
    said = [ppar_dist(tmp_path, *line.split()) for line in ("config list", "config roads --get run.name")]
    assert [line.split()[0] for line in said[0].splitlines()] == sorted(
        path.stem for path in (ROOT / "configs").glob("*.yaml")
    )
    assert said[1] == "run.name=roads\n"
    files = sorted((ROOT / "ppar_dist" / "classes").glob("*.yaml"))
    listed = ppar_dist(tmp_path, "classes").splitlines()
    assert [line.split()[0] for line in listed] == [file.stem for file in files]
    assert ppar_dist(tmp_path, "classes", files[0].stem) == files[0].read_text("utf-8")


def ppar_dist(folder: Path, *arguments: str) -> str:
    """Output of the unpacked wheel's command in an empty folder."""
    (folder / "empty").mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(folder / "site")}
    command = [sys.executable, "-m", "ppar_dist", *arguments]
    return subprocess.run(
        command, cwd=folder / "empty", env=environment, capture_output=True, text=True, check=True
    ).stdout
