"""This machine: devices, cores, memory, files and ports against what its ranks need."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from pathlib import Path

import torch

from ppar_dist.checkpoint import list_checkpoints
from ppar_dist.data.shards.reader import OPEN_SHARDS
from ppar_dist.data.workers import PREFETCH, check_temporary_folder
from ppar_dist.distributed.devices import use_cuda
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.findings import Check, Finding, counted, failure, ok, size, warning
from ppar_dist.errors import UserError
from ppar_dist.launch.environment import described, settle
from ppar_dist.training.precision import slow_bf16

_TENSORS = 5  # of a micro-batch, each a descriptor on its way from worker to rank
_OWN_FILES = 128  # descriptors of the interpreter, its libraries, logs and sockets
_SHARED = Path("/dev/shm")
_CGROUP = Path("/sys/fs/cgroup")


def devices(case: ConfigCase) -> Finding:
    """A GPU for every rank, or none at all."""
    gpus = torch.cuda.device_count() if _on_gpu(case) else 0
    facts = {"gpus": gpus, "ranks": case.ranks}
    try:
        use_cuda(case.config.engine.device, os.environ)
    except UserError as error:
        fault, _, remedy = str(error).partition("; ")
        return failure(fault, remedy, **facts)
    if 0 < gpus < case.ranks:
        return failure(
            f"{counted(case.ranks, 'rank')} on {counted(gpus, 'GPU')}: each needs one of its own",
            f"use --nproc {gpus}",
            **facts,
        )
    if not gpus and case.nodes > 1:
        return warning(
            f"no GPU: {counted(case.ranks, 'rank')} on the CPU of each machine",
            "if the job runs on other machines, run this on one of them (srun --nodes 1 ppar-dist doctor): "
            "what follows is about this one",
            **facts,
        )
    if not gpus:
        return ok(f"no GPU: {counted(case.ranks, 'rank')} on the CPU", **facts)
    names = {torch.cuda.get_device_name(number) for number in range(gpus)}
    free = min(torch.cuda.mem_get_info(number)[0] for number in range(case.ranks))
    text = f"{counted(gpus, 'GPU')} ({', '.join(sorted(names))}), at least {size(free)} of memory free"
    if gpus > case.ranks:
        return warning(
            f"{text}; {counted(case.ranks, 'rank')} leave {gpus - case.ranks} idle",
            f"use --nproc {gpus}",
            **facts,
        )
    return ok(text, **facts)


def _on_gpu(case: ConfigCase) -> bool:
    return case.config.engine.device != "cpu" and torch.cuda.is_available()


def environment(case: ConfigCase) -> Finding:
    """What the environment says of ranks, and whether a start would believe it."""
    said = described(os.environ)
    try:
        settle(dict(os.environ), case.ranks, case.nodes if case.nodes > 1 else None)
    except UserError as error:
        return failure(str(error), "correct the environment", environment=said)
    return ok(f"the environment says {said}", environment=said)


def temporary_folder(case: ConfigCase) -> Finding | None:
    """The path of the temporary folder leaves room for the sockets of loader workers."""
    if not case.config.data.workers:
        return None
    try:
        check_temporary_folder()
    except UserError as error:
        return failure(str(error), "set TMPDIR to a shorter path")
    return ok(f"temporary files go to {tempfile.gettempdir()}")


def precision(case: ConfigCase) -> Finding | None:
    """bf16 in hardware, where the configuration asks for it."""
    if case.config.engine.precision != "bf16":
        return None
    where = slow_bf16(torch.device("cuda" if _on_gpu(case) else "cpu"))
    if where is None:
        return ok("bf16 has instructions of its own here", supported=True)
    text = f"engine.precision=bf16, but {where} has no such instructions"
    remedy = "run on a machine that has them, or begin a new run with engine.precision=fp32"
    if not list_checkpoints(case.config.run.dir):
        return failure(f"{text}: training refuses to begin", remedy, supported=False)
    return warning(f"{text}: the run goes on and computes the same, much slower", remedy, supported=False)


def compiler(case: ConfigCase) -> Finding | None:
    """What torch.compile calls, where it is asked for: a C++ compiler, or on a GPU a C compiler."""
    if not case.config.engine.compile:
        return None
    named = os.environ.get("CC" if _on_gpu(case) else "CXX")
    wanted = [named] if named else (["gcc", "clang"] if _on_gpu(case) else ["g++"])
    found = next((path for name in wanted if (path := shutil.which(name))), None)
    if found is not None:
        return ok(f"engine.compile uses {found}", compiler=found)
    return failure(
        f"engine.compile needs a compiler, and there is no {' or '.join(wanted)}",
        "install one (apt-get install g++), or set engine.compile=false",
        compiler=None,
    )


def cores(case: ConfigCase) -> Finding:
    """A core for every rank and loader worker."""
    wanted, there = case.ranks * (1 + case.config.data.workers), usable_cores()
    workers = counted(case.config.data.workers, "worker")
    text = f"{counted(there, 'core')} for {counted(case.ranks, 'rank')} with {workers} each"
    facts = {"cores": there, "processes": wanted}
    if wanted > there:
        remedy = f"lower data.workers or --nproc, or ask the scheduler for {wanted} cores"
        return warning(f"{text}: {wanted} processes share them", remedy, **facts)
    return ok(text, **facts)


def memory(case: ConfigCase) -> Finding | None:
    """Memory for the ranks: processes, loaders and, without GPUs, the model; activations come on top."""
    free = available_memory()
    if free is None:
        return None
    process, workers = case.process_bytes, case.ranks * case.config.data.workers
    try:
        parameters = sum(value.numel() for value in case.segmentor.parameters())
    except UserError:
        return None  # the check of the model says why
    copies = 4 if not _on_gpu(case) else 0  # parameters, gradients, two moments
    model = 4 * parameters * copies * case.ranks
    copied = 4 * parameters * 4 if case.config.checkpoint.background else 0  # the writing thread's copy
    # Workers are forked: most of what they hold is their rank's.
    needed = process * case.ranks + process // 4 * workers + model + copied + _loader_bytes(case)
    text = (
        f"{size(free)} available; ranks, loaders and model take about {size(needed)}, activations not counted"
    )
    facts = {"available_bytes": free, "needed_bytes": needed}
    remedy = "use fewer ranks or data.workers here, or ask the scheduler for more memory"
    if needed > free:
        return failure(text, remedy, **facts)
    if needed > free / 2:
        return warning(text, remedy, **facts)
    return ok(text, **facts)


def shared_memory(case: ConfigCase) -> Finding | None:
    """Room in /dev/shm for the micro-batches that loader workers hold ready."""
    if not case.config.data.workers:
        return None  # nothing passes through it
    if not _SHARED.is_dir():
        return failure(
            f"{_SHARED} is missing, which loader workers pass batches through", "set data.workers=0"
        )
    needed, free = _loader_bytes(case), shutil.disk_usage(_SHARED).free
    text = f"{size(free)} free in {_SHARED}; loader workers hold up to {size(needed)} there"
    facts = {"free_bytes": free, "needed_bytes": needed}
    remedy = (
        "give the container more (docker --shm-size, an emptyDir of medium Memory), or lower data.workers"
    )
    if needed > free:
        return failure(text, remedy, **facts)
    if needed > free / 2:
        return warning(f"{text}: more than half of it", remedy, **facts)
    return ok(text, **facts)


def open_files(case: ConfigCase) -> Finding:
    """The limit of open files holds shards, batches on their way and the rest."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    shards = sum(min(len(domain.shards), OPEN_SHARDS) for domain in case.domains)
    needed = shards + case.config.data.workers * PREFETCH * _TENSORS + _OWN_FILES
    facts = {"limit": limit, "needed": needed}
    text = f"a process may open {limit:,} files, a rank needs up to {needed:,}"
    if 0 <= limit < needed:
        return failure(text, f"raise the limit: ulimit -n {max(4096, needed)}", **facts)
    return ok(text, **facts)


