"""Programs that the cluster tests run; `make test-cluster` installs them and lets no test skip."""

from __future__ import annotations

import os
import shutil

import pytest

REQUIRED = "PPAR_CLUSTER_TESTS"  # set where every program has been installed: a missing one is then a failure


def needs(*programs: str, root: bool = False) -> None:
    """Skip the test or module where a program (or root) is missing; fail where it should be there.

    Call it inside a fixture or test.
    """
    missing = [program for program in programs if shutil.which(program, path=_path()) is None]
    if root and os.geteuid() != 0:
        missing.append("root")
    if not missing:
        return
    reason = f"needs {', '.join(missing)}; `make test-cluster` installs what it needs"
    if os.environ.get(REQUIRED):
        pytest.fail(reason)
    pytest.skip(reason)


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
