"""The image and the object server, made once for all tests that need them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.fault_proxy import FaultProxy, fault_proxy
from tests.cluster.image import Image, built
from tests.cluster.object_server import PROGRAMS, ObjectServer, object_server
from tests.cluster.programs import needs


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """docker/Dockerfile on a minimal Debian."""
    needs("buildah", "debootstrap", "ip", "unshare", "setpriv", root=True)
    with built(tmp_path_factory.mktemp("image")) as made:
        yield made


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """A running object server that speaks S3."""
    needs(*PROGRAMS)
    with object_server(tmp_path_factory.mktemp("objects")) as server:
        yield server


@pytest.fixture
def storage_proxy(object_store: ObjectServer) -> Iterator[FaultProxy]:
    """A proxy in front of it, without a rule."""
    with fault_proxy(object_store.port) as proxy:
        yield proxy
