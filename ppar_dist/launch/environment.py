"""What the environment says of ranks: believed as a whole, or not at all.

A process is a rank when RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are all there. With LOCAL_RANK a
launcher started it (torchrun, DeepSpeed's, ours). Without, it is alone on its machine, as in each pod of a
PyTorchJob: one rank, or with ``--nproc`` the command that starts the ranks of this machine. Pods of a
TrainJob have torchrun's options (PET_…) instead of the set, and are machines, too. Refused are a part of the
set, numbers that contradict each other or the command line, and more copies of a command than it has
machines: they would train on fewer ranks than asked for, wait for ranks that never come, or race for one run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping

from ppar_dist.errors import UserError
from ppar_dist.launch.nodes import Nodes, one_node

RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_SET = (RANK, WORLD_SIZE, *_ADDRESS)
_OF_RANKS = (RANK, WORLD_SIZE, LOCAL_RANK)  # what no other program sets for its own use
# PyTorchJob: pods, number of this one, ranks of each; torchrun reads them as its options.
_PODS, _POD, _RANKS_OF_POD = "PET_NNODES", "PET_NODE_RANK", "PET_NPROC_PER_NODE"
_POD_ADDRESS = ("PET_MASTER_ADDR", "PET_MASTER_PORT")
_ELASTIC = "PET_RDZV_ENDPOINT"  # pods that come and go, which only torchrun knows how to number
# Copies of a command that mpirun or srun starts: their number, and which of them this is.
_COPIES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_COPY = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK")
_FOREIGN = ("OMPI_", "PMI_", "PMIX_", "MV2_")  # DeepSpeed would look for MPI
_LAUNCHERS = ("TORCHELASTIC_", "PET_")
_LEFT_BY_LAUNCHERS = (
    *(LOCAL_WORLD_SIZE, "NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE"),
)


def settle(
    variables: MutableMapping[str, str],
    nproc: int | None = None,
    nodes: int | None = None,
    node_rank: int | None = None,
    master: str | None = None,
) -> Nodes | None:
    """Decide what this process is, and make the environment say just that.

    Afterwards RANK is there if and only if this is a rank, and nothing is left that a launcher or DeepSpeed
    could take for more. To be called before anything else reads the environment.

    Args:
        variables: the environment, changed in place.
        nproc, nodes, node_rank, master: as given on the command line.

    Returns:
        The machines that the environment describes, for a command that starts the ranks of one of them;
        None where the command line says it, and for a rank.

    Raises:
        UserError: the environment contradicts itself or the command line; the message names the variables.
    """
    found = [name for name in _OF_RANKS if name in variables]
    by_hand = not (nodes is None and node_rank is None and master is None)
    rank, world_size = _complete(variables, found) if found else (0, 1)
    machines = None
    if LOCAL_RANK in variables:
        _refuse_options(variables, nproc, by_hand)
    elif by_hand and world_size > 1:
        _refuse_other_machines(variables, nproc, nodes, node_rank)
    elif not by_hand:
        machines = _pods(variables, nproc, rank, world_size) if found else _pods_of_trainjob(variables, nproc)
    is_rank = bool(found) and (LOCAL_RANK in variables or (nproc is None and not by_hand))
    _refuse_copies(variables, world_size if is_rank else machines.count if machines else nodes or 1)
    if not is_rank:
        _forget(variables, (), _SET if found else ())
    if LOCAL_RANK not in variables:
        _forget(variables, _LAUNCHERS, _LEFT_BY_LAUNCHERS)
    _forget(variables, _FOREIGN)
    return None if is_rank else machines


def described(variables: Mapping[str, str]) -> str:
    """What the environment says of ranks, in one line."""
    names = [*_SET, LOCAL_RANK, LOCAL_WORLD_SIZE, _PODS, _POD, _RANKS_OF_POD, *_POD_ADDRESS, *_COPIES, *_COPY]
    return _shown(variables, names) or "nothing of ranks"


def _complete(variables: Mapping[str, str], found: list[str]) -> tuple[int, int]:
    """Rank and number of ranks of a whole set."""
    missing = [name for name in _SET if not variables.get(name)]
    if missing:
        raise UserError(
            f"a rank's environment has all of {', '.join(_SET)}, but here is {_shown(variables, found)} "
            f"without {', '.join(missing)}; {_unset(found)}, or set the others; --nproc needs none"
        )
    limits = {WORLD_SIZE: (1, 1 << 20), _ADDRESS[1]: (1, 65535)}
    for name, (least, most) in limits.items():
        if not (variables[name].isdecimal() and least <= int(variables[name]) <= most):
            got = f"got {variables[name]!r}; {_unset(found)}"
            raise UserError(f"{name} is a number from {least} to {most}, {got}")
    world_size = int(variables[WORLD_SIZE])
    for name in found:
        if name != WORLD_SIZE and not (variables[name].isdecimal() and int(variables[name]) < world_size):
            text = _shown(variables, [name, WORLD_SIZE])
            raise UserError(f"{name} is a number from 0 to WORLD_SIZE - 1, got {text}; {_unset(found)}")
    if LOCAL_RANK in variables and LOCAL_WORLD_SIZE in variables:
        _check_local(variables, world_size)
    return int(variables[RANK]), world_size


def _check_local(variables: Mapping[str, str], world_size: int) -> None:
    here, shown = variables[LOCAL_WORLD_SIZE], [LOCAL_RANK, LOCAL_WORLD_SIZE, WORLD_SIZE]
    if not (here.isdecimal() and int(variables[LOCAL_RANK]) < int(here) <= world_size):
        raise UserError(
            "LOCAL_WORLD_SIZE is a number above LOCAL_RANK and at most WORLD_SIZE, got "
            f"{_shown(variables, shown)}; {_unset([RANK, *shown])}"
        )


def _refuse_other_machines(
    variables: Mapping[str, str], nproc: int | None, nodes: int | None, node_rank: int | None
) -> None:
    """The command line has the last word on the machines, but not another one than the environment."""
    rank, world_size = int(variables[RANK]), int(variables[WORLD_SIZE])
    fits = nodes is None or (rank < nodes and world_size in (nodes, nodes * (nproc or 1)))
    if not fits or node_rank not in (None, rank):
        asked = f"--nodes {nodes}" if not fits else f"--node-rank {node_rank}"
        raise UserError(
            f"{asked} is not what {_shown(variables, [RANK, WORLD_SIZE])} says of this machine: several "
            f"would race for one run; correct one of them, or {_unset([RANK, WORLD_SIZE])}"
        )


def _refuse_options(variables: Mapping[str, str], nproc: int | None, by_hand: bool) -> None:
    """A launcher started this rank: the command cannot start ranks again."""
    local = variables.get(LOCAL_WORLD_SIZE)
    if by_hand or (nproc is not None and str(nproc) != local):
        asked = "--nodes, --node-rank or --master" if by_hand else f"--nproc {nproc}"
        shown = [name for name in (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE) if name in variables]
        raise UserError(
            f"{asked} starts ranks, but {_shown(variables, shown)} says that this is one already; "
            f"{_unset(shown)}, or leave {asked} out"
        )


def _pods(variables: Mapping[str, str], nproc: int | None, rank: int, world_size: int) -> Nodes:
    """The machines of a job whose set describes one process on each."""
    each = _ranks_of_pod(variables, nproc)
    count, number = variables.get(_PODS, str(world_size // each)), variables.get(_POD, str(rank))
    if not (
        count.isdecimal() and int(count) * each == world_size and number == str(rank) and rank < int(count)
    ):
        raise UserError(
            "the environment does not say which machine of how many this is: "
            f"{_shown(variables, [RANK, WORLD_SIZE, _PODS, _POD, _RANKS_OF_POD])}; give --nodes, --node-rank "
            "and --master, or correct the variables"
        )
    return _machine(count, number, *(variables[name] for name in _ADDRESS))


def _pods_of_trainjob(variables: Mapping[str, str], nproc: int | None) -> Nodes | None:
    """The machines of a job that the environment describes to torchrun only; None where it describes none."""
    count, number = variables.get(_PODS, "1"), variables.get(_POD, "")
    host, port = (variables.get(name, "") for name in _POD_ADDRESS)
    if count == "1" or not (host or _ELASTIC in variables):
        return None  # options that somebody set for a torchrun of his own
    known = count.isdecimal() and number.isdecimal() and int(number) < int(count)
    if not (known and host and port.isdecimal() and 0 < int(port) < 65536):
        shown = _shown(variables, [_PODS, _POD, *_POD_ADDRESS, _ELASTIC])
        raise UserError(
            f"the environment describes several machines to torchrun, but not which this is: {shown}; start "
            "it through torchrun --module ppar_dist, or give --nodes, --node-rank and --master"
        )
    _ranks_of_pod(variables, nproc)
    return _machine(count, number, host, port)


def _ranks_of_pod(variables: Mapping[str, str], nproc: int | None) -> int:
    """Ranks of a pod, as far as its job numbers them; refuses the command for others, which would wait."""
    text = variables.get(_RANKS_OF_POD, "1")  # torchrun takes "auto", "gpu", "cpu" too: not counted
    each = int(text) if text.isdecimal() and int(text) > 0 else 1
    if each > 1 and nproc != each:
        asked, remedy = ("one", "add") if nproc is None else (nproc, "give")
        raise UserError(
            f"{_shown(variables, [WORLD_SIZE, _RANKS_OF_POD])} asks for {each} ranks on this machine, the "
            f"command for {asked}; {remedy} --nproc {each}"
        )
    return each


def _machine(count: str, number: str, host: str, port: str) -> Nodes:
    return one_node() if int(count) == 1 else Nodes(int(count), int(number), host, int(port))


def _refuse_copies(variables: Mapping[str, str], most: int) -> None:
    """More copies of this command than the job has ranks or machines: some of them are the same one."""
    for name in (*_COPIES, *_COPY):
        text = variables.get(name, "0")
        copies = int(text) + (name in _COPY) if text.isdecimal() else 0
        if copies > max(1, most) and (name != _COPIES[-1] or "SLURM_PROCID" in variables):
            raise UserError(
                f"{name}={text} says that {copies} copies of this command were started, which would race "
                "for one run; start one per machine with --nproc, --nodes, --node-rank and --master, or "
                f"unset {name}"
            )


def _forget(
    variables: MutableMapping[str, str], prefixes: tuple[str, ...], names: tuple[str, ...] = ()
) -> None:
    for name in [each for each in variables if each.startswith(prefixes) or each in names]:
        del variables[name]


def _shown(variables: Mapping[str, str], names: Iterable[str]) -> str:
    return ", ".join(f"{name}={variables[name]}" for name in names if name in variables)


def _unset(names: list[str]) -> str:
    return f"unset {' '.join(names)}"
