"""Imports run downwards, and each outside library has one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ppar_dist"
LEVELS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("demo",),
    ("job",),
    ("trainer", "launch", "doctor"),
    ("saver",),
    ("runlog", "runfolder", "predict", "report"),
    ("evaluate", "export", "inspection"),
    ("inference", "plan", "examples", "runfacts", "ledger"),
    ("engine", "checkpoint", "monitoring", "drawing", "data.pipeline", "data.prepare", "data.synthetic"),
    ("watchdog",),
    ("distributed", "launchers", "data.shards", "data.workers"),
    ("data.indexer",),
    ("ppar", "data.order", "data.transforms", "data.index"),
    ("models", "losses", "metrics", "schedule", "trainstate", "data.scan", "data.shardfiles"),
    ("data.tar", "data.domainfile"),
    ("data.samples",),
    ("labels", "nodes", "runlock", "data.quarantine", "preemption"),
    ("config", "data", "exitcodes", "parent", "process", "ranklog", ""),
    ("fields", "progress"),
    ("strict_yaml", "messages", "jsonlines", "durable", "terminal"),
)
DOORS = {
    "deepspeed": {"engine"},
    "torch.distributed": {"distributed"},
    "prometheus_client": {"monitoring"},
    "webdataset": {"data.pipeline", "data.shards"},
}
PURE = (
    "config",
    "labels",
    "models",
    "ppar",
    "losses",
    "metrics",
    "schedule",
    "data.order",
    "data.transforms",
)
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def group_of(module: str) -> str:
    """The entry of LEVELS that a module belongs to: its longest prefix there."""
    names = [name for level in LEVELS for name in level]
    fitting = [n for n in names if module == n or (n and module.startswith(n + "."))]
    assert fitting or module == "", f"{module} has no level; add it to LEVELS"
    return max(fitting, key=len, default="")


def level_of(group: str) -> int:
    return next(number for number, level in enumerate(LEVELS) if group in level)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_module(name: str) -> bool:
    path = PACKAGE.parent / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_downwards(path: Path) -> None:
    here = group_of(module_of(path))
    for name in imports(path):
        if name.startswith("ppar_dist.") and is_module(name):
            there = group_of(name.removeprefix("ppar_dist."))
            assert here == there or level_of(there) > level_of(here), f"{here} imports {there}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_each_library_has_one_door(path: Path) -> None:
    here = module_of(path)
    for name in imports(path):
        for library, doors in DOORS.items():
            if name == library or name.startswith(library + "."):
                assert any(here == door or here.startswith(door + ".") for door in doors), f"{here}: {name}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_the_pure_level_reads_no_environment(path: Path) -> None:
    if group_of(module_of(path)) in PURE:
        assert "environ" not in path.read_text(encoding="utf-8")
