"""Count the rooms of the source tree and the import arrows between them.

    python scripts/architecture.py            rooms from the lowest to the highest, then the counts

A room is `model/`, or a file or package directly below `exporter/`. Room A has an arrow to room B
if a file of A imports from B. Lazy imports and imports for type checkers count too. `ORDER` lists
the rooms from the lowest to the highest. A room imports only from rooms before it. The exit code
is 1 if a room is not in `ORDER`, if an arrow points upward, or if there are more than `MOST_ARROWS`
arrows.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "exporter")
MOST_ARROWS = 150
ORDER = (
    "model",
    "exporter.errors",
    "exporter.spec",
    "exporter.results",
    "exporter.files",
    "exporter.inputs",
    "exporter.graph",
    "exporter.lint",
    "exporter.precision",
    "exporter.rewrite",
    "exporter.load",
    "exporter.to_engine",
    "exporter.runners",
    "exporter.machine",
    "exporter.run",
    "exporter.to_onnx",
    "exporter.proof",
    "exporter.latency",
    "exporter.report",
    "exporter.inspection",
    "exporter.triton",
    "exporter.predict",
    "exporter.target",
    "exporter.pipeline",
    "exporter.sweep",
    "exporter",  # the names that `import exporter` offers
    "exporter.cli",
    "exporter.__main__",
)

Arrow = tuple[str, str]  # the room that imports, the room that is imported


def module_name(path: Path, root: Path = ROOT) -> str:
    """Return the dotted name of the module in a source file."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def find_sources(root: Path = ROOT) -> dict[str, Path]:
    """Find the source files of both packages; the keys are module names."""
    paths = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
    return {module_name(path, root): path for path in paths}


def imports(name: str, source: str, known: Mapping[str, object]) -> Iterator[str]:
    """Yield the names of imported modules; `known` separates modules from attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".")[: -node.level]
                base = ".".join([*package, base] if base else package)
            for alias in node.names:  # `from exporter import spec` is the file, not the package
                inner = f"{base}.{alias.name}"
                yield inner if inner in known else base


def room_of(module: str) -> str | None:
    """Return the room of a module, or None for a module of another project."""
    package, *inside = module.split(".")
    if package not in PACKAGES:
        return None
    return package if package == "model" or not inside else f"{package}.{inside[0]}"


def find_arrows(sources: Mapping[str, Path]) -> set[Arrow]:
    """Find the arrows between different rooms."""
    arrows = set()
    for name, path in sources.items():
        for imported in imports(name, path.read_text(encoding="utf-8"), sources):
            here, there = room_of(name), room_of(imported)
            if here and there and here != there:
                arrows.add((here, there))
    return arrows


def find_upward(arrows: set[Arrow]) -> list[Arrow]:
    """Find the arrows whose target is not before their source in `ORDER`."""
    height = {room: place for place, room in enumerate(ORDER)}
    highest = len(ORDER)
    return sorted(
        (here, there)
        for here, there in arrows
        if height.get(there, highest) >= height.get(here, highest)
    )


def main() -> int:
    """Print the rooms, the counts and the violations; return 1 if there is a violation."""
    sources = find_sources()
    rooms = {room for name in sources if (room := room_of(name))}
    arrows = find_arrows(sources)
    for room in ORDER:
        below = sorted(there.removeprefix("exporter.") for here, there in arrows if here == room)
        print(f"{room:<20} {', '.join(below)}")
    unknown, upward = sorted(rooms - {*ORDER}), find_upward(arrows)
    print(f"{len(rooms)} rooms, {len(arrows)} arrows (at most {MOST_ARROWS}), {len(upward)} upward")
    print(*(f"upward: {here} -> {there}" for here, there in upward), sep="\n")
    print(*(f"not in ORDER: {room}" for room in unknown), sep="\n")
    return int(bool(unknown or upward or len(arrows) > MOST_ARROWS))


if __name__ == "__main__":
    sys.exit(main())
