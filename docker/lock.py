"""Print ``constraints.txt``: the version of every package that the image has, as pip resolves it now.

``python3 docker/lock.py > docker/constraints.new && mv docker/constraints.new docker/constraints.txt``
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# The version of every Python package of the image, as docker/lock.py found it on CPython {python}, {machine}.
# To renew, on the oldest Python that the image may have:
#
#   python3 docker/lock.py > docker/constraints.new && mv docker/constraints.new docker/constraints.txt
"""


def resolve(project: Path) -> dict[str, str]:
    """Name and version of all that ``project`` needs, itself left out; nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    found = subprocess.run([*command, "--report", "-", f"{project}[s3]"], check=True, stdout=subprocess.PIPE)
    packages = [item for item in json.loads(found.stdout)["install"] if not item["requested"]]
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in packages}


def main() -> None:
    """Write the constraints to standard output."""
    python = ".".join(platform.python_version_tuple()[:2])
    print(HEADER.format(python=python, machine=platform.machine()), end="")
    for name, version in sorted(resolve(ROOT).items(), key=lambda item: item[0].lower()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
