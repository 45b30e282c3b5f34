"""The demo: render three source domains and an unseen night, train through all stages, evaluate, report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ppar_dist import checkpoint
from ppar_dist.class_sets import class_set
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.data.batches import batching
from ppar_dist.errors import UserError
from ppar_dist.launch.front import launch
from ppar_dist.run import paths
from ppar_dist.run.facts import finished
from ppar_dist.synthetic import CLASS_SET, TARGET_DOMAIN, synth
from ppar_dist.training.plan import make_plan

_SAMPLES = 96  # scenes per domain


def demo(out: Path, config: Path, ranks: int | None) -> int:
    """Run the whole path below ``out`` and return the exit code of training.

    Training runs on ``ranks`` ranks (default: one per GPU, as many as the batch divides by, else two
    on the CPU) through the launcher.
    """
    shards, run, text = out / "shards", out / "run", out / "text.npz"
    overrides = [f"data.root={shards}", f"run.dir={run}", f"targets.night={shards / TARGET_DOMAIN}"]
    overrides.append(f"text.file={text}")
    settings = load_config(config, overrides)
    width = settings.model.backbone.embed_dim
    ranks = ranks or _even_ranks(torch.cuda.device_count() or 2, settings.train.global_batch)
    batching(settings, ranks)  # refuse before the scenes are rendered
    if last := _finished(settings):
        print(f"already finished: {run} has all {settings.train.steps} steps ({last})")
        print(f"report {run / paths.REPORT}")
        return 0
    print(f"rendering {_SAMPLES} scenes per domain into {shards}", flush=True)
    synth(shards, samples_per_domain=_SAMPLES)
    write_stand_in_text(text, width or 512)
    code = launch(["train", str(config), *overrides], ranks)
    if code == 0:
        print(f"table {run / paths.RESULTS}\ncheckpoint {checkpoint.resolve(run)}")
    return code


def _finished(settings: Config) -> str | None:
    """The last checkpoint of a demo that was run before."""
    try:
        return finished(settings, lambda: make_plan(settings, 1).facts())
    except UserError:  # nothing is rendered yet
        return None


def _even_ranks(available: int, global_batch: int) -> int:
    """The most ranks among which a global batch divides."""
    return next(ranks for ranks in range(available, 0, -1) if global_batch % ranks == 0)


def write_stand_in_text(path: Path, width: int) -> None:
    """Stand-in for CLIP's text embeddings, which the package may not ship: seeded random unit rows."""
    names = [prompt for prompts in class_set(CLASS_SET).prompts for prompt in prompts]
    rows = np.random.default_rng(0).standard_normal((len(names), width)).astype(np.float32)
    np.savez(path, names=np.array(names), embeddings=rows / np.linalg.norm(rows, axis=1, keepdims=True))
