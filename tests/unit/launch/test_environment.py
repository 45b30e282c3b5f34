"""What the environment says of ranks is believed as a whole, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from ppar_dist.errors import UserError
from ppar_dist.launch.environment import described, settle
from ppar_dist.launch.nodes import Nodes

SET = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29511"}
TORCHRUN = SET | {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "x",
}
POD = SET | {"RANK": "1", "WORLD_SIZE": "2"}
TRAINJOB = {
    **{"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "auto"},
    **{"PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29400"},
}
PET = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "2", "PET_MASTER_ADDR": "10.0.0.1"}


def test_nothing_is_a_command_that_starts_ranks() -> None:
    variables = {"HOME": "/x", "MASTER_ADDR": "10.0.0.1"}
    assert settle(variables, 2) is None
    assert variables == {"HOME": "/x", "MASTER_ADDR": "10.0.0.1"}


def test_a_launchers_rank_is_believed_and_sees_no_mpi() -> None:
    variables = TORCHRUN | {"OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "3"}
    assert settle(variables) is None
    assert variables == TORCHRUN
    assert settle(dict(TORCHRUN), nproc=2) is None, "the option says what torchrun did"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            "here is WORLD_SIZE=2 without RANK, MASTER_ADDR, MASTER_PORT; unset WORLD_SIZE, or",
        ),
        ({"RANK": "0"}, "here is RANK=0 without WORLD_SIZE, MASTER_ADDR, MASTER_PORT; unset RANK, or"),
        ({"LOCAL_RANK": "0"}, "here is LOCAL_RANK=0 without RANK, .*; unset LOCAL_RANK, or"),
        ({k: v for k, v in SET.items() if k != "MASTER_PORT"}, "without MASTER_PORT; unset RANK WORLD_SIZE"),
        (SET | {"MASTER_ADDR": ""}, "without MASTER_ADDR"),
        (SET | {"RANK": "one"}, "RANK is a number from 0 to WORLD_SIZE - 1, got RANK=one, WORLD_SIZE=1"),
        (SET | {"RANK": "1"}, "got RANK=1, WORLD_SIZE=1; unset RANK WORLD_SIZE"),
        (SET | {"RANK": "-1"}, "got RANK=-1"),
        (SET | {"WORLD_SIZE": "0"}, "WORLD_SIZE is a number from 1 to"),
        (SET | {"MASTER_PORT": "70000"}, "MASTER_PORT is a number from 1 to 65535, got .70000."),
        (SET | {"LOCAL_RANK": "1"}, "LOCAL_RANK is a number from 0"),
        (
            TORCHRUN | {"LOCAL_WORLD_SIZE": "x"},
            "LOCAL_WORLD_SIZE is a number above LOCAL_RANK and .*=x, WORLD",
        ),
        (
            TORCHRUN | {"LOCAL_WORLD_SIZE": "99"},
            "at most WORLD_SIZE, got LOCAL_RANK=1, LOCAL_WORLD_SIZE=99, ",
        ),
        (
            TORCHRUN | {"LOCAL_RANK": "2"},
            "got LOCAL_RANK=2, LOCAL_WORLD_SIZE=2, WORLD_SIZE=4; unset RANK LOCAL",
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "2"},
            "OMPI_COMM_WORLD_SIZE=2 says that 2 copies of this command were started",
        ),
        (
            {"PMI_SIZE": "4", "PMI_RANK": "1"},
            "PMI_SIZE=4 .*--nproc, --nodes, --node-rank and --master, or unset PMI_SIZE",
        ),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, "SLURM_STEP_NUM_TASKS=2"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK=1 says that 2 copies of this command were started"),
        (SET | {"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2 says that 2 copies"),
        (
            POD | PET | {"WORLD_SIZE": "3", "PET_NPROC_PER_NODE": "1"},
            "which machine .*RANK=1, WORLD_SIZE=3, PET_",
        ),
        (
            POD | PET | {"PET_NODE_RANK": "0", "PET_NPROC_PER_NODE": "1"},
            "PET_NODE_RANK=0.*; give --nodes, --node-r",
        ),
        (POD | {"PET_NNODES": "1:4"}, "which machine of how many .*PET_NNODES=1:4; give --nodes"),
        (
            {"PET_NNODES": "1:4", "PET_RDZV_ENDPOINT": "w-0:1"},
            "PET_NNODES=1:4, PET_RDZV_ENDPOINT=w-0:1; start",
        ),
        (
            TRAINJOB | {"PET_NODE_RANK": "2"},
            "not which this is: PET_NNODES=2, PET_NODE_RANK=2, PET_MASTER_ADDR",
        ),
        (TRAINJOB | {"PET_NPROC_PER_NODE": "8"}, "PET_NPROC_PER_NODE=8 asks for 8 ranks .*; add --nproc 8"),
        (
            SET | PET | {"WORLD_SIZE": "2"},
            "WORLD_SIZE=2, PET_NPROC_PER_NODE=2 asks for 2 ranks on this machine",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        settle(dict(variables))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"nproc": 4}, {"nodes": 2}, {"node_rank": 1}, {"master": "a:1"}])
def test_a_rank_starts_no_ranks(options: dict) -> None:
    with pytest.raises(
        UserError, match=r"starts ranks, but RANK=3, .*LOCAL_WORLD_SIZE=2 says that this is one"
    ):
        settle(dict(TORCHRUN), **options)


@pytest.mark.parametrize(
    "variables",
    [
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0"},
        {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "old", "GROUP_RANK": "0"},
        {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "8"},
        {"PET_NNODES": "1", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "a", "PET_MASTER_PORT": "29400"},
    ],
)
def test_remains_of_others_are_forgotten(variables: dict[str, str]) -> None:
    settle(variables, 2)
    assert variables == {}


def test_slurm_is_left_alone_but_for_copies() -> None:
    allocation = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}
    step = allocation | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    for variables, nodes in ((allocation, None), (step, 2)):
        kept = dict(variables)
        assert settle(kept, 1, nodes) is None
        assert kept == variables
    with pytest.raises(UserError, match="SLURM_STEP_NUM_TASKS=2 says"):
        settle(dict(step), 1, nodes=1)


def test_ranks_may_be_as_many_copies_as_they_are() -> None:
    """As where a script under mpirun or srun names each process a rank."""
    variables = POD | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"}
    assert settle(variables) is None
    assert variables == POD


def test_a_pod_is_one_rank_by_itself() -> None:
    variables = dict(POD)
    assert settle(variables) is None
    assert variables == POD


@pytest.mark.parametrize("pet", [{}, PET])
def test_a_pod_with_nproc_is_a_machine(pet: dict[str, str]) -> None:
    variables = POD | pet | {"WORLD_SIZE": "4" if pet else "2"}
    assert settle(variables, nproc=2) == Nodes(2, 1, "10.0.0.1", 29511)
    assert variables == {}, "its launcher must not read them"


@pytest.mark.parametrize("nproc", [None, 2])
def test_a_pod_without_a_set_is_a_machine_to_torchrun_and_here(nproc: int | None) -> None:
    variables = dict(TRAINJOB)
    assert settle(variables, nproc) == Nodes(2, 1, "job-node-0-0.job", 29400)
    assert variables == {}


def test_a_pod_keeps_nothing_of_torchrun() -> None:
    """A store that no agent keeps would be waited for."""
    variables = POD | {"TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_WORLD_SIZE": "4"}
    assert settle(variables) is None
    assert variables == POD


def test_the_command_line_wins_over_a_lonely_pod() -> None:
    variables = dict(SET)
    machines = settle(variables, nproc=2)
    assert machines is not None
    assert (machines.count, machines.rank, machines.host) == (1, 0, "127.0.0.1")
    assert variables == {}
    for options in ({"nodes": 3, "master": "b:1"}, {"nodes": 1}, {"node_rank": 1}):
        variables = dict(SET)
        assert settle(variables, 2, **options) is None, "the machines are those of the command line"
        assert variables == {}
    for variables in (dict(POD), POD | {"WORLD_SIZE": "4"}):  # counts machines, or their ranks
        assert settle(variables, 2, nodes=2, node_rank=1, master="b:1") is None
        assert variables == {}


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        (POD, {"node_rank": 0}, "--node-rank 0 is not what RANK=1, WORLD_SIZE=2 says of this machine"),
        (POD, {"nodes": 1}, "--nodes 1 is not what RANK=1, WORLD_SIZE=2 says .* or unset RANK WORLD_SIZE"),
        (POD, {"nodes": 3, "node_rank": 1, "master": "b:1"}, "--nodes 3 is not"),
        (
            POD | PET | {"WORLD_SIZE": "4"},
            {"nproc": 1},
            "asks for 2 ranks .* the command for 1; give --nproc 2",
        ),
        (TRAINJOB | {"PET_NPROC_PER_NODE": "2"}, {"nproc": 1}, "the command for 1; give --nproc 2"),
    ],
)
def test_a_command_line_of_other_ranks_is_refused(
    variables: dict[str, str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        settle(dict(variables), **options)


def test_description() -> None:
    assert described({"HOME": "x"}) == "nothing of ranks"
    assert described(POD | {"HOME": "x"}).startswith("RANK=1, WORLD_SIZE=2, MASTER_ADDR=10.0.0.1")
