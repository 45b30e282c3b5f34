"""Known vulnerabilities among what `pip install ppar-dist` brought in: `python .ci/audit.py PIP-AUDIT`.

Ends with 0 when every package was looked up and none is known to be vulnerable, with 1 when one is, and with
2 when some could not be looked up: pip-audit by itself calls a package that a service does not know a
success, and so a mirror of PyPI without its vulnerability data would look like an all-clear.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SERVICES = ("pypi", "osv")
LIMIT_S = 600


def installed(name: str = "ppar-dist") -> dict[str, str]:
    """Name and version of all that ``name`` needs here, without itself."""
    found: dict[str, str] = {}
    waiting = [name]
    while waiting:
        try:
            package = distribution(waiting.pop())
        except PackageNotFoundError:
            continue  # wanted on another platform only
        for text in package.requires or ():
            requirement = Requirement(text)
            key = canonicalize_name(requirement.name)
            if key not in found and (
                requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            ):
                waiting.append(key)
        found[canonicalize_name(package.name)] = package.version.partition("+")[0]
    return {key: version for key, version in sorted(found.items()) if key != name}


def ask(program: Sequence[str], service: str, packages: dict[str, str]) -> list[dict[str, Any]] | str:
    """What a service says of each package, as pip-audit's JSON has it; or why it says nothing."""
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text("".join(f"{name}=={version}\n" for name, version in packages.items()))
        options = ["--vulnerability-service", service, "--requirement", str(pins), "--no-deps"]
        options += ["--disable-pip", "--format", "json", "--progress-spinner", "off"]
        try:
            done = subprocess.run(
                [*program, *options], capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
            answers: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
        except subprocess.TimeoutExpired:
            return f"no answer in {LIMIT_S} s"
        except (ValueError, KeyError):
            return (done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"])[-1]
    return answers


def judge(answers: Sequence[dict[str, Any]]) -> tuple[list[str], set[str]]:
    """Lines about what is vulnerable, and the names of what was not looked up."""
    lines = [
        f"VULNERABLE: {item['name']} {item['version']}, {found['id']}, fixed in {found['fix_versions']}"
        for item in answers
        for found in item.get("vulns", ())
    ]
    return lines, {canonicalize_name(item["name"]) for item in answers if "skip_reason" in item}


def main(program: Sequence[str]) -> int:
    """Ask one service after the other until all packages were looked up."""
    packages = installed()
    left = dict(packages)
    vulnerable: list[str] = []
    for service in SERVICES:
        answers = ask(program, service, left)
        if isinstance(answers, str):
            print(f"{service}: {answers}")
            continue
        lines, unknown = judge(answers)
        vulnerable += lines
        print(f"{service}: {len(left) - len(unknown)} of {len(left)} packages looked up")
        left = {name: version for name, version in left.items() if name in unknown}
        if not left:
            break
    for line in vulnerable:
        print(line)
    if left:
        names = ", ".join(list(left)[:5]) + (", …" if len(left) > 5 else "")
        print(
            f"NOT CHECKED: no service that answered knows {len(left)} of {len(packages)} packages ({names})"
        )
    elif not vulnerable:
        print(f"{len(packages)} packages, none known to be vulnerable")
    return 1 if vulnerable else 2 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["pip-audit"]))
