"""Which machines a job runs on, and the arguments of their launchers."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import pytest

from ppar_dist.errors import UserError
from ppar_dist.launch import launchers
from ppar_dist.launch.nodes import Nodes, nodes_of


def test_one_machine_meets_on_a_free_port_of_its_own() -> None:
    nodes = nodes_of(1, None, None)
    assert (nodes.count, nodes.rank, nodes.host) == (1, 0, "127.0.0.1")
    assert nodes.port > 0


@pytest.mark.parametrize(
    ("master", "host", "port"),
    [
        ("node-a", "node-a", 29500),
        ("node-a:4000", "node-a", 4000),
        ("ppar-0.ppar.lab.svc:29500", "ppar-0.ppar.lab.svc", 29500),
        ("[fd00::1]:4000", "fd00::1", 4000),
        ("[fd00::1]", "fd00::1", 29500),
    ],
)
def test_the_master_is_a_host_and_a_port(master: str, host: str, port: int) -> None:
    assert nodes_of(2, 1, master) == Nodes(2, 1, host, port)


@pytest.mark.parametrize(
    ("count", "rank", "master", "message"),
    [
        (0, 0, "a", "--nodes is at least 1, got 0"),
        (1, 1, None, "--node-rank 1 of one machine; give --nodes too"),
        (2, None, "a", "--nodes 2 needs --node-rank from 0 to 1, another on each machine, got None"),
        (2, 2, "a", "--nodes 2 needs --node-rank from 0 to 1, another on each machine, got 2"),
        (2, 0, None, "--nodes 2 needs --master HOST:PORT of the machine of --node-rank 0"),
        (2, 0, "a:", "--master is HOST or HOST:PORT, [ADDRESS]:PORT for IPv6, got 'a:'"),
        (2, 0, "a:0", "got 'a:0'"),
        (2, 0, "a:65536", "got 'a:65536'"),
        (2, 0, ":29500", "got ':29500'"),
        (2, 0, "fd00::1", "got 'fd00::1'"),
        (2, 0, "[fd00::1]x", "got '[fd00::1]x'"),
    ],
)
def test_options_that_conflict_are_refused(
    count: int, rank: int | None, master: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        nodes_of(count, rank, master)


def world_of(command: list[str]) -> dict[str, list[Any]]:
    encoded = next(word for word in command if word.startswith("--world_info=")).partition("=")[2]
    world: dict[str, list[Any]] = json.loads(base64.urlsafe_b64decode(encoded))
    return world


@pytest.mark.parametrize(
    ("visible", "taken"),
    [
        (None, [0, 1]),
        ("", [0, 1]),
        ("2,3", ["2", "3"]),
        ("5, 6,7", ["5", "6"]),
        ("GPU-8a,GPU-9b", ["GPU-8a", "GPU-9b"]),
    ],
)
def test_deepspeed_uses_the_gpus_that_a_scheduler_assigned(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, taken: list[Any]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    command = launchers.deepspeed(2, Nodes(3, 1, "node-a", 4000))
    assert world_of(command) == {"node-0": [0, 1], "node-1": taken, "node-2": [0, 1]}
    assert "--node_rank=1" in command
