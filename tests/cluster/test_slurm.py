"""``jobs/slurm_ppar.sh`` on a real Slurm: what happens to a job, and what its user sees."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ppar_dist import checkpoint
from tests.cluster.programs import needs
from tests.cluster.slurm import SCRIPT, Job, Slurm, cluster
from tests.faults.hosts import leftovers, why_not
from tests.faults.jobs import last_step, tiny_run
from tests.ranks import run_command
from tests.sabotage.pace import Pace

STEPS, EVERY = 150, 2
STEP_S = 3.0  # while something is awaited: 150 of them last longer than all that is
LAUNCHER_S = 30.0  # that launchers leave their ranks after a SIGTERM, if they hear it
SECTIONS = {
    "train": {"steps": STEPS, "global_batch": 6, "log_every": 1, "ledger": True},
    "checkpoint": {"every": EVERY},
    "faults": {"peer_s": 10.0, "stall_s": 120.0, "grace_s": 110.0},
    "monitoring": {"enabled": True},
}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    needs("slurmctld", "slurmd", "sbatch", "munged", "ip", root=True)
    if reason := why_not():
        pytest.fail(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, cluster(Path(folder)) as slurm:
        yield slurm
    assert not leftovers()


def program(folder: Path, text: str) -> str:
    """PATH with a ``ppar-dist`` that is this bash script; in it, REAL is the real one."""
    real = f"{sys.executable} -m ppar_dist"
    file = folder / "bin" / "ppar-dist"
    file.parent.mkdir(parents=True)
    file.write_text(f"#!/bin/bash\nREAL='{real}'\n{text}\n")
    file.chmod(0o755)
    return f"{file.parent}:{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how many seconds the block took."""
    began = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)


