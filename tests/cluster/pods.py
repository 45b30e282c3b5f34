"""Containers and pods imitated from the image's files: pods_enter.sh in namespaces of their own.

What a container runtime would take from the image (environment, entry point, user) and the kubelet from the
manifest (arguments, variables, volumes, names) comes from there.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.cluster.image import Image
from tests.cluster.pods_manifests import Manifest, container, pod_spec

_ENTER = Path(__file__).with_name("pods_enter.sh")
_POLL_S = 0.05
_APART = ("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child")


@dataclass(frozen=True)
class Volume:
    """A folder or file of this machine and where the container sees it."""

    source: Path
    target: str
    writable: bool = False


@dataclass
class Container:
    """A process tree whose first process is the image's entry point."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def first(self) -> int | None:
        """The id that the container's process 1 has on this machine; None until it runs."""
        children = psutil.Process(self.process.pid).children()
        return int(children[0].pid) if children else None

    @property
    def output(self) -> str:
        """The output so far."""
        return self.log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Signal the container's process 1, as the runtime does; SIGKILL takes all its processes along."""
        assert self.first is not None, "it runs"
        psutil.Process(self.first).send_signal(number)

    def wait(self, seconds: float) -> int:
        """The exit code; a container that does not end in time fails the test with its output."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end in {seconds} s:\n{self.output}") from None


@contextmanager
def running(
    image: Image,
    folder: Path,
    arguments: Sequence[str],
    *,
    volumes: Sequence[Volume] = (),
    environment: Mapping[str, str] | None = None,
    hostname: str = "container",
    hosts: str = "127.0.0.1 localhost\n",
    namespace: str | None = None,
    entrypoint: Sequence[str] | None = None,
) -> Iterator[Container]:
    """The image's entry point (or another) with ``arguments``; nothing of it is left afterwards.

    ``namespace`` is a network namespace, by default the machine's own. ``folder`` gets the log and the
    container's /etc/hosts, which may be rewritten while it runs.
    """
    folder.mkdir(parents=True)
    (folder / "hosts").write_text(hosts)
    lines = [f"{each.source} {each.target} {'rw' if each.writable else 'ro'}\n" for each in volumes]
    (folder / "volumes").write_text("".join(lines))
    root = image.root(tuple(each.target for each in volumes))
    variables = [f"{key}={value}" for key, value in {**image.environment, **(environment or {})}.items()]
    command = [*(image.entrypoint if entrypoint is None else entrypoint), *arguments]
    network = ("ip", "netns", "exec", namespace) if namespace else ()
    inside = (str(_ENTER), str(root), hostname, str(folder), str(image.user), *variables, *command)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *network, *_APART, *inside],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    started = Container(process, folder / "log")
    try:
        yield started
    finally:
        # The kernel forgets to kill process 1 with its parent once that has given up root.
        if process.poll() is None and (first := started.first) is not None:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(first).kill()  # and with it all processes of its namespace
        process.kill()
        process.wait(60)


def variables(job: Manifest, index: int) -> dict[str, str]:
    """The variables of the pod's container: those of the manifest and those that controllers add."""
    name = job["metadata"]["name"]
    labels = {
        "batch.kubernetes.io/job-name": name,
        "batch.kubernetes.io/job-completion-index": str(index),
        "jobset.sigs.k8s.io/jobset-name": name.removesuffix("-train-0"),
        **job["spec"]["template"]["metadata"]["labels"],
    }
    limits = container(job)["resources"]["limits"]
    found = {"JOB_COMPLETION_INDEX": str(index), "HOSTNAME": hostname(job, index)}
    for entry in container(job)["env"]:
        source = entry.get("valueFrom", {})
        if "fieldRef" in source:
            label = re.fullmatch(r"metadata\.labels\['(.+)'\]", source["fieldRef"]["fieldPath"])
            assert label is not None, source
            found[entry["name"]] = labels[label[1]]
        elif "resourceFieldRef" in source:
            found[entry["name"]] = limits[source["resourceFieldRef"]["resource"].removeprefix("limits.")]
        else:
            found[entry["name"]] = entry["value"]
    return found


def arguments(job: Manifest, index: int) -> list[str]:
    """The container's arguments, ``$(NAME)`` replaced as the kubelet replaces it."""
    known = variables(job, index)
    return [re.sub(r"\$\((\w+)\)", lambda m: known.get(m[1], m[0]), each) for each in container(job)["args"]]


def hostname(job: Manifest, index: int) -> str:
    """The host name that a pod of an Indexed Job has."""
    return f"{job['metadata']['name']}-{index}"


def mounts(job: Manifest, sources: Mapping[str, Path]) -> list[Volume]:
    """The pod's volumes, those of emptyDir left out: pods_enter.sh makes them."""
    empty = {each["name"] for each in pod_spec(job)["volumes"] if "emptyDir" in each}
    return [
        Volume(sources[mount["name"]], mount["mountPath"], not mount.get("readOnly", False))
        for mount in container(job)["volumeMounts"]
        if mount["name"] not in empty
    ]


def until(condition: Callable[[], object], what: str, seconds: float, *containers: Container) -> None:
    """Poll until ``condition`` holds; the containers must live meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition():
        outputs = "\n".join(each.output for each in containers)
        assert all(each.process.poll() is None for each in containers), f"ended before {what}:\n{outputs}"
        assert time.monotonic() < deadline, f"no {what} in {seconds} s:\n{outputs}"
        time.sleep(_POLL_S)
