"""Checkpoints: published whole, or not at all.

::

    <run>/checkpoints/
      step-00001200/
        model.safetensors      the bare model, for evaluate, predict and export
        optimizer.safetensors  its moments, by parameter name: the same on 1 rank as on 64
        ppar.safetensors       prototype bank and statistics
        rng.safetensors        generator state of each rank
        state.json             step, samples_seen, stage, best score
        manifest.json          every file: bytes, sha256; world size, config hash, data fingerprints, versions
      latest                   a name, replaced atomically, last

The ranks gather a ``Snapshot`` in memory; rank 0 alone writes it, so that a thread can do so while training
continues (``Writer``). All files go into a temporary folder, each is synced and hashed by reading it back,
then the folder is renamed and ``latest`` replaced. A reader sees a whole checkpoint or none, and a kill at
any moment leaves the checkpoints before it (tests/kill kills at every one).

Hidden names, which a kill may leave and the next save clears away: ``.writing-step-…`` being written,
``.replaced-step-…`` set aside while the same step is published again, ``.deleting-step-…`` being deleted.
"""

from ppar_dist.checkpoint.finding import find_checkpoint, is_complete, opened, resolve, verify
from ppar_dist.checkpoint.layout import (
    FORMAT,
    GENERATOR,
    LATEST,
    MANIFEST,
    METHOD,
    MODEL,
    OPTIMIZER,
    STATE,
    CheckpointError,
    checkpoint_name,
    checkpoints_dir,
    list_candidates,
    list_checkpoints,
    read_manifest,
    read_state,
    step_of,
)
from ppar_dist.checkpoint.locking import CheckpointGone, reading
from ppar_dist.checkpoint.publishing import Snapshot, publish
from ppar_dist.checkpoint.retention import discard, retain, withdraw
from ppar_dist.checkpoint.writer import Outcome, Writer
from ppar_dist.files.durable import write_atomically

__all__ = [
    "FORMAT",
    "GENERATOR",
    "LATEST",
    "MANIFEST",
    "METHOD",
    "MODEL",
    "OPTIMIZER",
    "STATE",
    "CheckpointError",
    "CheckpointGone",
    "Outcome",
    "Snapshot",
    "Writer",
    "checkpoint_name",
    "checkpoints_dir",
    "discard",
    "find_checkpoint",
    "is_complete",
    "list_candidates",
    "list_checkpoints",
    "opened",
    "publish",
    "read_manifest",
    "read_state",
    "reading",
    "resolve",
    "retain",
    "step_of",
    "verify",
    "withdraw",
    "write_atomically",
]
