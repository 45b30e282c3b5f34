"""Where real data lies, and the small worlds that several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.ranks import write_blocks_domain


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
