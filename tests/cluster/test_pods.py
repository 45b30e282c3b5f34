"""Two pods of an Indexed Job, each on a host of its own, under the names and variables that Kubernetes gives.

Their arguments are those of jobs/k8s, their files those of the image. No Kubernetes runs here: what its
controllers would do with the exit codes is read off their policies (pods_policy.py).
"""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from ppar_dist import checkpoint, exit_codes
from tests.cluster import pods, pods_data
from tests.cluster.image import Image
from tests.cluster.pods import Container
from tests.cluster.pods_manifests import Manifest, container, jobs, one, overlay
from tests.cluster.pods_policy import KILLED, jobset_decision
from tests.faults.hosts import Host, leftovers, network
from tests.faults.jobs import last_step
from tests.ranks import read_lines

ENDLESS, REST, PEER_S, WAIT_S = 1_000_000, 10, 15.0, 300.0
SECTIONS = {
    "train": {"steps": ENDLESS, "global_batch": 6, "log_every": 1},
    "checkpoint": {"every": 5},
    "faults": {"peer_s": PEER_S, "stall_s": 60.0},
}
DOMAIN = "ppar.svc.cluster.local"


class Cluster:
    """Both pods of the job, started as often as its controller would."""

    def __init__(self, image: Image, hosts: list[Host], sources: dict[str, Path], folder: Path) -> None:
        (self.job,) = jobs(copy.deepcopy(overlay("cpu")))
        container(self.job)["resources"]["limits"]["cpu"] = "1"  # test machines have two cores, for both pods
        self.changes: list[str] = []  # further arguments of train
        self._image, self._hosts, self._sources, self._folder = image, hosts, sources, folder
        self._starts = 0
        self.run = sources["runs"] / Path(pods_data.RUN).name

    @contextmanager
    def start(self) -> Iterator[tuple[Container, Container]]:
        """Pod 1 first, before the other has a name: its machine was quicker."""
        self._starts += 1
        with self._pod(1, self._own_name(1)) as second:
            time.sleep(2)
            with self._pod(0, self._own_name(0)) as first:
                hosts = second.log.with_name("hosts")
                hosts.write_text(hosts.read_text() + self._name_in_dns(0))
                yield first, second

    def address(self, index: int) -> str:
        return self._hosts[index].address

    def _pod(self, index: int, hosts: str) -> AbstractContextManager[Container]:
        return pods.running(
            self._image,
            self._folder / f"start-{self._starts}-pod-{index}",
            [*pods.arguments(self.job, index), *self.changes],
            volumes=pods.mounts(self.job, self._sources),
            environment=pods.variables(self.job, index),
            hostname=pods.hostname(self.job, index),
            hosts=hosts,
            namespace=self._hosts[index].namespace,
        )

    def _own_name(self, index: int) -> str:
        """The /etc/hosts that the kubelet writes."""
        name = pods.hostname(self.job, index)
        return f"127.0.0.1 localhost\n{self.address(index)} {name}.ppar.{DOMAIN} {name}.ppar {name}\n"

    def _name_in_dns(self, index: int) -> str:
        """What the headless Service adds to the cluster's directory once a pod has an address."""
        name = pods.hostname(self.job, index)
        return f"{self.address(index)} {name}.ppar.{DOMAIN} {name}.ppar\n"

    def newest(self) -> Path | None:
        return checkpoint.find_checkpoint(self.run)


def ends(cluster: Cluster, both: tuple[Container, Container], seconds: float) -> list[int]:
    codes = [each.wait(seconds) for each in both]
    assert "Traceback" not in both[0].output + both[1].output
    return codes


def fetch(host: Host, url: str) -> str:
    """A page, as seen from another host."""
    script = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=30).read().decode())"
    command = ["ip", "netns", "exec", host.namespace, sys.executable, "-c", script, url]
    return subprocess.run(command, text=True, capture_output=True, check=True, timeout=60).stdout


def test_two_pods_train_lose_one_are_evicted_and_finish(image: Image, blocks: Path, tmp_path: Path) -> None:
    sources = pods_data.lay_out(tmp_path / "volumes", blocks, image.user, **SECTIONS)
    jobset = one(overlay("cpu"), "JobSet")
    with network(2) as hosts:
        cluster = Cluster(image, hosts, sources, tmp_path)
        a_pod_is_killed(cluster, jobset)
        a_pod_is_evicted(cluster, jobset, hosts)
        the_rest_is_done(cluster)
    assert not leftovers()


def a_pod_is_killed(cluster: Cluster, jobset: Manifest) -> None:
    """The one with the ranks' store, which also writes the checkpoints."""
    with cluster.start() as both:
        pods.until(cluster.newest, "a checkpoint", WAIT_S, *both)
        began = time.monotonic()
        both[0].send(signal.SIGKILL)
        code = both[1].wait(PEER_S + 60)
        print(f"a pod killed: the other ended with {code} after {time.monotonic() - began:.1f} s")
        assert both[0].wait(60) != 0
        assert code == exit_codes.RESUME, both[1].output
        assert "Traceback" not in both[1].output
    assert {jobset_decision(jobset, each) for each in (code, KILLED)} == {"RestartJobSet"}


def a_pod_is_evicted(cluster: Cluster, jobset: Manifest, hosts: list[Host]) -> None:
    before = cluster.newest()
    with cluster.start() as both:
        pods.until(lambda: cluster.newest() != before, "a further checkpoint", WAIT_S, *both)
        assert f"resumed from {pods_data.RUN}/checkpoints/{before.name}" in both[0].output
        for index in (0, 1):
            assert fetch(hosts[1 - index], f"http://{cluster.address(index)}:18400/metrics")
            facts = fetch(hosts[1 - index], f"http://{cluster.address(index)}:18400/healthz")
            assert json.loads(facts), facts
        began = time.monotonic()
        both[1].send(signal.SIGTERM)
        codes = ends(cluster, both, 120)
        print(f"a pod evicted: both ended with {codes} after {time.monotonic() - began:.1f} s")
    assert codes == [exit_codes.RESUME] * 2, both[0].output + both[1].output
    assert cluster.newest().name == checkpoint.checkpoint_name(last_step(cluster.run))
    assert jobset_decision(jobset, codes[1], disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"


def the_rest_is_done(cluster: Cluster) -> None:
    """The run, which would not have ended before, ends some steps later."""
    before, steps = cluster.newest(), last_step(cluster.run) + REST
    cluster.changes = ["--accept-changes", f"train.steps={steps}"]
    with cluster.start() as both:
        codes = ends(cluster, both, WAIT_S)
    assert codes == [0, 0], both[0].output + both[1].output
    assert f"resumed from {pods_data.RUN}/checkpoints/{before.name}" in both[0].output
    done = [record["step"] for record in read_lines(cluster.run / "metrics" / "train.jsonl")]
    assert done == list(range(1, steps + 1))
    state = checkpoint.read_state(cluster.run / "checkpoints" / checkpoint.checkpoint_name(steps))
    assert state["samples_seen"] == 6 * steps


@pytest.mark.parametrize("index", [0, 1])
def test_names_are_those_of_both_kinds_of_job(index: int) -> None:
    for name, expected in (("cpu", "ppar-train-0-0.ppar"), ("indexed-job", "ppar-0.ppar")):
        (job,) = jobs(overlay(name))
        arguments = pods.arguments(job, index)
        assert f"--master={expected}:29500" in arguments
        assert f"--node-rank={index}" in arguments
        assert not [each for each in arguments if "$(" in each]
