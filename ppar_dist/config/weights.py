"""Files of weights that a configuration names: where they are looked up.

One rule for ``text.file`` and ``model.backbone.pretrained``: a relative path that is not a file here is
looked up by its file name in the folder ``$PPAR_WEIGHTS``, which is said in the log.
``pretrained`` names a file where it has a suffix.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from ppar_dist.config.schema import Config
from ppar_dist.storage.location import Remote, location

log = logging.getLogger(__name__)

REMEDY = "or let $PPAR_WEIGHTS name the folder that holds the file"  # ends a message


def find_weights(config: Config, folder: Path) -> Config:
    """The configuration with the files of weights that are in ``folder``; the others stay as given."""
    text, backbone = config.text, config.model.backbone
    if isinstance(text.file, Path):
        text = text.model_copy(update={"file": _found(text.file, folder)})
    file = weights_file(backbone.pretrained)
    if file is not None:
        backbone = backbone.model_copy(update={"pretrained": str(_found(file, folder))})
    model = config.model.model_copy(update={"backbone": backbone})
    return config.model_copy(update={"text": text, "model": model})


def fetch_weights(config: Config, fetched: Callable[[Remote], Path]) -> Config:
    """The configuration with files of this node in place of the weights that are on object storage.

    Args:
        config: the configuration.
        fetched: gives the file of an object.
    """
    text, backbone = config.text, config.model.backbone
    if isinstance(text.file, Remote):
        text = text.model_copy(update={"file": fetched(text.file)})
    place = location(backbone.pretrained or "")
    if isinstance(place, Remote):
        backbone = backbone.model_copy(update={"pretrained": str(fetched(place))})
    model = config.model.model_copy(update={"backbone": backbone})
    return config.model_copy(update={"text": text, "model": model})


def weights_file(pretrained: str | None) -> Path | None:
    """The file that ``model.backbone.pretrained`` names; None for a tag, a URL, or where it is not set."""
    file = location(pretrained or "")
    return file if isinstance(file, Path) and file.suffix else None


def _found(file: Path, folder: Path) -> Path:
    if file.is_absolute() or file.exists():
        return file
    found = (folder / file.name).resolve()
    if not found.exists():
        return file
    log.info("%s is not here: $PPAR_WEIGHTS has %s, which is used", file, found)
    return found
