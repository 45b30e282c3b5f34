"""The pages for users name only what there is: commands parse, files, links and pictures exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ppar_dist.cli.commands import app
from ppar_dist.config.load import load_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "jobs").rglob("*.md")),
    )
}


def found(pattern: str) -> list[str]:
    """What a pattern finds in any page, each once."""
    return sorted({hit for text in PAGES.values() for hit in re.findall(pattern, text, re.MULTILINE)})


COMMANDS = found(r"^(?:\.venv/bin/)?ppar-dist (.+?)(?:\s+#.*)?$")
LINKS = [
    (path, link) for path, text in PAGES.items() for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
]


def test_there_are_commands_to_check() -> None:
    assert {line.split()[0] for line in COMMANDS} >= {
        "prepare",
        "train",
        "evaluate",
        "predict",
        "inspect",
        "report",
    }


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_a_page_parses(line: str) -> None:
    command, _, _ = app.parse_args(shlex.split(line))
    assert command.__module__.startswith("ppar_dist.cli.")


FEATURES = [
    cell
    for line in PAGES[ROOT / "docs" / "features.md"].splitlines()
    if line.startswith("|")
    for cell in re.findall(r"`([^`]+)`", line.split("|")[2])
]


@pytest.mark.parametrize("cell", FEATURES)
def test_a_command_or_key_of_the_features_is_taken(cell: str) -> None:
    if cell.startswith("ppar-dist "):
        app.parse_args(shlex.split(cell)[1:])
    elif "=" in cell:
        settings = [each for each in shlex.split(cell) if each != "model.backbone.pretrained=FILE"]
        load_config(ROOT / "configs" / "gta5_vitb16.yaml", settings)
    else:
        assert cell.startswith(("sbatch ", "import ppar_dist"))


@pytest.mark.parametrize("target", found(r"(?:^|`)make (\w[\w-]*)"))
def test_a_make_target_of_a_page_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\b([a-z_]+\.py)\b", README))))
def test_a_file_of_the_tree_exists(name: str) -> None:
    assert any(list((ROOT / folder).rglob(name)) for folder in ("ppar_dist", "benchmarks", "tests"))


@pytest.mark.parametrize("path", found(r"\b((?:tests|benchmarks|jobs|configs|docker)/[\w./-]*\w)"))
def test_a_path_that_a_page_names_exists(path: str) -> None:
    assert "NAME" in path or (ROOT / path).exists()


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[link for _, link in LINKS])
def test_a_link_leads_somewhere(page: Path, link: str) -> None:
    assert (page.parent / link).stat().st_size > 500


@pytest.mark.parametrize("module", found(r"python -m ((?:benchmarks|tests)(?:\.\w+)+)"))
def test_a_module_that_a_page_runs_exists(module: str) -> None:
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
