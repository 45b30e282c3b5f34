"""Every expression of the rules, the dashboard and the console, read from the files themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

JOBS = Path(__file__).parents[2] / "jobs"
_CONSOLE = JOBS / "prometheus" / "consoles" / "ppar.html"
_SELECTOR = re.compile(r"""\b((?:ppar_|run:|run_domain:|process_|up\b)[\w:]*)(\{[^}]*\})?""")


def rules() -> list[dict[str, Any]]:
    """Recording and alerting rules."""
    found = []
    for path in sorted((JOBS / "prometheus" / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            found += group["rules"]
    return found


def selectors(expression: str) -> set[str]:
    """The series that an expression reads, each as a selector with its matchers."""
    return {name + (matchers or "") for name, matchers in _SELECTOR.findall(expression)}


def dashboard(run: str) -> dict[str, str]:
    """Expression of every query of the Grafana dashboard, by panel and letter."""
    tree = json.loads((JOBS / "grafana" / "dashboards" / "ppar.json").read_text(encoding="utf-8"))
    found = {}
    for panel in tree["panels"]:
        for target in panel.get("targets", ()):
            found[f"{panel['title']} {target['refId']}"] = target["expr"].replace("$run", run)
    return found


def console(run: str) -> dict[str, str]:
    """Expression of every attribute, template action and script of the console, by where it stands."""
    page = _CONSOLE.read_text(encoding="utf-8")
    found = dict(_Attributes(page).found)
    for number, expression in enumerate(_in_actions(page)):
        found[f"action {number}"] = expression
    for library in sorted((JOBS / "prometheus" / "console_libraries").glob("*.lib")):
        for number, expression in enumerate(re.findall(r"'([^'\n]*ppar_[^'\n]*)'", library.read_text())):
            found[f"{library.name} {number}"] = expression
    filled = {"$run": run, "$window": "15s"}
    return {place: _filled(expression, filled) for place, expression in found.items()}


def _in_actions(page: str) -> Iterator[str]:
    for expression in re.findall(r'query "((?:[^"\\]|\\.)*)"', page):
        yield json.loads(f'"{expression}"')


def _filled(expression: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        expression = expression.replace(name, value)
    return expression


class _Attributes(HTMLParser):
    """Values of ``data-…`` attributes that are expressions."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = dict(attrs).get("data-name") or dict(attrs).get("data-label") or tag
        for key, value in attrs:
            if key.startswith("data-") and value and "{run=" in value:
                self.found[f"line {self.getpos()[0]} {name} {key}"] = value
