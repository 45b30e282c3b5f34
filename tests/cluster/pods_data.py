"""The volumes of a tiny training job, as a container sees them: /config, /data, /runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from tests.ranks import tiny_config, write_config

RUN = "/runs/tiny"


def lay_out(folder: Path, blocks: Path, owner: int, **sections: dict[str, Any]) -> dict[str, Path]:
    """Make them below ``folder``: the data that ``blocks`` holds, and runs that belong to ``owner``."""
    sources = {name: folder / name for name in ("config", "data", "runs")}
    tree = tiny_config(blocks, Path(RUN), **sections)
    tree["data"]["root"] = "/data"
    tree["text"]["file"] = "/data/text.npz"
    del tree["monitoring"]
    shutil.copytree(blocks, sources["data"])
    for each in (sources["config"], sources["runs"]):
        each.mkdir(parents=True)
    for each in sources.values():
        each.chmod(0o755)
    os.chown(sources["runs"], owner, owner)
    write_config(sources["config"] / "config.yaml", tree)
    return sources
