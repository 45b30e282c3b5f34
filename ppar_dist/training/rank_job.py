"""A rank's whole job: join the others, train, score, report; and the exit code that says how it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from ppar_dist import exit_codes
from ppar_dist.checkpoint import CheckpointError
from ppar_dist.config.schema import Config
from ppar_dist.data.batches import batching
from ppar_dist.data.workers import WorkerDied
from ppar_dist.distributed import environment, rendezvous
from ppar_dist.distributed.board import Board
from ppar_dist.distributed.devices import GpuFault, gpu_fault, gpu_sentence, name_of
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.evaluation.evaluate import Ranks, score
from ppar_dist.evaluation.results import Results
from ppar_dist.launch.rank import end_with_launchers, is_rank, note_exit
from ppar_dist.monitoring.monitor import Monitor
from ppar_dist.processes.proc import die_with_parent
from ppar_dist.processes.rank_log import last_words
from ppar_dist.processes.signals import Preempted, Preemption
from ppar_dist.run import paths
from ppar_dist.run.claim import RunClaim
from ppar_dist.run.lock import RunLock
from ppar_dist.run.mirror import send_results
from ppar_dist.text import visible_lines
from ppar_dist.training.plan import make_plan
from ppar_dist.training.trainer import Trainer
from ppar_dist.watchdog import OFF, Watchdog

log = logging.getLogger(__name__)

# A collective's own timeout comes last: it cannot name the rank that the others wait for, the watchdog can.
_TIMEOUT_FACTOR, _TIMEOUT_S = 2.0, 60.0
_WORTH_A_RETRY = (WorkerDied, CheckpointError, OSError)  # memory and storage are not this program's fault


def run(
    config: Config,
    preemption: Preemption,
    accept_changes: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    launcher: int | None = None,
) -> int:
    """Run this rank's job to its end; returns the exit code.

    ``progress`` is called with (target, images done, images in all) while targets are scored. ``launcher`` is
    the process id that started this rank: it may have died since.

    Raises:
        UserError: the configuration or the data cannot work; a retry would fail, too.
    """
    faults = config.faults
    world, board = _joined(config, preemption, launcher)
    if world.is_main:
        log.info("%d rank%s on %s", world.world_size, "s" * (world.world_size > 1), name_of(world.device))
    folder = paths.logs(config.run.dir)
    job = environment.scheduler_job()
    lock = RunLock(config.run.dir, faults.peer_s, f"Slurm job {job}" if job else "")
    monitor = Monitor(config, world)

    def note_end(code: int) -> None:
        note_exit(code)
        monitor.withdraw()

    with (
        monitor,
        Watchdog(world, board, faults.stall_s, faults.peer_s, folder, note_end) as watch,
        contextlib.closing(lock),
    ):
        lock.on_lost = lambda text: _give_way(watch, monitor, text)
        try:
            _train(config, world, preemption, watch, monitor, lock, accept_changes)
            results, averaged = _score(config, world, watch, progress, "raw"), None
            if config.train.weight_average is not None:
                averaged = _score(config, world, watch, progress, "averaged")
            watch.phase(OFF, config.train.steps)
            if world.is_main:
                _finish(config, results, averaged, monitor)
                monitor.linger(lambda: preemption.requested)
            code = exit_codes.DONE
        except Preempted as end:
            code = end.code
        except Exception as error:
            sentence, code = _judged(error, config, world, watch)
            if sentence is None:
                raise
            lock.close()
            monitor.withdraw()
            leave_at_once(sentence, code)
        finally:
            monitor.close_trackers()  # before another job may have the folder
    rendezvous.leave()
    return code


def _joined(config: Config, preemption: Preemption, launcher: int | None) -> tuple[World, Board]:
    """The other ranks, and the board on which they leave word; from here on a rank can be asked to end."""
    faults = config.faults
    if is_rank():
        die_with_parent(signal.SIGTERM, launcher)  # a launcher that is killed leaves no rank behind
        end_with_launchers(unless=lambda: preemption.requested)
    longest = max(faults.stall_s, faults.peer_s)  # in a phase, or waiting for run.lock
    try:
        met = rendezvous.meet(_TIMEOUT_FACTOR * longest + _TIMEOUT_S, config.engine.device)
    except rendezvous.NotMet as error:  # the next start may find all hosts and a whole network
        leave_at_once(str(error), exit_codes.RESUME)
    preemption.limit(faults.grace_s)
    return met


def _score(
    config: Config,
    world: World,
    watch: Watchdog,
    progress: Callable[[str, int, int], None] | None,
    weights: str,
) -> Results | None:
    """What the run scores on the targets that the configuration names; None without any. Collective."""
    if not config.targets:
        return None
    ranks = Ranks(world, watch.alive, lambda phase: watch.phase(phase, config.train.steps))
    ranks.enter("evaluate")
    run, device = config.run.dir, world.device
    return score(run, config.targets, device, progress=progress, ranks=ranks, weights=weights)


def _finish(config: Config, results: Results | None, averaged: Results | None, monitor: Monitor) -> None:
    """Write the report, and show what the run scores, and what the average of its weights does."""
    from ppar_dist.report import write_report  # late: only rank 0, and only at the end

    run = config.run.dir
    if results is not None and monitor.run is not None:
        for name, target in results.targets.items():
            monitor.run.publish_iou(name, target.miou, target.iou)
    if monitor.trackers is not None:
        monitor.trackers.finish(results.to_dict() if results is not None else None)
    report = write_report(run)
    for table in (results, averaged):
        if table is not None:
            print(table.table())
    print(f"report {report}")
    send_results(config)


def _judged(error: Exception, config: Config, world: World, watch: Watchdog) -> tuple[str | None, int]:
    """What to say of an error that ends this rank, and the code; the other ranks are told. None: raise it."""
    fault = gpu_fault(error)
    if fault is None and (blamed := watch.blame(error)) is not None:
        return blamed, watch.code
    text, code = f"{type(error).__name__}: {error}", code_of(error)
    if fault is not None:
        micro = batching(config, world.world_size).micro_batch
        text = gpu_sentence(error, fault, world.device, micro)
    watch.post_failure(text, code)
    if fault is not None:
        log.error("where it happened", exc_info=error)
        return f"{watch.name} fails: {text}", code
    return (str(error) if isinstance(error, _WORTH_A_RETRY) else None), code


def code_of(error: Exception) -> int:
    """The exit code of a job that ends with ``error``."""
    fault = gpu_fault(error)
    if isinstance(error, UserError) or fault in (GpuFault.MEMORY, GpuFault.UNUSABLE):
        return exit_codes.CONFIG
    if fault is GpuFault.HARDWARE:
        return exit_codes.RESUME
    return exit_codes.RESUME if isinstance(error, _WORTH_A_RETRY) else exit_codes.INTERNAL


def _give_way(watch: Watchdog, monitor: Monitor, sentence: str) -> NoReturn:
    """End this job: another one took this one for dead and holds the run's folder."""
    monitor.withdraw()
    watch.post_failure(sentence, exit_codes.CONFIG)
    leave_at_once(sentence, exit_codes.CONFIG)


