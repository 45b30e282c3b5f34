"""Commands of a job: ``train``, ``sweep``, ``config``, ``doctor``, ``health``, ``demo``."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ppar_dist import exit_codes
from ppar_dist.cli.app import ConfigFile, Json, Override, Whole, app, refuse_below_1
from ppar_dist.cli.progress import count_images, show_progress
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.launch.launchers import Launcher
from ppar_dist.launch.nodes import Nodes
from ppar_dist.monitoring import health as health_check
from ppar_dist.processes import rank_log
from ppar_dist.storage.location import Remote

if TYPE_CHECKING:  # loads torch
    from ppar_dist.doctor.findings import Diagnosis


@app.command
def train(
    config: ConfigFile,
    /,
    *overrides: Override,
    nproc: Whole | None = None,
    nodes: Whole | None = None,
    node_rank: Whole | None = None,
    master: str | None = None,
    launcher: Launcher = "deepspeed",
    accept_changes: bool = False,
) -> int | None:
    """Train, or resume a run that was interrupted.

    Args:
        nproc: ranks on this machine (default: one per GPU, else 1)
        nodes: machines; run the same command on each (default: a PyTorchJob's pods, else 1)
        node_rank: number of this machine, from 0
        master: HOST[:PORT] of machine 0, where the ranks meet
        launcher: what starts the ranks
        accept_changes: resume with a changed configuration
    """
    from ppar_dist.launch.environment import settle
    from ppar_dist.launch.rank import is_rank, note_exit, note_start
    from ppar_dist.processes.signals import Preemption, leave_on_signals

    refuse_below_1("--nproc", nproc)
    told = settle(os.environ, nproc, nodes, node_rank, master)
    preemption, parent = Preemption(note_exit), None
    if is_rank():  # before anything slow: a signal may arrive at any time
        preemption.watch()
        parent = note_start()
        rank_log.redirect()
    else:
        leave_on_signals()
    settings = _load(config, overrides)
    if not is_rank():
        from ppar_dist.launch.nodes import nodes_of

        machines = told or nodes_of(1 if nodes is None else nodes, node_rank, master)
        # Without the options of the launch: torchrun would read --nproc as its own.
        accept = ["--accept-changes"] if accept_changes else []
        arguments = ["train", str(config), *overrides, *_pinned_classes(settings), *accept]
        code = _start(settings, arguments, nproc, machines, launcher)
        if code is not None:
            return code
        preemption.watch()
    gc.disable()  # imports create a million objects and no garbage: collecting takes a third of their time
    from ppar_dist.training import rank_job

    gc.freeze()  # collections while training skip these objects
    gc.enable()
    return rank_job.run(settings, preemption, accept_changes, count_images, parent)


def _pinned_classes(settings: Config) -> list[str]:
    """A file of classes with its hash, so that ranks that are started later take it as it is now."""
    from ppar_dist.config.class_file import is_class_file

    classes = settings.data.classes
    return [f"data.classes={json.dumps(classes)}"] if is_class_file(classes) else []


def _start(
    settings: Config, arguments: Sequence[str], nproc: int | None, machines: Nodes, launcher: Launcher
) -> int | None:
    """Refuse what cannot work, once rather than on every rank; then start the ranks.

    Returns:
        The job's exit code; None where this process is to train alone.
    """
    from ppar_dist.checkpoint import checkpoint_name
    from ppar_dist.launch.front import default_ranks, launch
    from ppar_dist.run.facts import finished
    from ppar_dist.trackers.all_trackers import refuse_missing
    from ppar_dist.training.plan import make_plan

    last = finished(settings, lambda: make_plan(settings, 1).facts())  # torch is not loaded
    if last and _is_sent(settings, last):
        all_steps = last == checkpoint_name(settings.train.steps)
        how = f"has all {settings.train.steps} steps" if all_steps else "has stopped early"
        print(f"already finished: {settings.run.dir} {how} ({last})")
        if machines.rank == 0:
            _send_results(settings)
        return exit_codes.DONE
    ranks = default_ranks(settings.engine.device) if nproc is None else nproc
    make_plan(settings, ranks * machines.count)
    refuse_missing(settings)
    if settings.data.workers:
        from ppar_dist.data.workers import check_temporary_folder  # loads torch

        check_temporary_folder()
    if ranks * machines.count == 1:
        return None
    return launch(arguments, ranks, launcher, settings.faults.grace_s, machines, settings.engine.device)


@app.command
def sweep(
    grid: Path,
    /,
    *,
    out: Path | None = None,
    run: bool = False,
    slurm: Path | None = None,
    jobs: int | None = None,
    nproc: int | None = None,
    as_json: Json = False,
    as_csv: Annotated[bool, Parameter(name="--csv", help="print CSV")] = False,
) -> int:
    """Train variants × values × seeds of one file, and print the table of what they score.

    Without --run and --slurm: check and write the configurations, and print the table of finished runs.

    Args:
        grid: YAML file of the sweep
        out: folder of its runs (default: sweeps/ and the file's name)
        run: train here what is not finished; a finished run is not run again
        slurm: write a Slurm array of what is not finished, each task by this script (jobs/slurm_ppar.sh)
        jobs: runs at a time (default: here 1, under Slurm all)
        nproc: ranks of each run here (default: as train)
    """
    from ppar_dist.sweep.grid import plan_runs, write_configs
    from ppar_dist.sweep.running import run_all
    from ppar_dist.sweep.slurm import write_array
    from ppar_dist.sweep.table import make_table, scores_of

    refuse_below_1("--jobs", jobs)
    refuse_below_1("--nproc", nproc)
    if run and slurm is not None:
        raise UserError("--run trains here and --slurm elsewhere; give one of them")
    if nproc is not None and not run:
        raise UserError("--nproc is of runs that --run trains here; add it, or leave --nproc out")
    if jobs is not None and not run and slurm is None:
        raise UserError("--jobs is of runs that --run or --slurm starts; add one, or leave --jobs out")
    folder = Path("sweeps") / grid.stem if out is None else out
    planned = plan_runs(grid, folder, _check_data if run else lambda settings: None)
    write_configs(planned)
    left, code = [each for each in planned if scores_of(each.config) is None], exit_codes.DONE
    if run:
        code = run_all(left, jobs or 1, nproc, lambda line: print(line, file=sys.stderr, flush=True))
    if slurm is not None and left:
        print(f"sbatch {write_array(left, folder, slurm, jobs)}", file=sys.stderr)
    table = make_table(planned)
    print(table.to_json() if as_json else table.to_csv().rstrip() if as_csv else table.text())
    return code


def _check_data(settings: Config) -> None:
    """What ``train`` refuses before it starts any rank."""
    from ppar_dist.trackers.all_trackers import refuse_missing
    from ppar_dist.training.plan import make_plan

    make_plan(_with_weights(settings), 1)
    refuse_missing(settings)


@app.command
def config(config: ConfigFile, /, *overrides: Override, get: list[str] | None = None) -> None:
    """Print the whole configuration as it would be used; with ``list``, those of the package.

    Args:
        get: print only this key, as KEY=VALUE; may be repeated
    """
    from ppar_dist.config.load import dump_config, load_config, packaged_configs, value_of

    if str(config) == "list" and not config.is_file():
        width = max(map(len, packaged_configs()))
        print(*(f"{name:{width}}  {line}" for name, line in packaged_configs().items()), sep="\n")
        return
    resolved = load_config(config, overrides)
    if not get:
        print(dump_config(resolved), end="")
    for key in get or []:
        print(f"{key}={value_of(resolved, key)}")


@app.command
def doctor(
    path: Annotated[Path, Parameter(name="CONFIG|RUN")],
    /,
    *overrides: Override,
    nproc: Whole | None = None,
    nodes: Whole | None = None,
    gpus_per_node: Whole | None = None,
    cores_per_node: Whole | None = None,
    network_gbps: float | None = None,
    storage_gbps: float | None = None,
    mtbf_days: float | None = None,
    quick: bool = False,
    read_all: Annotated[bool, Parameter(name="--all")] = False,
    device: str | None = None,
    as_json: Json = False,
) -> int:
    """Check a configuration before a job starts, or the health of a run's folder.

    Args:
        path: a configuration, or a run's folder
        nproc: ranks on each machine (default: as train)
        nodes: machines; also predict what the job reaches on them, without any
        gpus_per_node: GPUs of each, where this machine is none of them (default: --nproc)
        cores_per_node: cores of each (default: as here, else 14 for each GPU)
        network_gbps: Gbit/s from a machine to the others (default: 400, without GPUs 10)
        storage_gbps: Gbit/s at which a machine reads and writes (default: measured here)
        mtbf_days: mean days between two failures of a machine (default: 42)
        quick: compare sizes of shards instead of their hashes
        read_all: hash all shards (default: of more than 32 GiB a sample, which the report tells)
        device: also tell what the job needs of its GPUs, without any: cuda (those here, else H100), or a name
    """
    from ppar_dist.doctor.cluster import Cluster
    from ppar_dist.doctor.findings import Status

    refuse_below_1("--nproc", nproc)
    cluster = Cluster(nodes, gpus_per_node, cores_per_node, network_gbps, storage_gbps, mtbf_days)
    cluster.check()
    if nproc is not None and gpus_per_node is not None:
        raise UserError(
            f"--nproc is for machines like this one, --gpus-per-node for others, got {nproc} and "
            f"{gpus_per_node}; give one of them"
        )
    if path.is_dir() and not _is_packaged(path):
        options = {"--device": device is not None, "--nproc": nproc is not None}
        options |= {"--quick": quick, "--all": read_all}
        given = [name for name, is_given in options.items() if is_given]
        report = _health(path, [*overrides, *given, *cluster.given])
    else:
        from ppar_dist.doctor.job import examine_config

        subject, ranks = " ".join([str(path), *overrides]), nproc or _usual_ranks(path, overrides)
        load, machines = partial(_load, path, overrides), None if nodes is None else cluster
        report = examine_config(
            subject, load, ranks, nodes or 1, quick, show_progress, device, machines, read_all
        )
    width = shutil.get_terminal_size((110, 24)).columns if sys.stdout.isatty() else 110
    print(json.dumps(report.to_dict(), indent=1) if as_json else "\n".join(report.lines(width)))
    return exit_codes.CONFIG if report.status == Status.FAILURE else exit_codes.DONE


def _health(run: Path, given: Sequence[str]) -> Diagnosis:
    """Examine a run; what was given besides it is of configurations, and refused."""
    from ppar_dist.doctor.runs import examine_run

    if given:
        raise UserError(f"{run} is a run; {given[0]} has no effect on it, leave it out")
    return examine_run(run)


def _usual_ranks(path: Path, overrides: Sequence[str]) -> int:
    """As train starts them; one where that refuses, which the report tells."""
    from ppar_dist.config.load import load_config
    from ppar_dist.launch.front import default_ranks

    with contextlib.suppress(UserError):
        return default_ranks(load_config(path, overrides).engine.device)
    return 1


def _is_packaged(folder: Path) -> bool:
    """Whether a folder that is not a run has the name of a packaged configuration, as the demo's has."""
    from ppar_dist.config.load import find_config
    from ppar_dist.run import paths

    return not paths.config_file(folder).is_file() and find_config(folder) != folder


def _is_sent(settings: Config, last: str) -> bool:
    """Whether a finished run's remote, if it has one, was sent the last checkpoint; else ranks send it."""
    from ppar_dist.checkpoint.owner import noted_owner

    noted = None if settings.checkpoint.remote is None else noted_owner(settings.run.dir)
    step = None if noted is None else noted.safe
    return settings.checkpoint.remote is None or last == f"step-{step or 0:08d}"


def _send_results(settings: Config) -> None:
    """Send a finished run's remote, if it has one, the scores and report that could not be sent before."""
    from ppar_dist.checkpoint.owner import noted_owner
    from ppar_dist.run.mirror import send_results

    noted = None if settings.checkpoint.remote is None else noted_owner(settings.run.dir)
    if noted is not None and not noted.results:
        send_results(settings)


def _load(path: Path, overrides: Sequence[str]) -> Config:
    """The configuration, its files of weights looked up in $PPAR_WEIGHTS too."""
    from ppar_dist.config.load import load_config

    return _with_weights(load_config(path, overrides))


def _with_weights(settings: Config) -> Config:
    from ppar_dist.config.weights import fetch_weights, find_weights

    folder = os.environ.get("PPAR_WEIGHTS")
    settings = find_weights(settings, Path(folder)) if folder else settings
    return fetch_weights(settings, lambda place: _fetched(settings, place))


def _fetched(settings: Config, place: Remote) -> Path:
    """The file of this node that holds an object."""
    from ppar_dist.data.sources import node_storage

    try:
        return node_storage(settings).fetched(place)
    except FileNotFoundError:
        raise UserError(f"there is no {place}; correct text.file or model.backbone.pretrained") from None


@app.command(help_flags=(), version_flags=())
def health(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True, help="see its own help")]) -> int:
    """Ask the ranks on this machine whether they advance."""
    return health_check.main(arguments)


@app.command
def demo(*, out: Path = Path("demo"), config: ConfigFile = Path("demo"), nproc: int | None = None) -> int:
    """Render data, train on it, evaluate and report.

    Args:
        out: folder for the data and the run
        nproc: ranks (default: one per GPU, else 2)
    """
    from ppar_dist.cli.demo import demo
    from ppar_dist.launch.environment import settle

    refuse_below_1("--nproc", nproc)
    settle(os.environ, nproc or 2)
    return demo(out, config, nproc)
