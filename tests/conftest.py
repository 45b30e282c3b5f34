"""The tiers of tests, what each may do and how long, and the small worlds that several tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

from tests import shapes
from tests.bucket import bucket
from tests.ranks import write_blocks_domain

install_import_hook(["ppar_dist.ppar", "ppar_dist.models"], f"{shapes.__name__}.checked")

ROOT = Path(__file__).parent
# Folder -> tier, which is a marker too: `pytest -m job`. Whole jobs come first: what takes long and starts
# last would keep one of two workers waiting.
TIERS = {
    "faults": "job",
    "jobs": "job",
    "kill": "kill",
    "gpu": "gpu",
    "distributed": "process",
    "written_before": "process",
    "fuzz": "fuzz",
    "unit": "unit",
    "cluster": "cluster",
}
# Unit tests that take a second and more: `make quick` leaves them out, `make test` does not.
SLOW = (
    "unit/data/prepare/test_prepare_parts.py",
    "unit/data/test_rare_classes.py",
    "unit/data/test_remote_domains.py",
    "unit/doctor",
    "unit/export",
    "unit/models/test_clip_weights.py",
    "unit/models/test_decoder.py",
    "unit/models/test_frozen_weights.py",
    "unit/trackers",
)
# Seconds that a test may take, with the fixtures it is the first to need; ten times what it does take.
LIMITS_S = {
    "unit": 120,
    "process": 600,
    "gpu": 900,
    "job": 900,
    "kill": 1200,
    "fuzz": 7200,
    "cluster": 3600,
}
_STARTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system")

# The same examples each time, and no limit of time but for what hangs: neither the luck of the draw nor a
# machine that stalls for a moment turns a test red. tests/fuzz/budget.py draws new ones when told to.
settings.register_profile(
    "default",
    derandomize=True,
    database=None,
    deadline=timedelta(seconds=30),  # of one example
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("quick", settings.get_profile("default"), max_examples=20)
settings.load_profile("default")

# Jobs inherit what is ignored: by nohup SIGHUP, in the background of a script SIGINT. Tests send them both.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier and its time limit."""
    order = list(TIERS)
    items.sort(key=lambda item: order.index(_folder(item)))  # stable: files and their tests stay in order
    for item in items:
        by_hand = item.get_closest_marker("process") is not None
        tier = "process" if by_hand else TIERS[_folder(item)]
        item.add_marker(tier)
        item.add_marker(pytest.mark.timeout(LIMITS_S[tier]))
        if any(item.path.is_relative_to(ROOT / slow) for slow in SLOW):
            item.add_marker("slow")
        local = item.get_closest_marker("local_data")
        if local is not None and bucket() is not None:
            item.add_marker(pytest.mark.skip(reason=f"data of a local disk: {local.args[0]}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write out what no UTF-8 is in captured output: workers could not send it."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT).parts[0]


class _NoProcesses:
    """Fails what starts a process while a test of the tier ``unit`` runs."""

    is_on = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event in _STARTS:
            raise AssertionError(f"a unit test starts a process ({event} {arguments[:2]}); mark it `process`")


_no_processes = _NoProcesses()
sys.addaudithook(_no_processes)


@pytest.fixture(autouse=True)
def _unit_tests_start_no_process(request: pytest.FixtureRequest) -> Iterator[None]:
    _no_processes.is_on = request.node.get_closest_marker("unit") is not None
    yield
    _no_processes.is_on = False


@pytest.fixture(autouse=True)
def _the_environment_stays() -> Iterator[None]:
    """What a test's code sets, such as LOCAL_RANK by DeepSpeed, is no message to the next test."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before) - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


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
