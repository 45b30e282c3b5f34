"""A rank's part of an evaluation that several ranks share: join the others, score, leave."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppar_dist import exit_codes
from ppar_dist.config.schema import FaultsConfig
from ppar_dist.distributed import rendezvous
from ppar_dist.errors import UserError
from ppar_dist.evaluation.evaluate import Ranks, score
from ppar_dist.evaluation.results import Results
from ppar_dist.launch.rank import end_with_launchers, note_exit, note_start
from ppar_dist.processes.proc import die_with_parent
from ppar_dist.storage.location import Location
from ppar_dist.training.rank_job import leave_at_once
from ppar_dist.watchdog import OFF, Watchdog


def score_rank(
    path: Path,
    targets: Mapping[str, Location],
    which: str,
    progress: Callable[[str, int, int], None],
    options: Mapping[str, Any],
    weights: str = "raw",
) -> Results | None:
    """``score`` on the ranks that a launcher started; the results on rank 0, None on the others.

    A rank that hangs, dies or fails ends all, as in training.

    Raises:
        UserError: as ``score`` does, or the ranks did not meet.
    """
    die_with_parent(signal.SIGTERM, note_start())
    end_with_launchers(unless=lambda: False)
    faults = FaultsConfig()
    try:
        world, board = rendezvous.meet(2 * faults.stall_s)
    except rendezvous.NotMet as error:
        raise UserError(str(error)) from None
    folder = Path(tempfile.gettempdir())  # a checkpoint alone has no folder for logs
    with Watchdog(world, board, faults.stall_s, faults.peer_s, folder, note_exit) as watch:
        ranks = Ranks(world, watch.alive, lambda phase: watch.phase(phase, 0))
        ranks.enter("evaluate")
        try:
            results = score(path, targets, world.device, which, progress, options, ranks, weights)
        except UserError as error:
            watch.post_failure(str(error), exit_codes.CONFIG)
            raise
        except Exception as error:
            blamed = watch.blame(error)
            if blamed is None:
                raise
            leave_at_once(blamed, watch.code)
        watch.phase(OFF, 0)
    rendezvous.leave()
    return results if world.is_main else None
