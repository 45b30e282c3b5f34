"""Pre-flight checks: all checks of a configuration on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    storage,
    trackers,
)
from ppar_dist.doctor.case import ConfigCase, Progress
from ppar_dist.doctor.cluster import Cluster
from ppar_dist.doctor.findings import Check, Diagnosis, Result, run_checks
from ppar_dist.errors import UserError


def examine_config(
    subject: str,
    load: Callable[[], Config],
    ranks: int,
    nodes: int = 1,
    quick: bool = False,
    progress: Progress | None = None,
    device_name: str | None = None,
    cluster: Cluster | None = None,
    read_all: bool = False,
) -> Diagnosis:
    """Run every check of a configuration on this machine.

    Probe files in ``run.dir`` are deleted again, and the data is only read.

    Args:
        subject: its name in the diagnosis.
        load: reads the configuration; its UserError becomes a finding.
        ranks: ranks on this machine.
        nodes: machines like this one.
        quick: compare sizes instead of hashes of shards, and write a smaller probe.
        progress: called with (what, done, in all) during long work.
        device_name: also tell what the job needs of GPUs of this name; None: do not.
        cluster: also tell what the job reaches on such machines; None: do not.
        read_all: hash all shards, however many bytes they have.

    Raises:
        UserError: no GPU has that name.
    """
    groups: tuple[tuple[str, Sequence[Check[ConfigCase]]], ...] = _GROUPS
    if device_name is not None:
        from ppar_dist.doctor import device  # loads what no other check needs

        device.check_device(device_name)
        groups += (("Device", device.CHECKS),)
    if cluster is not None:
        from ppar_dist.doctor import many_machines  # as above

        groups += (("Many machines", many_machines.CHECKS),)
    try:
        config = load()
    except UserError as error:
        refused = Result("Configuration", "configuration", configuration.refusal(str(error)))
        return Diagnosis(subject, (refused,))
    case = ConfigCase(config, ranks, nodes, quick, device_name, read_all=read_all, cluster=cluster)
    if progress is not None:
        case.progress = progress
    return run_checks(subject, groups, case)


_GROUPS = (
    ("Configuration", configuration.CHECKS),
    ("Data", (*data.CHECKS, *overlap.CHECKS, *classes.CHECKS)),
    ("Batch and budget", budget.CHECKS),
    ("Storage", storage.CHECKS),
    ("Resume", resume.CHECKS),
    ("Machine", (*machine.CHECKS, *ports.CHECKS, *trackers.CHECKS)),
)
