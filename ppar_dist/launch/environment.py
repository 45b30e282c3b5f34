"""What the environment says of ranks: believed as a whole, or not at all.

A process is a rank when RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are all there. With LOCAL_RANK a
launcher started it (torchrun, DeepSpeed's, ours). Without, it is alone on its machine, as in each pod of a
PyTorchJob: one rank, or with ``--nproc`` the command that starts the ranks of this machine. Refused are a
part of the set, numbers that contradict each other or the command line, and several copies of a command
that is no rank: they would train on fewer ranks than asked for, wait for ranks that never come, or race for
one run.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from ppar_dist.errors import UserError
from ppar_dist.launch.nodes import Nodes, one_node

RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_SET = (RANK, WORLD_SIZE, *_ADDRESS)
_OF_RANKS = (RANK, WORLD_SIZE, LOCAL_RANK)  # what no other program sets for its own use
# PyTorchJob: pods, number of this one, ranks of each; torchrun reads them as its options.
_PODS, _POD, _RANKS_OF_POD = "PET_NNODES", "PET_NODE_RANK", "PET_NPROC_PER_NODE"
# Copies of a command that mpirun or srun starts: their number.
_COPIES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
_FOREIGN = ("OMPI_", "PMI_", "PMIX_", "MV2_")  # DeepSpeed would look for MPI
_LAUNCHERS = ("TORCHELASTIC_", "PET_")
_LEFT_BY_LAUNCHERS = (
    *(LOCAL_WORLD_SIZE, "NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE"),
)


def settle(
    variables: MutableMapping[str, str], nproc: int | None = None, nodes: int = 1, master: str | None = None
) -> Nodes | None:
    """Decide what this process is, and make the environment say just that.

    Afterwards RANK is there if and only if this is a rank, and nothing is left that a launcher or DeepSpeed
    could take for more. To be called before anything else reads the environment.

    Args:
        variables: the environment, changed in place.
        nproc, nodes, master: as given on the command line.

    Returns:
        The machines that the environment describes, for a command that starts the ranks of one of them;
        None where the command line says it, and for a rank.

    Raises:
        UserError: the environment contradicts itself or the command line; the message names the variables.
    """
    found = [name for name in _OF_RANKS if name in variables]
    by_hand = nodes > 1 or master is not None
    machines = None
    if not found:
        if not by_hand:
            _refuse_copies(variables)
        _forget(variables, (*_FOREIGN, *_LAUNCHERS), _LEFT_BY_LAUNCHERS)
        return None
    rank, world_size = _complete(variables, found)
    if LOCAL_RANK in variables:
        _refuse_options(variables, nproc, by_hand)
    elif nproc is None and not by_hand:
        _refuse_idle_ranks(variables)
        variables[LOCAL_RANK] = "0"
    else:
        machines = None if by_hand else _machines(variables, rank, world_size)
        _forget(variables, _LAUNCHERS, (*_SET, *_LEFT_BY_LAUNCHERS))
    _forget(variables, _FOREIGN)
    return machines


def described(variables: Mapping[str, str]) -> str:
    """What the environment says of ranks, in one line."""
    names = [*_SET, LOCAL_RANK, LOCAL_WORLD_SIZE, _PODS, _POD, _RANKS_OF_POD, *_COPIES]
    return _shown(variables, [name for name in names if name in variables]) or "nothing of ranks"


def _complete(variables: Mapping[str, str], found: list[str]) -> tuple[int, int]:
    """Rank and number of ranks of a whole set."""
    missing = [name for name in _SET if not variables.get(name)]
    if missing:
        raise UserError(
            f"a rank's environment has all of {', '.join(_SET)}, but here is {_shown(variables, found)} "
            f"without {', '.join(missing)}; {_unset(found)}, or start the ranks by --nproc"
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
    return int(variables[RANK]), world_size


def _refuse_options(variables: Mapping[str, str], nproc: int | None, by_hand: bool) -> None:
    """A launcher started this rank: the command cannot start ranks again."""
    local = variables.get(LOCAL_WORLD_SIZE)
    if by_hand or (nproc is not None and str(nproc) != local):
        asked = "--nodes or --master" if by_hand else f"--nproc {nproc}"
        shown = [name for name in (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE) if name in variables]
        raise UserError(
            f"{asked} starts ranks, but {_shown(variables, shown)} says that this is one already; "
            f"{_unset(shown)}, or leave {asked} out"
        )


def _refuse_idle_ranks(variables: Mapping[str, str]) -> None:
    """A pod that shall hold several ranks, and the command for a single one."""
    each = variables.get(_RANKS_OF_POD, "1")
    if each.isdecimal() and int(each) > 1:
        raise UserError(
            f"{_shown(variables, [WORLD_SIZE, _RANKS_OF_POD])} asks for {each} ranks on this machine, the "
            f"command for one; add --nproc {each}"
        )


def _machines(variables: Mapping[str, str], rank: int, world_size: int) -> Nodes:
    """The machines of a job whose set describes one process on each."""
    count, number = variables.get(_PODS, str(world_size)), variables.get(_POD, str(rank))
    if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        shown = [name for name in (RANK, WORLD_SIZE, _PODS, _POD) if name in variables]
        raise UserError(f"the environment does not say which machine this is: {_shown(variables, shown)}")
    if int(count) == 1:
        return one_node()
    host, port = (variables[name] for name in _ADDRESS)
    return Nodes(int(count), int(number), host, int(port))


def _refuse_copies(variables: Mapping[str, str]) -> None:
    for name in _COPIES:
        copies = variables.get(name, "1")
        if copies.isdecimal() and int(copies) > 1 and (name != _COPIES[-1] or "SLURM_PROCID" in variables):
            raise UserError(
                f"{name}={copies} says that {copies} copies of this command were started, which would race "
                "for one run; start one per machine with --nproc, --nodes, --node-rank and --master, or "
                f"unset {name}"
            )


def _forget(
    variables: MutableMapping[str, str], prefixes: tuple[str, ...], names: tuple[str, ...] = ()
) -> None:
    for name in [each for each in variables if each.startswith(prefixes) or each in names]:
        del variables[name]


def _shown(variables: Mapping[str, str], names: list[str]) -> str:
    return ", ".join(f"{name}={variables[name]}" for name in names)


def _unset(names: list[str]) -> str:
    return f"unset {' '.join(names)}"
