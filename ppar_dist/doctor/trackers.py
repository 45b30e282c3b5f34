"""Where the figures of a run go besides its own files, and whether they get there."""

from __future__ import annotations

from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.findings import Check, Finding, failure, ok
from ppar_dist.errors import UserError
from ppar_dist.trackers.all_trackers import refuse_missing


def trackers(case: ConfigCase) -> Finding:
    """The trackers that are switched on are installed, and know where to send."""
    names = list(dict.fromkeys(case.config.monitoring.trackers))
    if not names:
        return ok("monitoring.trackers is empty: figures go to the run's own files alone", trackers=names)
    try:
        refuse_missing(case.config)
    except UserError as error:
        found, separator, remedy = str(error).partition(": ")
        return failure(found, remedy if separator else "leave it out", trackers=names)
    return ok(f"{', '.join(names)}: installed, and rank 0 writes to them", trackers=names)


CHECKS = (Check("trackers", trackers),)