def grace(case: ConfigCase) -> Finding:
    """The grace time that the scheduler must allow; it cannot be queried from here."""
    seconds = case.config.faults.grace_s
    longer = seconds + 60  # the launcher and the node need some of it
    return ok(
        f"faults.grace_s={seconds:g}: the scheduler must wait longer between its signal and the end (SLURM: "
        f"--signal=B:USR1@{longer:.0f} with jobs/slurm_ppar.sh, TERM@{longer:.0f} with srun alone; "
        f"Kubernetes: terminationGracePeriodSeconds: {longer:.0f})",
        grace_s=seconds,
    )


def usable_cores() -> int:
    """Cores this process may use: its affinity, and a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _first_line(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def available_memory() -> int | None:
    """Bytes of memory available: of the machine, or within a container's limit; None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    entries = dict(line.split(":", 1) for line in lines)
    free = int(entries["MemAvailable"].split()[0]) * 1024
    limit, used = _first_line(_CGROUP / "memory.max"), _first_line(_CGROUP / "memory.current")
    return min(free, max(0, int(limit) - int(used))) if limit.isdigit() and used.isdigit() else free


def _loader_bytes(case: ConfigCase) -> int:
    """Bytes of all micro-batches that the workers of this machine hold ready: images and labels, uint8."""
    train, data = case.config.train, case.config.data
    local = max(1, train.global_batch // case.world_size)
    micro = case.batching.micro_batch if case.batching else min(train.micro_batch or local, local)
    return case.ranks * data.workers * PREFETCH * micro * 4 * data.crop[0] * data.crop[1]


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return ""


CHECKS = (
    Check("environment", environment),
    Check("temporary folder", temporary_folder),
    Check("devices", devices),
    Check("precision", precision),
    Check("compiler", compiler),
    Check("cores", cores),
    Check("memory", memory),
    Check("shared memory", shared_memory),
    Check("open files", open_files),
    Check("grace", grace),
)