def leave_at_once(sentence: str, code: int) -> NoReturn:
    """Say why, and end; cleaning up the process group would mean waiting for ranks that have ended."""
    last_words(f"ppar-dist: {visible_lines(sentence)}")
    with contextlib.suppress(OSError):  # as in last_words
        sys.stdout.flush()
    logging.shutdown()
    note_exit(code)
    os._exit(code)


def _train(
    config: Config,
    world: World,
    preemption: Preemption,
    watch: Watchdog,
    monitor: Monitor,
    lock: RunLock,
    accept_changes: bool = False,
) -> None:
    """Train ``config`` on this rank, from the start or from the newest checkpoint, to the last step.

    ``monitor`` is opened for it, and left open: what follows the training is shown too.

    Raises:
        UserError: the configuration cannot work with this data, run folder or number of ranks.
        Preempted: the run was asked to stop, and has saved a checkpoint.
        CheckpointError: the last checkpoint could not be written.
    """
    watch.phase("start", 0)
    plan = make_plan(config, world.world_size)
    # Closed whatever happens: a start that is refused must not keep the remote from the next one.
    with contextlib.closing(RunClaim(plan.config, world, lock, plan.classes)) as claim:
        claim.claim(accept_changes, watch.alive)
        trainer = Trainer(plan, world, claim, preemption, watch, monitor)
        try:
            trainer.fit()
        finally:
            trainer.close()
