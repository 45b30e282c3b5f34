"""docker/Dockerfile built for real, and run: as the image's user, read-only, signalled as a runtime would."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from ppar_dist import checkpoint, exit_codes
from ppar_dist.config.load import load_config
from ppar_dist.launch import front
from tests.cluster import pods, pods_data
from tests.cluster.image import REPOSITORY, Image, buildah, pip_settings
from tests.cluster.pods import Container, Volume
from tests.faults.jobs import last_step

WAIT_S = 240.0
BUILD_TOOLS = ("g++", "c++", "make", "cmake", "nvcc", "git", "pip", "pip3")  # gcc stays, for Triton


def test_image_says_what_it_is_and_how_it_is_run(image: Image) -> None:
    sizes = {
        each["names"][0]: each["size"]
        for each in json.loads(buildah(image.store, "images", "--json"))
        if each["names"]
    }
    print(f"built in {image.seconds} s: {sizes}")
    config = image.config
    assert image.entrypoint == ["ppar-dist"]  # no shell in between: signals reach it
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["title"] == "ppar-dist"
    assert (labels["version"], labels["revision"]) == ("1.2.3", "abc")
    assert labels["description"]


def test_image_holds_neither_tools_nor_what_the_build_was_told(image: Image) -> None:
    root = image.root()
    found = [path / tool for path in folders(image, root) for tool in BUILD_TOOLS if (path / tool).exists()]
    assert not found
    settings, volumes = pip_settings()
    told = [
        line.split(" = ")[1] for line in settings.splitlines() if line.startswith(("index", "extra", "find"))
    ]
    assert not [each for each in told if each in json.dumps(image.facts)]
    for path in ("etc/pip.conf", "run/secrets/ca", "wheels", "opt/pip", "src"):
        left = root / path
        assert not left.exists() or not (os.listdir(left) if left.is_dir() else left.read_text()), left
    for folder in volumes:
        left = root / str(folder).lstrip("/")
        assert not left.exists() or not os.listdir(left)


def test_the_image_compiles_what_triton_needs_for_a_gpu_and_has_the_libraries_that_nccl_opens(
    image: Image,
) -> None:
    """As its user; against a library that stands for the driver's, which comes with a GPU."""
    program = """
import ctypes, subprocess
from triton.backends.nvidia import driver
from triton.runtime.build import _build
for name in ("libibverbs.so.1", "libmlx5.so.1"):
    ctypes.CDLL(name)
open("/tmp/stub.c", "w").write("int cuInit(unsigned flags) { return 0; }")
subprocess.run(["gcc", "-shared", "-fPIC", "-o", "/tmp/libcuda.so.1", "/tmp/stub.c"], check=True)
source = f"{driver.dirname}/driver.c"
print(_build("made", source, "/tmp", ["/tmp"], driver.include_dirs, driver.libraries, []))
"""
    done = image.run("/opt/ppar/bin/python", "-c", program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Path(done.stdout.strip()).name.startswith("made")


def folders(image: Image, root: Path) -> list[Path]:
    """Where the image looks for programs."""
    return [
        root / each.lstrip("/")
        for each in image.environment["PATH"].split(":")
        if (root / each.lstrip("/")).is_dir()
    ]


def test_every_dependency_is_pinned_within_its_range() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = (REPOSITORY / "docker" / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    canonical = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    for each in map(Requirement, project["dependencies"]):
        assert canonical[re.sub(r"[-_.]+", "-", each.name).lower()] in each.specifier, each


def test_compose_names_what_there_is(tmp_path: Path) -> None:
    file = REPOSITORY / "docker" / "compose.yaml"
    tree = yaml.safe_load(file.read_text())
    services = tree["services"]
    for service in services.values():
        for source, _, _ in (f"{volume}:".split(":", 2) for volume in service["volumes"]):
            is_path = source.startswith(".")
            assert (file.parent / source).is_dir() if is_path else source in tree["volumes"], source
        assert service["image"] == "ppar-dist" or re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    command, *arguments = services["trainer"]["command"]
    (config,) = [REPOSITORY / "configs" / Path(each).name for each in arguments if each.endswith(".yaml")]
    settings = load_config(config, [each for each in arguments if "=" in each and not each.startswith("-")])
    assert command == "train"
    assert (settings.monitoring.address, settings.monitoring.port) == ("0.0.0.0", 18400)
    assert settings.monitoring.targets_file == Path("/targets/watched.json")
    assert f"--out={settings.data.root.parent}" in services["demo"]["command"]
    (patience,) = re.findall(r"^(\d+)m$", services["trainer"]["stop_grace_period"])
    assert 60 * int(patience) > settings.faults.grace_s + front._MARGIN_S
    assert services["trainer"]["read_only"] is True
    assert services["trainer"]["cap_drop"] == ["ALL"]


def test_the_demo_runs_as_the_image_user(image: Image, tmp_path: Path) -> None:
    config = yaml.safe_load((REPOSITORY / "configs" / "demo.yaml").read_text())
    config["train"] |= {"steps": 24, "eval_every": 12}  # of 200
    out, given = tmp_path / "out", tmp_path / "demo"
    for each in (out, given):
        each.mkdir()
    os.chown(out, image.user, image.user)
    (given / "demo.yaml").write_text(yaml.safe_dump(config))
    image.root(["/out", "/demo"])
    options = [f"--volume={out}:/out", f"--volume={given}:/demo:ro"]
    began = time.monotonic()
    command = [*image.entrypoint, "demo", "--out", "/out/demo", "--config", "/demo/demo.yaml", "--nproc", "2"]
    done = image.run(*command, options=options)
    print(f"demo of 24 steps on 2 ranks: {time.monotonic() - began:.0f} s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    run = out / "demo" / "run"
    assert (run / "report.html").stat().st_uid == image.user
    assert json.loads((run / "results.json").read_text())


@pytest.fixture
def volumes(image: Image, blocks: Path, tmp_path: Path) -> list[Volume]:
    """What a tiny job of 2 ranks reads and writes."""
    sections = {
        "train": {"steps": 1_000_000, "global_batch": 6, "log_every": 1},
        "checkpoint": {"every": 1000},
    }
    sources = pods_data.lay_out(tmp_path / "volumes", blocks, image.user, **sections)
    return [Volume(path, f"/{name}", name == "runs") for name, path in sources.items()]


def test_sigterm_to_a_read_only_container_ends_in_a_checkpoint_and_75(
    image: Image, volumes: list[Volume], tmp_path: Path
) -> None:
    run = volumes[-1].source / Path(pods_data.RUN).name
    with pods.running(
        image, tmp_path / "train", ["train", "/config/config.yaml", "--nproc=2"], volumes=volumes
    ) as job:
        pods.until(lambda: last_step(run) >= 3, "step 3", WAIT_S, job)
        health = image.config["Healthcheck"]["Test"][1:]
        assert inside(job, image, *health).returncode == 0, job.output
        assert inside(job, image, "id", "-u").stdout.strip() == "10001"
        for path in ("/opt/ppar/bin/x", "/etc/x", "/x", "/data/x", "/config/x"):
            assert "Read-only file system" in inside(job, image, "touch", path).stderr
        for path in ("/tmp/x", "/dev/shm/x", "/runs/x"):
            assert inside(job, image, "touch", path).returncode == 0
        began = time.monotonic()
        job.send(signal.SIGTERM)
        code = job.wait(120)
        print(f"SIGTERM to process 1: {code} after {time.monotonic() - began:.1f} s")
    assert code == exit_codes.RESUME, job.output
    assert "Traceback" not in job.output
    assert checkpoint.find_checkpoint(run).name == checkpoint.checkpoint_name(last_step(run))


def test_sigterm_ends_a_container_that_has_hardly_started(
    image: Image, volumes: list[Volume], tmp_path: Path
) -> None:
    with pods.running(image, tmp_path / "job", ["train", "/config/config.yaml"], volumes=volumes) as job:
        pods.until(lambda: catches(job, signal.SIGTERM), "a handler of SIGTERM", WAIT_S, job)
        job.send(signal.SIGTERM)
        assert job.wait(60) == exit_codes.RESUME, job.output
    assert "Traceback" not in job.output
    assert not os.listdir(volumes[-1].source), "it was heard before there was anything to save"


def catches(job: Container, number: signal.Signals) -> bool:
    """Whether process 1 has a handler: what it has none for, the kernel drops."""
    if job.first is None or b"ppar-dist" not in Path(f"/proc/{job.first}/cmdline").read_bytes():
        return False  # it is still being put into its box
    (mask,) = re.findall(r"^SigCgt:\s*(\w+)", Path(f"/proc/{job.first}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def inside(job: Container, image: Image, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a running container, as `docker exec` does."""
    enter = [
        "nsenter",
        "--target",
        str(job.first),
        "--mount",
        "--uts",
        "--ipc",
        "--pid",
        "--net",
        "--root",
        "--wd",
    ]
    user = ["setpriv", "--reuid", str(image.user), "--regid", str(image.user), "--clear-groups"]
    variables = [f"{key}={value}" for key, value in image.environment.items()]
    whole = [*enter, *user, "env", "-i", *variables, *command]
    return subprocess.run(whole, text=True, capture_output=True, timeout=120, check=False)


def test_a_container_without_anything_to_do_says_what_it_can(image: Image, tmp_path: Path) -> None:
    with pods.running(image, tmp_path / "help", image.config["Cmd"]) as job:
        assert job.wait(WAIT_S) == 0
    assert "train" in job.output
    with pods.running(image, tmp_path / "wrong", ["train", "/nowhere.yaml"]) as job:
        assert job.wait(WAIT_S) == exit_codes.CONFIG
    assert "/nowhere.yaml" in job.output