class Run:
    """A run whose jobs train slowly while ``pace`` exists."""

    def __init__(self, slurm: Slurm, blocks: Path, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        # The GPUs of the nodes are imitated: a job that gets some is refused, unless told to use the CPU.
        self.path, config = tiny_run(blocks, folder, **SECTIONS, engine={"device": "cpu"})
        self.config = Path(config)
        self.pace, self.targets = Pace(folder / "pace", seconds=STEP_S), folder / "targets"
        self.targets.mkdir()
        self._has_trained = False
        self.environment = {
            "PATH": program(folder, f'exec {sys.executable} -m tests.sabotage {self.pace.pace} "$@"'),
            "PPAR_TARGETS_DIR": str(self.targets),
        }

    def submit(self, *options: str, config: str = "config.yaml", **environment: str) -> Job:
        """A job of this run, from its folder."""
        arguments = [*options, "--job-name=streets", "--dependency=singleton", str(SCRIPT), config]
        return self.slurm.sbatch(*arguments, cwd=self.folder, **self.environment, **environment)

    def trains(self, job: Job, starts: int) -> None:
        """Wait until this start of a job has trained to a checkpoint beyond the one from which it went on."""
        mark = f"job {job.number}: start "
        job.wait_for(lambda: job.log.count(mark) == starts, f"start {starts}")
        found = (None,)
        if self._has_trained:
            text = re.compile(r"resumed from (\S+), the newest whole checkpoint")
            match = job.wait_for(lambda: text.search(job.log.rpartition(mark)[2]), "resumption")
            found = (None, Path(match[1]))
        job.wait_for(lambda: checkpoint.find_checkpoint(self.path) not in found, "a further checkpoint")
        self._has_trained = True

    def queued_again(self, job: Job, times: int) -> None:
        """Wait until a job has been queued again so many times."""
        job.wait_for(lambda: job.restarts == times, f"requeue {times}")


def test_a_run_goes_through_all_that_happens_to_jobs_and_loses_nothing(
    slurm: Slurm, blocks: Path, tmp_path: Path
) -> None:
    run = Run(slurm, blocks, tmp_path)
    with timed("2 nodes, from sbatch to the first checkpoint"):
        first = run.submit("--nodes=2", "--time=60")
        container = {"PPAR_CONTAINER": "/", "PPAR_CONTAINER_RUN": "chroot"}
        second = run.submit("--nodes=1", "--gpus-per-node=2", config=str(run.config), **container)
        third = run.submit("--nodes=2")
        run.trains(first, 1)
    both_nodes_take_part(run, first)
    a_second_job_on_the_run_is_refused(run, first)
    out_of_time(run, first)
    a_node_is_lost(run, first)
    a_node_is_set_down(run, first)
    preempted(run, first)
    cancelled(run, first)
    stopped_by_file(run, second, third)
    finished(run)


def both_nodes_take_part(run: Run, job: Job) -> None:
    assert "2 ranks" in job.log
    nodes = job.facts()["NodeList"]
    assert nodes == "beta,gamma", nodes
    of_rank_1 = run.path / "logs" / f"slurm-{job.number}" / "rank-00001.log"
    assert re.search(r" rank 1 of 2 on (beta|gamma), process \d+", of_rank_1.read_text())
    groups = json.loads((run.targets / f"ppar-{job.number}.json").read_text())
    addresses = [target for group in groups for target in group["targets"]]
    assert sorted(a.rpartition(":")[0] for a in addresses) == [
        run.slurm.hosts[n].address for n in ("beta", "gamma")
    ]


def a_second_job_on_the_run_is_refused(run: Run, first: Job) -> None:
    with timed("a second job on the same run: refused"):
        job = run.slurm.sbatch(str(SCRIPT), "config.yaml", cwd=run.folder, **run.environment)
        assert job.wait_for_end() == ("FAILED", "78"), job.log
    assert job.restarts == 0
    assert "not queued again" in job.log
    assert f"{run.path} is in use by Slurm job {first.number}" in job.log, job.log


def out_of_time(run: Run, job: Job) -> None:
    with timed("end of its time near: signal, checkpoint, queued again"):
        run.slurm.run("scontrol", "update", f"JobId={job.number}", "EndTime=now+200")
        run.queued_again(job, 1)
    assert "asked to save and end" in job.log
    assert not list(run.targets.iterdir())
    # Slurm has cut the job's limit to match: its later starts would be out of time after some 90 s as well.
    run.slurm.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    run.trains(job, 2)


def a_node_is_lost(run: Run, job: Job) -> None:
    with timed("power cut on a node (SlurmdTimeout 10): queued again"):
        run.slurm.power_off("beta")
        run.queued_again(job, 2)
    run.trains(job, 3)
    assert job.facts()["NodeList"] == "alpha,gamma"
    run.slurm.power_on("beta")


def a_node_is_set_down(run: Run, job: Job) -> None:
    """By its administrator, while it works: Slurm ends the job on all nodes."""
    with timed("a node set down: signal, checkpoint, queued again"):
        before = last_step(run.path)
        run.slurm.run("scontrol", "update", "NodeName=gamma", "State=DOWN", "Reason=maintenance")
        run.queued_again(job, 3)
        job.wait_for_state("PENDING", "RUNNING")  # no longer COMPLETING: its processes have ended
    saved_beyond(run, job, before)
    run.trains(job, 4)
    assert job.facts()["NodeList"] == "alpha,beta"
    # Not sooner: Slurm waits for no node that is down, and gamma, which kills what is left of the job after
    # KillWait, looks every 10 s whether any is. It would take the next start for the one that it is to end.
    job.wait_for(lambda: not run.slurm.processes_of("gamma", "tests.sabotage"), "end of what gamma ran")
    run.slurm.run("scontrol", "update", "NodeName=gamma", "State=RESUME")


def saved_beyond(run: Run, job: Job, step: int) -> None:
    newest = checkpoint.find_checkpoint(run.path)
    assert newest is not None
    assert checkpoint.read_state(newest)["step"] > step, job.log


def preempted(run: Run, job: Job) -> None:
    """Slurm signals all processes, launchers as well, in a step that lasts longer than those would wait."""
    with timed("preempted (PreemptMode=REQUEUE, GraceTime 120) in a step of 35 s: checkpoint, queued again"):
        run.pace.set(seconds=600.0)
        before = last_step(run.path)
        urgent = run.slurm.sbatch("--partition=urgent", "--nodes=3", "--exclusive", "--wrap=true")
        job.wait_for(lambda: job.facts()["PreemptTime"] != "None", "preemption")
        time.sleep(LAUNCHER_S + 5.0)
        assert job.restarts == 3, job.log
        run.pace.set(seconds=STEP_S)
        run.queued_again(job, 4)
    saved_beyond(run, job, before)
    assert "ends now" not in job.log
    urgent.wait_for_end()
    run.trains(job, 5)


def cancelled(run: Run, job: Job) -> None:
    with timed("scancel: ended, nothing left"):
        theirs = set(run.slurm.processes("tests.sabotage"))  # the next of the chain starts at once
        assert theirs
        job.cancel()
        state, _ = job.wait_for_end()
        job.wait_for(lambda: theirs.isdisjoint(run.slurm.processes("tests.sabotage")), "end of all processes")
    assert state == "CANCELLED"
    assert job.restarts == 4


def stopped_by_file(run: Run, second: Job, third: Job) -> None:
    """In a container, on the GPUs of one node instead of two nodes."""
    run.trains(second, 1)
    assert "beta, 2 ranks each" in second.log or "gamma, 2 ranks each" in second.log, second.log
    stop = run.path / "STOP"
    with timed("RUN/STOP made: checkpoint, ended; the next of the chain does not start"):
        stop.touch()
        assert second.wait_for_end() == ("FAILED", "130"), second.log
        assert third.wait_for_end() == ("FAILED", "130"), third.log
    assert "not queued again" in second.log
    assert "not started" in third.log
    assert second.restarts == third.restarts == 0
    stop.unlink()


def finished(run: Run) -> None:
    """The rest at full speed, in a virtual environment; a further job of the chain finds nothing to do."""
    run.pace.release()
    with timed("the rest of the run"):
        fourth = run.submit("--nodes=2", PPAR_VENV=sys.prefix)
        fifth = run.submit("--nodes=2")
        assert fourth.wait_for_end() == ("COMPLETED", "0"), fourth.log
    with timed("a job of a finished run"):
        assert fifth.wait_for_end() == ("COMPLETED", "0"), fifth.log
    assert "nothing to do" in fifth.log
    assert last_step(run.path) == STEPS
    assert not list(run.targets.iterdir())
    proof = run_command(["ledger", str(run.path)])
    assert proof.returncode == 0, proof.stdout + proof.stderr
    print(proof.stdout)


@pytest.mark.parametrize(
    ("overrides", "environment", "message"),
    [
        (["train.stepz=1"], {}, "unknown key train.stepz"),
        (["data.root=/nowhere"], {}, "/nowhere"),
        ([], {"PPAR_VENV": "/nowhere"}, "cannot load /nowhere/bin/activate: no such file"),
        (
            [],
            {"PPAR_CONTAINER": "/image.sif", "PPAR_CONTAINER_RUN": "no-such exec"},
            "a node cannot run ppar-dist",
        ),
    ],
)
def test_what_a_retry_cannot_cure_is_not_queued_again(
    slurm: Slurm,
    blocks: Path,
    tmp_path: Path,
    overrides: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    _, config = tiny_run(blocks, tmp_path)
    with timed(f"refused: {message}"):
        job = slurm.sbatch("--nodes=2", str(SCRIPT), config, *overrides, cwd=tmp_path, **environment)
        assert job.wait_for_end() == ("FAILED", "78"), job.log
    assert message in job.log
    assert job.restarts == 0


def test_a_job_that_gets_nowhere_is_not_queued_again_for_ever(
    slurm: Slurm, blocks: Path, tmp_path: Path
) -> None:
    """Killed, as by memory: first with the shell that would tell its code, then alone.

    The program comes from a module here, which a site's own set-up makes known.
    """
    needs("modulecmd")
    run, config = tiny_run(blocks, tmp_path)
    killed = "kill -KILL $((SLURM_RESTART_COUNT ? $$ : PPID)); sleep 1"
    program(tmp_path, f'[[ $1 == train ]] || exec $REAL "$@"\n{killed}')
    (tmp_path / "streets").write_text(f"#%Module\nprepend-path PATH {tmp_path / 'bin'}\n")
    setup = tmp_path / "setup.sh"
    setup.write_text(f"export MODULEPATH=$UNSET{tmp_path}\nfalse\n")
    site = {"PPAR_MODULES": "streets", "PPAR_SETUP": str(setup)}
    job = slurm.sbatch(str(SCRIPT), config, cwd=tmp_path, PPAR_MAX_REQUEUES="2", **site)
    with timed("no checkpoint in 2 starts: given up"):
        assert job.wait_for_end() == ("FAILED", "75"), job.log
    assert job.restarts == 1
    assert "no new checkpoint in 2 starts in a row (PPAR_MAX_REQUEUES)" in job.log
    assert (run / "logs" / f"slurm-{job.number}.stuck").read_text() == "2\n"


def test_what_happens_between_checkpoints_is_not_held_against_a_job(
    slurm: Slurm, blocks: Path, tmp_path: Path
) -> None:
    """Two starts that make a checkpoint, then one interruption after the other before anything trains.

    A signal, a preemption, a node that does not answer, a request while srun starts; never two in a row that
    count.

    An ``srun`` of ours, found before the real one, does what that does when the controller or a node does not
    answer; and it is deaf while it starts. The user's squeue shows one partition only.
    """
    run, config = tiny_run(blocks, tmp_path)
    text = f"""case $1-${{SLURM_RESTART_COUNT:-0}} in
      train-[015]) mkdir -p {run}/checkpoints/step-0000000$((SLURM_RESTART_COUNT + 1)); exit 75 ;;
      config-2) kill -TERM $$ ;;
      config-3)
        sleep 2  # both nodes are to hear the signal
        ((SLURM_PROCID)) || sbatch --partition=urgent --nodes=3 --exclusive --output=/dev/null --wrap=true
        sleep 600 ;;
      train-7) exit 0 ;;
      train-*) echo "trains although it was asked to end"; exit 70 ;;
      *) exec $REAL "$@" ;;
    esac"""
    path = program(tmp_path, text)
    srun = tmp_path / "bin" / "srun"
    srun.write_text(f"""#!/bin/bash
    case " $* "-${{SLURM_RESTART_COUNT:-0}} in
      *" --label "*-4) exit 233 ;;
      *" --label "*-6) trap '' USR1; kill -USR1 $PPID; until [[ -e $PPAR_ASKED ]]; do sleep 0.1; done ;;
      *" config "*-0) [[ -e {tmp_path}/asked ]] || {{ touch {tmp_path}/asked; exit 1; }} ;;
    esac
    exec {shutil.which("srun", path=path.replace(str(srun.parent), ""))} "$@"
    """)
    srun.chmod(0o755)
    environment = {"PATH": path, "SQUEUE_PARTITION": "urgent", "PPAR_MAX_REQUEUES": "2"}
    job = slurm.sbatch("--nodes=2", str(SCRIPT), config, cwd=tmp_path, **environment)
    with timed("interrupted before it trains by a signal, a preemption, a node that is silent, a request"):
        assert job.wait_for_end() == ("COMPLETED", "0"), job.log
    assert job.restarts == 7, job.log
    assert job.log.count("start ") == 6, job.log  # twice it was ended before
    assert not list(tmp_path.glob(".ppar-*"))


def test_an_internal_error_on_one_node_outweighs_a_wish_to_resume_on_another(
    slurm: Slurm, blocks: Path, tmp_path: Path
) -> None:
    _, config = tiny_run(blocks, tmp_path)
    text = 'echo "$SLURM_GPUS_ON_NODE GPUs: $*"; exit $((SLURM_NODEID == 0 ? 70 : 75))'
    path = program(tmp_path, f'[[ $1 == train ]] || exec $REAL "$@"\n{text}')
    two_ranks_each = ("--ntasks-per-node=2", "--gpus-per-task=1", "--cpus-per-task=2")
    job = slurm.sbatch("--nodes=2", *two_ranks_each, str(SCRIPT), config, cwd=tmp_path, PATH=path)
    assert job.wait_for_end() == ("FAILED", "70"), job.log
    assert job.restarts == 0
    for node in range(2):
        line = rf"^{node}: 2 GPUs: train .* --nproc 2 --nodes 2 --master \S+ --node-rank {node}$"
        assert re.search(line, job.log, re.MULTILINE), job.log


def test_each_task_of_a_sweep_is_queued_again_for_itself(slurm: Slurm, blocks: Path, tmp_path: Path) -> None:
    """Slurm knows the last task of an array by the array's number: asked by that it would speak of all."""
    _, config = tiny_run(blocks, tmp_path)
    grid, out, folders = tmp_path / "grid.yaml", tmp_path / "out", ("plain", "PPAR", "low")
    variants = {"plain": {"ppar.enabled": False}, "PPAR": {}, "low": {"optim.lr": 1e-4}}
    grid.write_text(json.dumps({"base": config, "variants": variants}))
    made = run_command(["sweep", str(grid), "--out", str(out), "--slurm", str(SCRIPT), "--jobs", "2"])
    assert made.returncode == 0, made.stderr
    text = f"""echo "$SLURM_ARRAY_TASK_ID ${{2##*/configs/}}" >>{tmp_path}/starts
    exit $((SLURM_RESTART_COUNT ? 0 : 75))"""
    path = program(tmp_path, f'[[ $1 == train ]] || exec $REAL "$@"\n{text}')
    array = slurm.sbatch(str(out / "sweep.sh"), cwd=tmp_path, PATH=path)
    with timed("three tasks, each queued again once"):
        array.wait_for(lambda: not slurm.run("squeue", "-h", "-j", str(array.number)), "end")
    logs = {file.name: file.read_text() for file in (out / "logs").glob("slurm-*.log")}
    assert len(logs) == 3, logs
    assert all(log.rstrip().endswith("done") for log in logs.values()), logs
    starts = sorted((tmp_path / "starts").read_text().splitlines())
    assert starts == [f"{task} {folder}/seed-0.yaml" for task, folder in enumerate(folders) for _ in range(2)]


def test_the_script_is_clean() -> None:
    needs("shellcheck")
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
