"""The rooms of the package and the imports between them, read from the source.

``python -m tests.structure [FOLDER]`` prints how many files, rooms, floors and arrows there are.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "ppar_dist"
INNER_ROOMS = ("data.prepare", "data.shards")  # packages within a room that are rooms of their own


def files(package: Path = PACKAGE) -> list[Path]:
    """All modules."""
    return sorted(package.rglob("*.py"))


def module_of(path: Path, package: Path = PACKAGE) -> str:
    """The name of a module below the package; "" for the package itself."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(module: str) -> str:
    """The room of a module: its top folder, or the module itself where it is in none."""
    inner = [room for room in INNER_ROOMS if module == room or module.startswith(room + ".")]
    return inner[0] if inner else module.partition(".")[0]


def imports(path: Path) -> Iterator[str]:
    """What a module imports, wherever in it, as full names of modules and of what is taken from them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(path: Path, package: Path = PACKAGE) -> set[str]:
    """The modules of the package that a module imports."""
    own = f"{package.name}."
    names = {name.removeprefix(own) for name in imports(path) if name.startswith(own)}
    return {name for name in names if _is_module(package / name.replace(".", "/"))}


def arrows(package: Path = PACKAGE) -> set[tuple[str, str]]:
    """(importing room, imported room)."""
    pairs = {
        (room_of(module_of(path, package)), room_of(name))
        for path in files(package)
        for name in imported_modules(path, package)
    }
    return {(here, there) for here, there in pairs if here != there}


def floors(package: Path = PACKAGE) -> int:
    """The longest chain of rooms that import one another.

    Raises:
        graphlib.CycleError: rooms import each other in a circle.
    """
    below: dict[str, list[str]] = {}
    for here, there in arrows(package):
        below.setdefault(here, []).append(there)
    height: dict[str, int] = {}
    for room in TopologicalSorter(below).static_order():
        height[room] = 1 + max((height[other] for other in below.get(room, [])), default=0)
    return max(height.values())


def _is_module(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


def main() -> None:
    """Print the figures."""
    package = Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE
    rooms = {room_of(module_of(path, package)) for path in files(package)} - {""}
    print(f"files at the top level: {len(list(package.glob('*.py')))}")
    print(f"files: {len(files(package))}")
    print(f"rooms: {len(rooms)}")
    try:
        print(f"floors: {floors(package)}")
    except CycleError as error:
        print(f"floors: none, {' -> '.join(error.args[1])} is a circle")
    print(f"import arrows: {len(arrows(package))}")


if __name__ == "__main__":
    main()
