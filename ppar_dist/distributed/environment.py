"""What a launcher and a scheduler tell a rank in its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

# The variables that torchrun and the DeepSpeed launcher both set.
RANK, LOCAL_RANK, WORLD_SIZE = "RANK", "LOCAL_RANK", "WORLD_SIZE"


def store_address(variables: Mapping[str, str]) -> tuple[str, int]:
    """Host and port of the store through which the ranks meet."""
    return variables["MASTER_ADDR"], int(variables["MASTER_PORT"])


def is_hosted_by_agent(variables: Mapping[str, str]) -> bool:
    """Whether torchrun's agent keeps the store, which then outlives the ranks."""
    return variables.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def scheduler_job() -> str | None:
    """The id that Slurm gave the job this process is part of; None outside."""
    return os.environ.get("SLURM_JOB_ID") or None
