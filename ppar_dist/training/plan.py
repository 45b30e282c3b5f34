"""What a configuration implies: every derived number, and the refusals that need the data at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ppar_dist import checkpoint
from ppar_dist.checkpoint.remote import RemoteRun
from ppar_dist.class_sets import ClassSet, recorded_class_set
from ppar_dist.config.identity import config_hash, content_hash, determining
from ppar_dist.config.schema import Config
from ppar_dist.data.batches import Batching, batching
from ppar_dist.data.class_subset import subset_of
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.sources import node_storage, open_sources, training_shares
from ppar_dist.errors import DataError, UserError
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Storage


@dataclass(frozen=True)
class RunPlan:
    """A checked configuration with its open sources."""

    config: Config
    indexes: tuple[DomainIndex, ...]
    batching: Batching
    classes: ClassSet

    def lines(self) -> list[str]:
        """Every derived number, one fact per line."""
        train, cut = self.config.train, self.batching
        shares = training_shares(self.config, self.indexes)
        images = sum(share.size for share in shares)
        epochs = train.steps * train.global_batch / images
        total = sum(share.weight for share in shares)
        lines = [
            f"source {share.name}: {share.size} images to train, {len(index) - share.size} held out, "
            f"{share.weight / total:.1%} of positions"
            for share, index in zip(shares, self.indexes, strict=True)
        ]
        lines.append(
            f"batch: global {cut.global_batch} = {cut.global_batch // cut.local_batch} ranks x "
            f"{cut.accumulation} micro-batches x {cut.micro_batch}"
        )
        lines.append(f"budget: {train.steps} steps, {epochs:.1f} epochs of {images} images")
        if self.config.ppar.enabled and self.config.ppar.alignment.enabled:
            starts = [round(b * train.steps) for b in self.config.ppar.alignment.boundaries]
            lines.append(f"stages: warmup 0, text {starts[0]}, visual_text {starts[1]}, pixel {starts[2]}")
        return lines

    def facts(self) -> dict[str, Any]:
        """What a checkpoint notes of its origin: what determines the result, hashes of text and sources."""
        return {
            "config_sha256": config_hash(self.config),
            "config": determining(self.config),
            "text_sha256": content_hash(self.config.text.file),
            "data": {index.name: index.fingerprint for index in self.indexes},
        }


def make_plan(config: Config, world_size: int) -> RunPlan:
    """Check ``config`` against the data and the number of ranks, before any model is built.

    Raises:
        UserError: sources, classes, targets, text file or batch cannot work; the message says which.
    """
    classes = recorded_class_set(config.data.classes, config.run.dir)
    batching(config, world_size)  # before the data, which may take long to open
    indexes = open_sources(config, classes)
    for index in indexes:
        if not any(index.counts[part].any() for part in index.stretches()):
            names = ", ".join(classes.classes)
            raise UserError(
                f"source {index.name} has no pixel of any class of {classes.name} ({names}); "
                "prepare it with other --classes or another mapping, or drop it"
            )
    images = sum(share.size for share in training_shares(config, indexes))
    cut = batching(config, world_size, images)
    content_hash(config.text.file)  # refuses a file that cannot be read
    _refuse_without_weights(config)
    for name, folder in config.targets.items():
        index = DomainIndex.open(folder, config.data.max_bad_ratio, node_storage(config))
        try:
            subset_of(index, classes)
        except DataError as error:
            raise UserError(f"target {name} at {folder} cannot be scored: {error}") from None
    return RunPlan(config, tuple(indexes), cut, classes)


def _refuse_without_weights(config: Config) -> None:
    """Refuse a new run whose ``init_from`` holds no checkpoint, before anything is built."""
    if config.init_from is None or checkpoint.list_checkpoints(config.run.dir):
        return
    remote = config.checkpoint.remote
    if isinstance(remote, Remote) and RemoteRun(remote, Storage(config.faults.storage_s)).steps():
        return  # the run goes on from there
    path = config.init_from
    if isinstance(path, Remote):
        # Refuses what is not whole.
        checkpoint.fetched_checkpoint(path, storage=Storage(config.faults.storage_s))
        return
    candidates = [path, *checkpoint.list_candidates(path)]
    if not any(checkpoint.is_complete(each) for each in candidates):
        raise UserError(
            f"init_from={path} is neither a run with a whole checkpoint nor a checkpoint; correct the path, "
            "or remove it"
        )
