"""A pretended CUDA device: a runtime that does nothing, loaded before the real one into a process of its own.

Torch then believes in a device, and FakeTensors on it have shapes, dtypes and a device but no values: the
product and DeepSpeed run as on a GPU, but for the kernels. What cannot be seen: kernels, NCCL, real times,
fragmentation and work spaces of libraries.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SOURCES = Path(__file__).with_name("device")
_LIBRARIES = ("libc10_cuda.so", "libtorch_cuda.so", "libtorch_python.so")  # of torch, which call the runtime
_PACKAGES = Path(sysconfig.get_paths()["purelib"])
_CHILD_S = 800  # less than the limit of a test, so that its message is seen


def missing() -> str | None:
    """What this machine lacks to build the device; None if nothing."""
    lacking = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    if lacking:
        return f"{' and '.join(lacking)} not found: the pretended device is compiled"
    if _headers() is None or not (_PACKAGES / "torch/lib" / _LIBRARIES[0]).exists():
        return "torch is not the build with CUDA, whose wheels bring the headers"
    return None


def build_device(folder: Path) -> Path:
    """Compile the runtime and the driver into ``folder``; returns it."""
    headers = _headers()
    assert headers is not None, "ask missing() first"
    answered = _SOURCES / "cudart.c"
    names = _called() - {word.split("(")[0] for word in answered.read_text("ascii").split() if "(" in word}
    (folder / "rest.c").write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(names)))
    _gcc(folder, "rest.c", "-c", "-o", "rest.o")
    # Apart from the header: it declares the generated ones with their arguments.
    _gcc(folder, str(answered), f"-I{_SOURCES}", f"-I{headers}", "-c", "-o", "cudart.o")
    _gcc(folder, "rest.o", "cudart.o", "-shared", "-o", "libpretended.so")
    _gcc(folder, str(_SOURCES / "driver.c"), "-shared", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1")
    return folder


def run_cases(device: Path, cases: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What ``tests.gpu.child`` says of each case, by its name; one process runs them all."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment |= {
        "LD_PRELOAD": str(device / "libpretended.so"),
        "LD_LIBRARY_PATH": str(device),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "0",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.child"],
        input=json.dumps(list(cases)),
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=_CHILD_S,
        check=False,
    )
    assert done.returncode == 0, f"the child ended with {done.returncode}:\n{done.stderr[-4000:]}"
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    return {answer["case"]: answer for answer in answers}


def _headers() -> Path | None:
    """The folder of the runtime's headers among the wheels of CUDA."""
    return next((each.parent for each in sorted(_PACKAGES.glob("nvidia/*/include/cuda_runtime_api.h"))), None)


def _called() -> set[str]:
    """Functions of the runtime that torch's libraries call."""
    libraries = [str(_PACKAGES / "torch/lib" / name) for name in _LIBRARIES]
    command = ["nm", "-D", "--undefined-only", *libraries]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {line.split()[-1].partition("@")[0] for line in lines if " U " in line}
    # What torch says of an error it reads from the real runtime.
    return {name for name in names if name.startswith("cuda") and not name.startswith("cudaGetError")}


def _gcc(folder: Path, *arguments: str) -> None:
    subprocess.run(["gcc", "-w", "-fPIC", *arguments], cwd=folder, check=True)
