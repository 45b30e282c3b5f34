"""What a user says of the machines of a job, for ``ppar-dist doctor --nodes``; torch is not loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppar_dist.errors import UserError


@dataclass(frozen=True)
class Cluster:
    """Machines of a job; None where nothing was said.

    Attributes:
        nodes: machines.
        gpus_per_node: GPUs of each, where the machine that this runs on is none of them.
        cores_per_node: cores of each.
        network_gbps: Gbit/s from a machine to the others, all its adapters together.
        storage_gbps: Gbit/s at which a machine reads shards and writes checkpoints.
        mtbf_days: mean days between two failures of a machine.
    """

    nodes: int | None = None
    gpus_per_node: int | None = None
    cores_per_node: int | None = None
    network_gbps: float | None = None
    storage_gbps: float | None = None
    mtbf_days: float | None = None

    def check(self) -> None:
        """Refuse values that no machine has, and those without ``--nodes``.

        Raises:
            UserError: with rule, value and remedy.
        """
        for name, value in vars(self).items():
            least = "at least 1" if name in _COUNTS else "more than 0 and finite"
            good = value is None or (value >= 1 if name in _COUNTS else 0 < value < math.inf)
            if not good:
                raise UserError(f"{_option(name)} is {least}, got {value:g}; {_REMEDIES[name]}")
        if self.nodes is None and self.given:
            raise UserError(
                f"{self.given[0]} is about the machines of --nodes, which is not given; add --nodes N"
            )

    @property
    def given(self) -> list[str]:
        """Options that were given."""
        return [_option(name) for name, value in vars(self).items() if value is not None]


_COUNTS = ("nodes", "gpus_per_node", "cores_per_node")
_REMEDIES = {
    "nodes": "give the number of machines of the job",
    "gpus_per_node": "give the GPUs of one machine",
    "cores_per_node": "give the cores of one machine",
    "network_gbps": "give the Gbit/s of all adapters of one machine",
    "storage_gbps": "give the Gbit/s at which one machine reads and writes",
    "mtbf_days": "give the mean days between two failures of one machine",
}


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
