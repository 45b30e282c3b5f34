"""The model card of a model folder: what it was trained on and how, what it scores, and what it is not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ppar_dist.checkpoint import checkpoints_dir
from ppar_dist.class_sets import ClassSet
from ppar_dist.config.schema import Config
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.sources import holdout_range, node_storage
from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import run_of
from ppar_dist.run import paths
from ppar_dist.run.state import TrainState
from ppar_dist.storage.location import Location
from ppar_dist.text import visible

_HEADER = {
    "library_name": "ppar_dist",
    "pipeline_tag": "image-segmentation",
    "tags": ["semantic-segmentation", "domain-generalization", "clip", "ppar", "safetensors"],
}
_FILL_IN = "**fill in**"
_AVERAGED = ", averaged weights"  # how `evaluate` ends the protocol of such scores


def model_card(
    checkpoint: Path,
    config: Config,
    classes: ClassSet,
    manifest: Mapping[str, Any],
    state: Mapping[str, Any],
    weights: str = "raw",
) -> str:
    """The card of a checkpoint in Markdown, with the header that Hugging Face reads.

    Args:
        checkpoint: its folder; in a run, the run's scores are told too.
        config: of the run.
        classes: of the model.
        manifest: of the checkpoint: ranks, versions, fingerprints of the data.
        state: of the checkpoint: steps and samples.
        weights: ``raw``, of the last step, or ``averaged``; the scores of others are not told.
    """
    parts = [
        _head(config, classes),
        _use(),
        _data(config, manifest.get("data", {})),
        _training(config, manifest, state, weights),
        _scores(_tables(checkpoint, weights), classes),
        _limits(config),
    ]
    return "\n\n".join(parts) + "\n"


def _head(config: Config, classes: ClassSet) -> str:
    header = yaml.safe_dump(_HEADER, sort_keys=False).strip()
    method = "PPAR" if config.ppar.enabled else "plain fine-tuning"
    backbone, decoder = config.model.backbone, config.model.decoder
    return f"""---
{header}
# license: yours to choose; it depends on the data and the weights that the model was trained from
---

# {_plain(config.run.name or config.run.dir.name)}

Semantic segmentation into the {len(classes.classes)} classes of `{_plain(classes.name)}`, for images of \
domains that were not in the training data. Trained with {method} by ppar_dist: backbone {backbone.kind} \
{_plain(backbone.name)}, decoder {decoder.kind} of width {decoder.width}, classifier \
{config.model.classifier}.

Classes, in the order of the logits: {", ".join(map(_plain, classes.classes))}."""


def _use() -> str:
    return """## Use

```
ppar-dist predict FOLDER IMAGE… --out DIR
ppar-dist evaluate FOLDER --target NAME=SHARDS
ppar-dist export FOLDER --out model.onnx
```

```python
import ppar_dist

model = ppar_dist.load("FOLDER")
labels = model.predict("street.jpg")  # (H, W) uint8, class numbers
```

