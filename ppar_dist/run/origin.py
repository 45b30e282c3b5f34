"""Which checkpoint a run began with (``init_from``), and that a later start asks for no other one."""

from __future__ import annotations

from ppar_dist import checkpoint
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.run.state import TrainState
from ppar_dist.storage.location import Remote

_SEAL = "manifest_sha256"


def refuse_another_start(config: Config, state: TrainState) -> None:
    """Refuse to resume a run under an ``init_from`` that it did not begin with, as far as that can be seen.

    Raises:
        UserError: it began without one, the checkpoint of that name is another, or the path is another whole
            run that has no checkpoint of that name.
    """
    noted = state.started_from
    if config.init_from is None:
        return
    path = config.init_from
    advice = "remove init_from, which a resume does not read, or give another run.dir"
    if noted is None:
        raise UserError(f"{config.run.dir} was not started from init_from={path}; {advice}")
    if isinstance(path, Remote):
        return  # which checkpoint it was is noted; what lies there now may be a newer one
    began = f"{config.run.dir} was started from ({noted['checkpoint']}, sha256 {noted['sha256'][:12]})"
    folders = (path, checkpoint.checkpoints_dir(path) / noted["checkpoint"])
    there = next((each for each in folders if (each / checkpoint.MANIFEST).is_file()), None)
    if there is not None and checkpoint.read_manifest(there).get(_SEAL) != noted["sha256"]:
        raise UserError(f"{there} is not the checkpoint that {began}; {advice}")
    # A run that trained on may have deleted the checkpoint, but then its path is the one that was noted.
    origin = noted.get("origin", str(path.absolute()))
    if there is None and str(path.absolute()) != origin and checkpoint.list_checkpoints(path):
        raise UserError(f"{path} does not hold the checkpoint that {began}; {advice}")
