"""The audit of dependencies: a package that was not looked up does not count as safe."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / ".ci" / "audit.py"
# As pip-audit 2.10 writes them.
SAFE = {"name": "jinja2", "version": "3.1.6", "vulns": []}
WEAK = {
    "name": "pillow",
    "version": "11.0",
    "vulns": [{"id": "TEST-2026-1", "fix_versions": ["99.0"], "aliases": [], "description": ""}],
}
UNKNOWN = {
    "name": "torch",
    "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.6)",
}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_audited_is_what_a_user_gets(audit: ModuleType) -> None:
    found = audit.installed()
    assert {"torch", "deepspeed", "jinja2", "markupsafe"} <= found.keys()
    assert not {"pytest", "ruff", "ppar-dist"} & found.keys()
    assert "+" not in found["torch"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("answers", "code", "text"),
    [
        ([SAFE], 0, "1 packages, none known to be vulnerable"),
        ([SAFE, UNKNOWN], 2, "NOT CHECKED: no service that answered knows 1 of 2 packages (torch)"),
        ([WEAK, UNKNOWN], 1, "VULNERABLE: pillow 11.0, TEST-2026-1, fixed in ['99.0']"),
        (None, 2, "osv: ConnectionError: no route"),
    ],
)
def test_the_verdict(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: list[dict[str, Any]] | None,
    code: int,
    text: str,
) -> None:
    """Over answers as pip-audit gives them: the services are not to be reached from a test."""
    program = "import sys; sys.exit('Traceback\\nConnectionError: no route')"
    if answers is not None:
        program = f"print({json.dumps({'dependencies': answers, 'fixes': []})!r})"
    names = [item["name"] for item in answers or [SAFE]]
    monkeypatch.setattr(audit, "installed", lambda: dict.fromkeys(names, "1.0"))
    assert audit.main([sys.executable, "-c", program]) == code
    assert text in capsys.readouterr().out
