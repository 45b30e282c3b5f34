"""The pretended device, compiled once, and data small enough that only the models cost time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ppar_dist.class_sets import class_set
from tests.gpu.pretended import build_device, missing
from tests.unit.tiny_run import make_domain

SOURCES = ("gta5", "synthia", "urbansyn")


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled runtime."""
    if reason := missing():
        pytest.skip(reason)
    return build_device(tmp_path_factory.mktemp("device"))


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources of the packaged configurations, as noise, and text embeddings of two widths."""
    root = tmp_path_factory.mktemp("synthetic")
    for name in SOURCES:
        make_domain(root / name, 16, classes="cityscapes19")
    names = [prompt for prompts in class_set("cityscapes19").prompts for prompt in prompts]
    for width in (512, 768):
        rows = np.random.default_rng(0).normal(size=(len(names), width)).astype(np.float32)
        np.savez(root / f"text-{width}.npz", names=np.array(names), embeddings=rows)
    return root
