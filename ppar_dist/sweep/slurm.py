"""The batch script of a sweep: a Slurm array with a task for each run, which is the single job's script."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ppar_dist.errors import UserError
from ppar_dist.files.durable import write_atomically
from ppar_dist.sweep.grid import Planned

_OWN = ("--job-name", "--output", "--array")  # options of the single job that an array sets for itself


def write_array(planned: Sequence[Planned], out: Path, script: Path, jobs: int | None) -> Path:
    """Write ``OUT/sweep.sh`` for runs that are not finished.

    Args:
        planned: the runs, whose configurations are written.
        out: folder of the sweep.
        script: jobs/slurm_ppar.sh, whose #SBATCH options each task gets.
        jobs: so many tasks at a time; None: as many as Slurm starts.

    Raises:
        UserError: the script cannot be read.
    """
    try:
        lines = script.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"cannot read --slurm {script}: {error.strerror}; give the path of jobs/slurm_ppar.sh"
        ) from None
    kept = [line for line in lines if line.startswith("#SBATCH") and not any(each in line for each in _OWN)]
    most = "" if jobs is None else f"%{jobs}"
    logs = out.resolve() / "logs"
    text = [
        "#!/usr/bin/env bash",
        f"# {len(planned)} runs; made by ppar-dist sweep. Options of sbatch go before this file's name.",
        f"#SBATCH --job-name={out.resolve().name}",
        f"#SBATCH --array=0-{len(planned) - 1}{most}",
        f"#SBATCH --output={str(logs).replace('%', '%%')}/slurm-%A_%a.log",
        *kept,
        "configs=(",
        *(f"  {shlex.quote(str(run.file.resolve()))}" for run in planned),
        ")",
        f'exec bash {shlex.quote(str(script.resolve()))} "${{configs[$SLURM_ARRAY_TASK_ID]}}"',
    ]
    file = out / "sweep.sh"
    write_atomically(file, "\n".join(text) + "\n")
    return file
