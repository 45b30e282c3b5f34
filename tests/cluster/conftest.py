"""The image, built once for all tests that need it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.image import Image, built
from tests.cluster.programs import needs


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """docker/Dockerfile on a minimal Debian."""
    needs("buildah", "debootstrap", "ip", "unshare", "setpriv", root=True)
    with built(tmp_path_factory.mktemp("image")) as made:
        yield made