Intended use: research on segmentation that holds up on unseen domains, and labelling of images that resemble
the targets below. It is not meant for decisions that affect the safety of people."""


def _data(config: Config, fingerprints: Mapping[str, str]) -> str:
    rows = [
        (source.name, *_counts(config.data.root / source.name, config, fingerprints), _FILL_IN)
        for source in config.data.sources
    ]
    table = _table(("source", "images trained on", "held out", "licence of the data"), rows)
    return f"## Training data\n\n{table}"


def _counts(folder: Location, config: Config, fingerprints: Mapping[str, str]) -> tuple[str, str]:
    """Images of a source that were trained on and held out, where its shards are still those."""
    try:
        index = DomainIndex.open(folder, 1.0, node_storage(config))
    except (UserError, OSError):  # no longer there, or storage does not answer
        return "unknown (shards not found)", "unknown"
    if fingerprints and index.fingerprint != fingerprints.get(index.name):
        return "unknown (shards changed since)", "unknown"
    held = holdout_range(index, config.data.holdout)
    return str(held.start), str(len(held))


def _training(config: Config, manifest: Mapping[str, Any], state: Mapping[str, Any], weights: str) -> str:
    optim, train = config.optim, config.train
    versions = manifest.get("versions", {})
    crop = "x".join(map(str, config.data.crop))
    pretrained = "none, from random initialisation"
    if config.model.backbone.pretrained:
        pretrained = f"{Path(config.model.backbone.pretrained).name}; licence: {_FILL_IN}"
    facts = [
        ("steps", f"{state.get('step', 'unknown')} of {train.steps}"),
        ("images per step", train.global_batch),
        ("weights", "of the last step" if weights == "raw" else "their moving average"),
        ("ranks", manifest.get("world_size", "unknown")),
        ("seed", config.seed),
        (
            "crop",
            f"{crop} of images with a shorter side of {config.data.size}",
        ),
        ("learning rates", f"{optim.lr:g}, backbone {optim.backbone_lr:g}"),
        ("precision", config.engine.precision),
        ("pretrained weights", pretrained),
        ("text prototypes", config.text.file.name if config.text.file else "the backbone's text tower"),
        ("prediction", _prediction(config, state)),
        ("code", ", ".join(f"{name} {version}" for name, version in versions.items()) or "unknown"),
        ("configuration", f"config.json, sha256 {str(manifest.get('config_sha256', 'unknown'))[:16]}"),
    ]
    return f"## Training\n\n{_table(('', ''), facts)}"


def _prediction(config: Config, state: Mapping[str, Any]) -> str:
    asked = config.refit
    if TrainState.from_json(state).lacks_refit(asked):
        return "of the network; the checkpoint is from before the refit at the end of the run"
    fitted = "classifier fitted again to whole images, " if asked.linear else ""
    return fitted + ("corrected by prototypes of its image" if asked.prototypes else "of the network")


def _tables(checkpoint: Path, weights: str) -> list[dict[str, Any]]:
    """The tables of scores that a checkpoint's run keeps of it and of these weights."""
    run = run_of(checkpoint)
    file = run / paths.RESULTS
    if checkpoint.resolve().parent != checkpoints_dir(run) or not file.is_file():
        return []
    try:
        first = json.loads(file.read_text(encoding="utf-8"))
        tables = [first, *first.get("protocols", []), *first.get("earlier", [])]
        averaged = [str(table.get("protocol")).endswith(_AVERAGED) for table in tables]
        return [
            table
            for table, is_averaged in zip(tables, averaged, strict=True)
            if table.get("checkpoint") == checkpoint.name
            and is_averaged == (weights == "averaged")
            and table["targets"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # `evaluate` tells of a damaged file


def _scores(tables: Sequence[Mapping[str, Any]], classes: ClassSet) -> str:
    if not tables:
        return (
            "## Scores\n\nNone: this checkpoint was not evaluated before the export. "
            "`ppar-dist evaluate FOLDER --target NAME=SHARDS` tells them."
        )
    return "\n\n".join(["## Scores", *(_table_of_scores(table, classes) for table in tables)])


def _table_of_scores(table: Mapping[str, Any], classes: ClassSet) -> str:
    targets = table["targets"]
    rows = [
        (
            name,
            item.get("images"),
            _percent(item.get("miou")),
            _percent(item.get("pixel_accuracy")),
            _notes(item),
        )
        for name, item in targets.items()
    ]
    by_class = [
        (label, *(_percent(item.get("iou", {}).get(label)) for item in targets.values()))
        for label in classes.classes
    ]
    protocol = _plain(table.get("protocol") or "whole images, labels at their own size")
    return (
        f"In per cent, one confusion matrix per target; mIoU is the mean over the classes that occur. "
        f"Protocol: {protocol}.\n\n"
        f"{_table(('target', 'images', 'mIoU', 'pixel accuracy', 'notes'), rows)}\n\n"
        f"IoU of each class:\n\n{_table(('class', *targets), by_class)}"
    )


def _notes(target: Mapping[str, Any]) -> str:
    """What a reader must know of a target's score."""
    known = {"domain", "images", "miou", "pixel_accuracy", "iou", "left_out", "trained_on", "stored"}
    known |= {"fingerprint"}
    notes = ["trained on this domain: no unseen one"] if target.get("trained_on") else []
    notes += [f"{target['left_out']} images left out"] if target.get("left_out") else []
    notes += [f"images are {target['stored']}"] if target.get("stored") else []
    notes += [
        f"{name}: {value}"
        for name, value in target.items()
        if name not in known and value and isinstance(value, str | int | float)
    ]
    return "; ".join(notes)


def _limits(config: Config) -> str:
    method = (
        "\n- PPAR in ppar_dist is a reconstruction from the paper, not its authors' code; figures differ "
        "from published ones."
        if config.ppar.enabled
        else ""
    )
    return f"""## Limits

- Scores hold for the targets above; other cameras, countries, weather and classes were not measured.{method}
- Many data sets and pretrained weights allow research only. What a model may be used for follows from the
  licences of all it was trained from: {_FILL_IN}.
- A pixel of no known class gets the label of one all the same."""


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    def lines() -> Iterator[str]:
        yield _row(head)
        yield _row(["---"] * len(head))
        yield from map(_row, rows)

    return "\n".join(lines())


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(value: object) -> str:
    """A value within a line of Markdown: a name from a configuration must not end a table or a line."""
    return visible(str(value)).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _percent(value: object) -> str:
    return f"{100 * value:.1f}" if isinstance(value, int | float) else "-"
