"""The image, really built without a registry: a base by debootstrap, then docker/Dockerfile by buildah.

What this machine's own apt and pip are told (mirrors, certificates, wheels on disk) is handed to the build,
and stays out of the image.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_KEPT = "PPAR_IMAGE_STORE"  # a folder: an image in it is used again, or built there and kept
REPOSITORY = Path(__file__).resolve().parents[2]
_BUILD_S = 1800  # on a busy machine
_BUILD_GIB = 25  # PyTorch with CUDA: in the container, as a layer, and as buildah's copy of it in /var/tmp
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_PIP_OPTIONS = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy")
_APT_OPTIONS = re.compile(r"Acquire::(https?::Proxy|Check-)")


@dataclass(frozen=True)
class Image:
    """The built image in a store of its own, and a container made of it."""

    store: Path
    container: str
    facts: dict[str, Any]  # what `buildah inspect` says
    seconds: dict[str, float] = field(default_factory=dict)  # that each part of the build took

    @property
    def config(self) -> dict[str, Any]:
        """The part of its description that a container runtime goes by."""
        config: dict[str, Any] = self.facts["Docker"]["config"]
        return config

    @property
    def environment(self) -> dict[str, str]:
        """Its variables."""
        return dict(each.split("=", 1) for each in self.config["Env"])

    @property
    def entrypoint(self) -> list[str]:
        """Its entry point."""
        return list(self.config["Entrypoint"])

    @property
    def user(self) -> int:
        """The number of its user."""
        return int(self.config["User"].split(":")[0])

    def root(self, targets: Sequence[str] = ()) -> Path:
        """The container's files, with folders and files on which ``targets`` can be mounted."""
        root = Path(buildah(self.store, "mount", self.container).strip())
        (root / "etc/hosts").touch()
        for target in targets:
            (root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
        return root

    def run(self, *command: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run ``command`` by `buildah run`, as the image's user."""
        isolation = ("--isolation", "chroot", "--user", self.config["User"])
        whole = _command(self.store, "run", *isolation, *options, self.container, "--", *command)
        return subprocess.run(whole, text=True, capture_output=True, timeout=_BUILD_S, check=False)


@contextmanager
def built(folder: Path) -> Iterator[Image]:
    """The image, and a container of it; both are deleted at the end, and the build's mounts undone."""
    kept = os.environ.get(_KEPT)
    store = Path(kept) if kept else folder / "store"
    seconds: dict[str, float] = {}
    (folder / "base").mkdir(parents=True)
    try:
        if not kept or "localhost/ppar-dist" not in buildah(store, "images"):
            _check_disk(folder, Path(os.environ.get("TMPDIR", "/var/tmp")))
            with _timed(seconds, "base"), _in_memory(folder / "base"):
                _make_base(store, folder / "base")
            with _timed(seconds, "build"):
                _build(store, folder)
        container = buildah(store, "from", "localhost/ppar-dist").strip()
        yield Image(store, container, json.loads(buildah(store, "inspect", container)), seconds)
    finally:
        buildah(store, "rm", "--all")
        if not kept:
            buildah(store, "rmi", "--all", "--force")
        # overlay mounts its folder upon itself
        subprocess.run(["umount", "--quiet", store / "graph" / "overlay"], check=False, timeout=60)


def _check_disk(*places: Path) -> None:
    for place in places:
        free = shutil.disk_usage(place).free / 2**30
        assert free >= _BUILD_GIB, (
            f"building the image takes {_BUILD_GIB} GiB of disk for some minutes, and {place} has {free:.1f} "
            "GiB free: free some, or name another disk (pytest's --basetemp, buildah's TMPDIR)"
        )


def buildah(store: Path, *arguments: str) -> str:
    """Output of `buildah ARGUMENTS`; an error shows buildah's message."""
    command = _command(store, *arguments)
    done = subprocess.run(command, text=True, capture_output=True, timeout=_BUILD_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def _command(store: Path, *arguments: str) -> list[str]:
    return ["buildah", "--root", str(store / "graph"), "--runroot", str(store / "run"), *arguments]


def _make_base(store: Path, folder: Path) -> None:
    """A minimal system of this machine's own distribution, as ``localhost/base``."""
    mirror, release = _mirror()
    root = folder / "root"
    command = ["debootstrap", "--variant=minbase", release, str(root), mirror]
    done = subprocess.run(command, text=True, capture_output=True, timeout=_BUILD_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-5000:]}\n{done.stderr[-2000:]}"
    settings = subprocess.run(["apt-config", "dump"], text=True, capture_output=True, check=True).stdout
    kept = [line for line in settings.splitlines() if _APT_OPTIONS.match(line)]
    (root / "etc/apt/apt.conf.d/90host").write_text("\n".join(kept) + "\n")
    # As in Debian's own images: a build that is cut off starts again, so nothing need be on the disk.
    (root / "etc/dpkg/dpkg.cfg.d/no-sync").write_text("force-unsafe-io\n")
    container = buildah(store, "from", "scratch").strip()
    buildah(store, "add", "--quiet", container, str(root), "/")
    buildah(store, "commit", "--quiet", "--rm", container, "base")


def _mirror() -> tuple[str, str]:
    """Where this machine's apt gets its distribution from, and the name of the release."""
    release = _os_release()["VERSION_CODENAME"]
    listing = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)"]
    lines = subprocess.run(listing, text=True, capture_output=True, check=True).stdout.splitlines()
    sites = [line.split()[0] for line in lines if line.split()[1:] == [release, "main"]]
    assert sites, f"apt knows no source of {release} main"
    return sites[0], release


def _os_release() -> Mapping[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def _build(store: Path, folder: Path) -> None:
    """Build docker/Dockerfile as ``localhost/ppar-dist``."""
    settings, volumes = pip_settings()
    (folder / "pip.conf").write_text(settings)
    secrets = [f"--secret=id=pip,src={folder / 'pip.conf'}", f"--secret=id=ca,src={_CERTIFICATES}"]
    mounts = [f"--volume={each}:{each}:ro" for each in volumes]
    # HEALTHCHECK is Docker's: the OCI format has no place for it.
    options = ("--isolation=chroot", "--format=docker", "--build-arg=BASE=localhost/base", "--quiet")
    labels = ("--build-arg=VERSION=1.2.3", "--build-arg=REVISION=abc")
    file = ("--file", str(REPOSITORY / "docker" / "Dockerfile"), "--tag=ppar-dist", str(REPOSITORY))
    buildah(store, "bud", *options, *labels, *secrets, *mounts, *file)


@functools.cache
def pip_settings() -> tuple[str, tuple[Path, ...]]:
    """A pip.conf that says what this machine's pip is told, and the folders of wheels that it names."""
    listing = [sys.executable, "-m", "pip", "config", "list"]
    text = subprocess.run(listing, text=True, capture_output=True, check=True, timeout=60).stdout
    lines, volumes = ["[global]", "cert = /run/secrets/ca"], set()
    for key, value in re.findall(r"^[^\n=]*?([a-z-]+)='(.*)'$", text, re.MULTILINE):
        if key not in _PIP_OPTIONS:
            continue
        lines.append(f"{key} = {value}")
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.is_dir():
                volumes.add(
                    path.parent if word.startswith("file://") else path
                )  # an index links beside itself
    return "\n".join(dict.fromkeys(lines)) + "\n", tuple(sorted(volumes))


@contextmanager
def _in_memory(folder: Path) -> Iterator[None]:
    """A file system in memory: Debian's package manager waits for the disk after every file."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g,dev,exec,suid", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True, timeout=60)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = time.monotonic() - began
