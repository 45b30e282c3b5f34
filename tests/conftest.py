"""Where real data lies, and the small worlds that several tests share."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

from tests import shapes
from tests.ranks import write_blocks_domain

install_import_hook(["ppar_dist.ppar", "ppar_dist.models"], f"{shapes.__name__}.checked")

# The same examples each time, and no limit of time but for what hangs: neither the luck of the draw nor a
# machine that stands still for a moment turns a test red. tests/fuzz/budget.py draws new ones when told to.
settings.register_profile(
    "steady",
    derandomize=True,
    database=None,
    deadline=timedelta(seconds=30),  # of one example
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds ``data`` and ``weights``; tests that need it skip without it."""
    folder = os.environ.get("PPAR_TEST_DATA")
    if not folder:
        pytest.skip("PPAR_TEST_DATA names no folder with real images and text embeddings")
    return Path(folder)


@pytest.fixture(scope="session")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny domains; class 5 occurs in a single image of one of them."""
    root = tmp_path_factory.mktemp("blocks")
    write_blocks_domain(root / "left", samples=8, seed=1, rare_in=3)
    write_blocks_domain(root / "right", samples=4, seed=2, rare_in=None)
    return root
