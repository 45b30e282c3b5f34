"""A real Slurm of three hosts on one machine: munge, a controller, and a ``slurmd`` on each host.

::

    alpha   10.77.N.1   slurmctld, slurmd    taken last, so that a job of two hosts is on the others
    beta    10.77.N.2   slurmd               said to have two GPUs
    gamma   10.77.N.3   slurmd               likewise

The hosts are network namespaces with host names and process ids of their own (``tests/faults/hosts.py``):
processes are killed there as if the power had been cut. All files are in one folder, nothing listens
outside the namespaces, and nothing is left when the block ends.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.faults.hosts import Host, network
from tests.ranks import TIMEOUT_S, rank_environment

SCRIPT = Path(__file__).parents[2] / "jobs" / "slurm_ppar.sh"
LOGIN = "alpha"
REQUEUE_DELAY_S = 5
KILL_WAIT_S = 60  # more than two slow steps and a checkpoint: what is cancelled ends by itself
_POLL_S = 0.2
_CONFIG = f"""
ClusterName=ppar
SlurmctldHost=alpha({{controller}})
# cred_expire is also what a job waits that is queued again: 120 s unless set.
AuthInfo=socket={{folder}}/munge.socket,cred_expire={REQUEUE_DELAY_S}
SlurmUser=root
SlurmctldPidFile={{folder}}/slurmctld.pid
SlurmctldLogFile={{folder}}/slurmctld.log
StateSaveLocation={{folder}}/state
SlurmdPidFile={{folder}}/slurmd-%n.pid
SlurmdLogFile={{folder}}/slurmd-%n.log
SlurmdSpoolDir={{folder}}/spool-%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=1
SlurmdTimeout=10
KillWait={KILL_WAIT_S}
MinJobAge=3600
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
GresTypes=gpu
NodeName=DEFAULT CPUs=4 RealMemory=4000 State=UNKNOWN
{{nodes}}
PartitionName=DEFAULT Nodes=ALL State=UP MaxTime=INFINITE GraceTime=120
PartitionName=work Default=YES PriorityTier=1
PartitionName=urgent PriorityTier=2
"""


class Slurm:
    """The cluster, and what its users and its administrator do with it."""

    def __init__(self, folder: Path, hosts: Sequence[Host]) -> None:
        self.folder, self.hosts = folder, {host.name: host for host in hosts}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        nodes = [f"NodeName={host.name} NodeAddr={host.address} {self._kind(host.name)}" for host in hosts]
        text = _CONFIG.format(folder=folder, controller=self.hosts[LOGIN].address, nodes="\n".join(nodes))
        (folder / "slurm.conf").write_text(text)
        gpus = f"NodeName=beta,gamma Name=gpu File={folder}/gpu[0-1]"
        (folder / "gres.conf").write_text(f"AutoDetect=off\n{gpus}\n")
        for number in range(2):
            (folder / f"gpu{number}").touch()
        # Nothing uses control groups, but slurmd asks for their version, which a namespace does not show.
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        for name in ("state", *(f"spool-{name}" for name in self.hosts)):
            (folder / name).mkdir()

    def start(self) -> None:
        """Start the daemons; returns when every host is idle."""
        key, socket = self.folder / "munge.key", self.folder / "munge.socket"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        files = [f"--{kind}-file={self.folder}/munge.{kind}" for kind in ("key", "log", "pid", "seed")]
        munged = ["setpriv", "--pdeathsig", "KILL", "munged", "--foreground", "--force", f"--socket={socket}"]
        self._start("munged", [*munged, *files])
        wait_for(socket.exists, "munge")
        self._start("slurmctld", self.hosts[LOGIN].command("slurmctld", "-D"))
        for name in self.hosts:
            self.power_on(name)
        self.wait_for_idle()

    def stop(self) -> None:
        """End the daemons and all that they have started."""
        for name in list(self._daemons):
            self._kill(name)

    def power_on(self, name: str) -> None:
        """Boot a host."""
        self._start(name, self.hosts[name].command("slurmd", "-D", "-N", name))

    def power_off(self, name: str) -> None:
        """Kill all that runs on a host at once."""
        self._kill(name)

    def wait_for_idle(self) -> None:
        """Wait until every host is up and has nothing to do."""
        idle = dict.fromkeys(self.hosts, "idle")
        wait_for(lambda: self.node_states() == idle, "idle hosts", self.describe, 60.0)

    def run(self, *command: str, cwd: Path | None = None, **environment: str) -> str:
        """The output of a command, run by a user on the login host."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.hosts[LOGIN].namespace, *command],
            cwd=cwd or self.folder,
            env=self._environment() | environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sbatch(self, *arguments: str, cwd: Path | None = None, **environment: str) -> Job:
        """Submit a job."""
        return Job(self, int(self.run("sbatch", "--parsable", *arguments, cwd=cwd, **environment)))

    def node_states(self) -> dict[str, str]:
        """State of each host, as sinfo names it."""
        lines = self.run("sinfo", "-h", "-N", "-p", "work", "-o", "%N %T").splitlines()
        return {name: state for name, state in (line.split() for line in lines)}

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes of the hosts whose command line holds all ``words``."""
        return [process for name in self._daemons for process in self.processes_of(name, *words)]

    def processes_of(self, name: str, *words: str) -> list[psutil.Process]:
        """Those of one host."""
        found = []
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(self._daemons[name].pid).children(recursive=True)
        return [process for process in found if all(word in _command(process) for word in words)]

    def describe(self) -> str:
        """What the cluster is doing, for the message of a failed test."""
        logs = [path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("slurm*.log"))]
        return "\n".join([self.run("squeue"), self.run("sinfo", "-N"), *logs])

    def _environment(self) -> dict[str, str]:
        paths = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
        conf = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PYTHONPATH": str(SCRIPT.parents[1])}
        return rank_environment() | {"PATH": ":".join(paths)} | conf

    @staticmethod
    def _kind(name: str) -> str:
        return "Weight=100" if name == LOGIN else "Weight=1 Gres=gpu:2"

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(command, env=self._environment(), stdout=out, stderr=out)

    def _kill(self, name: str) -> None:
        daemon = self._daemons.pop(name)
        with suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(daemon.pid).children(recursive=True), psutil.Process(daemon.pid)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        daemon.wait(60)


class Job:
    """A job as its user sees it."""

    def __init__(self, slurm: Slurm, number: int) -> None:
        self.slurm, self.number = slurm, number

    def facts(self) -> dict[str, str]:
        """What ``scontrol show job`` tells."""
        words = self.slurm.run("scontrol", "show", "job", "--oneliner", str(self.number)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    @property
    def state(self) -> str:
        """For example RUNNING."""
        return self.facts()["JobState"]

    @property
    def restarts(self) -> int:
        """How often it was queued again."""
        return int(self.facts()["Restarts"])

    @property
    def log(self) -> str:
        """The output so far, of all its starts."""
        path = Path(self.facts()["StdOut"])
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Poll until ``condition`` gives something."""
        return wait_for(condition, f"{what} of job {self.number}", lambda: self.log + self.slurm.describe())

    def wait_for_state(self, *states: str) -> str:
        """Wait until the job is in one of ``states``."""
        return str(self.wait_for(lambda: (now := self.state) in states and now, " or ".join(states)))

    def wait_for_end(self) -> tuple[str, str]:
        """Its last state and its exit code, once it has ended for good."""
        self.wait_for_state("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.wait_for(lambda: not self.slurm.run("squeue", "-h", "-j", str(self.number)), "completion")
        facts = self.facts()
        return facts["JobState"], facts["ExitCode"].partition(":")[0]

    def cancel(self) -> None:
        """As its user does."""
        self.slurm.run("scancel", str(self.number))


def wait_for(
    condition: Callable[[], Any], what: str, describe: Callable[[], str] = str, seconds: float = TIMEOUT_S
) -> Any:
    """Poll until ``condition`` gives something, at most ``seconds``; returns that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} in {seconds:g} s:\n{describe()}"
        time.sleep(_POLL_S)
    return found


@contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """A cluster whose files are in ``folder``; deleted afterwards."""
    with network(3) as hosts:
        slurm = Slurm(folder, hosts)
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.stop()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
