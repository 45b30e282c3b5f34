"""Checkpoints: published whole, or not at all.

::

    <run>/checkpoints/
      step-00001200/
        model.safetensors      the bare model, for evaluate, predict and export
        frozen.safetensors     its parameters that are not trained, where they are many
        optimizer.safetensors  its moments, by parameter name; of N ranks N files, each with a rank's part
        teacher.safetensors    the frozen teacher
        ppar.safetensors       prototype bank and statistics, an averaged teacher
        rng.safetensors        generator state of each rank
        classes.json           class set
        state.json             step, samples_seen, stage, best score
        manifest.json          every file: bytes, sha256; world size, config hash, data fingerprints, versions
      latest                   a name, replaced atomically, last

Each rank copies what it writes into a ``Snapshot``, and a thread writes that while training continues
(``Writer``): the others their part of the moments, rank 0 all else. All files go into a temporary folder,
each is synced and hashed by reading it back; rank 0 lists them in the manifest (``JointSave``), renames the
folder and replaces ``latest``. A reader sees a whole checkpoint or none, and a kill at any moment leaves the
checkpoints before it (tests/kill kills at every one).

What stays the same all through a run, a frozen tower or teacher, is not written again: a checkpoint links the
file of the one before, after its hash is checked. Each checkpoint is whole by itself all the same.

Hidden names, which a kill may leave and the next save clears away: ``.writing-step-…`` being written,
``.replaced-step-…`` set aside while the same step is published again, ``.deleting-step-…`` being deleted.
"""

from ppar_dist.checkpoint.fetching import fetched_checkpoint, local_checkpoint
from ppar_dist.checkpoint.finding import find_checkpoint, is_complete, opened, resolve, verify
from ppar_dist.checkpoint.joint import CollectiveSave, JointSave
from ppar_dist.checkpoint.layout import (
    FORMAT,
    FROZEN,
    GENERATOR,
    LATEST,
    MANIFEST,
    METHOD,
    MODEL,
    OPTIMIZER,
    STATE,
    TEACHER,
    CheckpointError,
    checkpoint_name,
    checkpoints_dir,
    list_candidates,
    list_checkpoints,
    moments_name,
    read_manifest,
    read_state,
    step_of,
)
from ppar_dist.checkpoint.locking import CheckpointGone, reading
from ppar_dist.checkpoint.publishing import Snapshot, publish, publish_fetched
from ppar_dist.checkpoint.retention import discard, retain, withdraw
from ppar_dist.checkpoint.tensors import MOMENTS, read_model, read_moments
from ppar_dist.checkpoint.uploading import Destination, Uploaded, Uploader
from ppar_dist.checkpoint.writer import Outcome, Writer
from ppar_dist.files.durable import write_atomically

__all__ = [
    "FORMAT",
    "FROZEN",
    "GENERATOR",
    "LATEST",
    "MANIFEST",
    "METHOD",
    "MODEL",
    "MOMENTS",
    "OPTIMIZER",
    "STATE",
    "TEACHER",
    "CheckpointError",
    "CheckpointGone",
    "CollectiveSave",
    "Destination",
    "JointSave",
    "Outcome",
    "Snapshot",
    "Uploaded",
    "Uploader",
    "Writer",
    "checkpoint_name",
    "checkpoints_dir",
    "discard",
    "fetched_checkpoint",
    "find_checkpoint",
    "is_complete",
    "list_candidates",
    "list_checkpoints",
    "local_checkpoint",
    "moments_name",
    "opened",
    "publish",
    "publish_fetched",
    "read_manifest",
    "read_model",
    "read_moments",
    "read_state",
    "reading",
    "resolve",
    "retain",
    "step_of",
    "verify",
    "withdraw",
    "write_atomically",
]
