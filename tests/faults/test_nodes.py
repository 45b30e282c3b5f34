"""A job of two machines: the same command on each, here both on this one."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.jobs import Job, all_gone, job, ours, sabotaged, tiny_run
from tests.ranks import free_port, read_lines
from tests.sabotage.pace import Pace

SECTIONS = {
    "train": {"steps": 40, "global_batch": 4, "log_every": 1},
    "checkpoint": {"every": 20},
    "faults": {"stall_s": 120.0, "peer_s": 20.0},
}


def start(stack: ExitStack, config: str, logs: Path, launcher: str, *sabotages: str) -> list[Job]:
    """The two parts of a job of one rank on each of two machines."""
    master = f"127.0.0.1:{free_port()}"
    logs.mkdir()
    return [
        stack.enter_context(
            job(
                sabotaged(
                    *(*sabotages, "train", config, "--nproc", "1", "--nodes", "2", "--node-rank", str(node)),
                    *("--master", master, "--launcher", launcher),
                ),
                logs / f"node-{node}.log",
            )
        )
        for node in range(2)
    ]


def losses(run: Path) -> list[float]:
    return [record["loss/total"] for record in read_lines(run / "metrics" / "train.jsonl")]


def test_two_machines_stop_and_go_on_together_and_compute_what_one_does(blocks: Path, tmp_path: Path) -> None:
    alone, config = tiny_run(blocks, tmp_path / "one", **SECTIONS)
    with job(ours("train", config, "--nproc", "2"), tmp_path / "one.log") as whole:
        assert whole.wait() == 0, whole.output
    run, config = tiny_run(blocks, tmp_path / "two", **SECTIONS)
    with ExitStack() as stack:
        hold = Pace(tmp_path / "hold", step=5, seconds=1)  # the machine that is not asked goes on with them
        parts = start(stack, config, tmp_path / "first", "deepspeed", hold.hold)
        parts[0].wait_for_step(run, 5)
        pids = [process.pid for part in parts for process in part.family()]
        parts[1].process.send_signal(signal.SIGTERM)  # one machine is drained; the other has to end with it
        assert [part.wait() for part in parts] == [75, 75], [part.output for part in parts]
        assert all_gone(pids)
    assert "batch: global 4 = 2 ranks x 1 micro-batches x 2" in parts[0].output
    with ExitStack() as stack:
        parts = start(stack, config, tmp_path / "second", "torchrun")
        assert [part.wait() for part in parts] == [0, 0], [part.output for part in parts]
    assert "resumed from" in parts[0].output
    assert losses(run) == losses(alone)


def pod(number: int, pods: int, port: int) -> dict[str, str]:
    """What a PyTorchJob sets in a pod."""
    return {
        **{
            "RANK": str(number),
            "WORLD_SIZE": str(pods),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        },
        **{"PET_NNODES": str(pods), "PET_NODE_RANK": str(number)},
    }


def pod_of_a_trainjob(number: int, pods: int, port: int) -> dict[str, str]:
    """What a TrainJob sets in a pod: torchrun's options."""
    return {
        **{"PET_NNODES": str(pods), "PET_NODE_RANK": str(number), "PET_NPROC_PER_NODE": "auto"},
        **{"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)},
    }


@pytest.mark.parametrize(
    ("of", "options"),
    [(pod, ()), (pod, ("--nproc", "1")), (pod_of_a_trainjob, ("--launcher", "torchrun"))],
    ids=["a rank each", "a machine each", "a machine each of a TrainJob"],
)
def test_two_pods_of_a_job_compute_what_one_machine_does(
    blocks: Path, tmp_path: Path, of: Callable[[int, int, int], dict[str, str]], options: tuple[str, ...]
) -> None:
    sections = SECTIONS | {"train": {"steps": 6, "global_batch": 4, "log_every": 1}}
    alone, config = tiny_run(blocks, tmp_path / "one", **sections)
    lonely = of(0, 1, free_port())
    with job(ours("train", config, "--nproc", "2"), tmp_path / "one.log", **lonely) as whole:
        assert whole.wait() == 0, whole.output
    assert "batch: global 4 = 2 ranks x 1 micro-batches x 2" in whole.output
    run, config = tiny_run(blocks, tmp_path / "two", **sections)
    port = free_port()
    with ExitStack() as stack:
        command = ours("train", config, *options)
        parts = [
            stack.enter_context(job(command, tmp_path / f"pod-{n}.log", **of(n, 2, port))) for n in range(2)
        ]
        assert [part.wait() for part in parts] == [0, 0], [part.output for part in parts]
    assert losses(run) == losses(alone)
