"""The one rank that these tests are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ppar_dist.distributed import rendezvous
from ppar_dist.distributed.world import World


@pytest.fixture(scope="package")  # DeepSpeed keeps process groups for good
def world() -> Iterator[World]:
    yield rendezvous.join({})
    rendezvous.leave()
