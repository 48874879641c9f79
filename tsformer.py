"""Start the command line: the console scripts `tsformer` and `export`, and `python -m tsformer`.

This file is outside the package `exporter`, so it can name a file of the user that hides it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_INSTALL_EXIT = 4  # `exporter.errors.MissingPackageError`, which cannot be imported here
_INTERRUPTED_EXIT = 130


def main() -> int:
    """Run the command `tsformer`, and return its exit code."""
    if hidden_by := _find_shadow():
        return _refuse(hidden_by)
    try:
        from exporter.cli import main as run

        return run()
    except KeyboardInterrupt:  # during the imports: a command itself returns its exit code
        print("tsformer: interrupted: nothing was left behind", file=sys.stderr)
        return _INTERRUPTED_EXIT


def export() -> int:
    """Run the command `tsformer export`, and return its exit code."""
    sys.argv.insert(1, "export")
    return main()


def _find_shadow() -> Path | None:
    """Find the file or folder that Python imports instead of our `exporter`, without running it."""
    spec = importlib.util.find_spec("exporter")
    if spec is None:
        return None
    folders = list(map(Path, spec.submodule_search_locations or ()))
    if Path(__file__).resolve().parent / "exporter" in [folder.resolve() for folder in folders]:
        return None
    return Path(spec.origin) if spec.origin else folders[0]


def _refuse(found: Path) -> int:
    place = found.parent.parent if found.stem == "__init__" else found.parent
    print(
        f"tsformer: install: {found} hides the package `exporter` of tsformer; rename it, or keep "
        f"{place} off Python's path (python -P, no PYTHONPATH)",
        file=sys.stderr,
    )
    return _INSTALL_EXIT


if __name__ == "__main__":
    sys.exit(main())
