"""What would go wrong, said beforehand: checks of a configuration on this machine, and of a run's folder.

::

    report.py         findings, checks, how they are told
    case.py           what the checks of a configuration share
    configuration.py  model, weights, text embeddings
    data.py           domains, shards
    overlap.py        samples in common
    classes.py        what the labels hold
    budget.py         batch, epochs, stages
    storage.py        run.dir: writing, space, time of a save
    probes.py         what storage is measured with
    resume.py         the checkpoint that a job would go on from
    machine.py        devices, memory, limits
    ports.py          ports to listen on
    runs.py           a run's folder

A check is a function in the file of its subject, listed in that file's ``CHECKS``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ppar_dist.config.schema import Config
from ppar_dist.doctor import (
    budget,
    classes,
    configuration,
    data,
    machine,
    overlap,
    ports,
    resume,
    runs,
    storage,
)
from ppar_dist.doctor.case import ConfigCase, Progress
from ppar_dist.doctor.findings import Report, Result, Status, run_checks
from ppar_dist.errors import UserError

__all__ = ["Report", "Status", "examine_config", "examine_run"]


def examine_config(
    subject: str,
    load: Callable[[], Config],
    ranks: int,
    nodes: int = 1,
    quick: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Make every check of a configuration on this machine.

    Nothing is left behind in ``run.dir``, and the data is only read.

    Args:
        subject: what the report calls it.
        load: reads the configuration; its UserError becomes a finding.
        ranks: ranks on this machine.
        nodes: machines like this one.
        quick: compare sizes instead of hashes of shards, and write a smaller probe.
        progress: called with (what, done, in all) during long work.
    """
    try:
        config = load()
    except UserError as error:
        refused = Result("Configuration", "configuration", configuration.refusal(str(error)))
        return Report(subject, (refused,))
    case = ConfigCase(config, ranks, nodes, quick)
    if progress is not None:
        case.progress = progress
    return run_checks(subject, _GROUPS, case)


def examine_run(path: Path) -> Report:
    """Make every check of a run's folder; it is only read."""
    return run_checks(str(path), [("Run", runs.CHECKS)], runs.RunCase(path))


_GROUPS = (
    ("Configuration", configuration.CHECKS),
    ("Data", (*data.CHECKS, *overlap.CHECKS, *classes.CHECKS)),
    ("Batch and budget", budget.CHECKS),
    ("Storage", storage.CHECKS),
    ("Resume", resume.CHECKS),
    ("Machine", (*machine.CHECKS, *ports.CHECKS)),
)
