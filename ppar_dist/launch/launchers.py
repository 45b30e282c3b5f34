"""The command lines with which DeepSpeed's launcher and torchrun start the ranks of one machine."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Literal

from ppar_dist.launch.nodes import Nodes

Launcher = Literal["deepspeed", "torchrun"]
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def deepspeed(ranks: int, nodes: Nodes) -> list[str]:
    """DeepSpeed's launcher on this machine.

    Its runner (the ``deepspeed`` command, also with ``--no_ssh``) would only encode the machines and start
    this launcher; it costs another import of torch, ignores which GPUs a scheduler assigned, and a SIGTERM
    ends it but not its children.
    """
    machines = {f"node-{rank}": list(range(ranks)) for rank in range(nodes.count)}
    world = machines | {f"node-{nodes.rank}": visible_devices(ranks, os.environ)}
    return [
        *(sys.executable, "-m", "deepspeed.launcher.launch"),
        f"--world_info={base64.urlsafe_b64encode(json.dumps(world).encode()).decode()}",
        f"--node_rank={nodes.rank}",
        f"--master_addr={nodes.host}",
        f"--master_port={nodes.port}",
        "--no_local_rank",
        *("--log_level", "warning"),
        "--module",
    ]


def torchrun(ranks: int, nodes: Nodes) -> list[str]:
    """Torchrun on this machine; it uses the GPUs that a scheduler assigned."""
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", str(nodes.count), "--node-rank", str(nodes.rank)),
        *("--nproc-per-node", str(ranks)),
        *("--master-addr", nodes.host, "--master-port", str(nodes.port)),
        "--module",
    ]


def visible_devices(ranks: int, environment: Mapping[str, str]) -> list[int | str]:
    """The GPUs of this machine's ``ranks``: the first of those that a scheduler made visible.

    By number or UUID, as the scheduler names them; DeepSpeed's launcher sets CUDA_VISIBLE_DEVICES to these.
    """
    given = [name.strip() for name in environment.get(_VISIBLE, "").split(",") if name.strip()]
    return [*given[:ranks]] if len(given) >= ranks else list(range(ranks))


COMMANDS: dict[Launcher, Callable[[int, Nodes], list[str]]] = {"deepspeed": deepspeed, "torchrun": torchrun}
