"""Write the documentation of the Python packages, from their docstrings, to build/docs.

python scripts/docs.py [DIRECTORY]
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pdoc
import pdoc.render

ROOT = Path(__file__).resolve().parent.parent


def main(directory: Path) -> None:
    """Document both packages and every module in them."""
    names = [name for package in ("model", "exporter") for name in list_modules(package)]
    # The constructor of a NamedTuple forgets in which module its annotations have a meaning.
    warnings.filterwarnings("ignore", "Error parsing type annotation")
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*names, output_directory=directory)


def list_modules(name: str) -> Iterator[str]:
    """A module, and those in it that pdoc leaves out because the package names what is public."""
    yield name
    package = importlib.import_module(name)
    public = getattr(package, "__all__", None)
    if public is None or not hasattr(package, "__path__"):
        return
    for attribute in public:  # loaded when asked for, and pdoc only looks
        setattr(package, attribute, getattr(package, attribute))
    for inside in pkgutil.iter_modules(package.__path__, f"{name}."):
        if not inside.name.endswith("__main__"):
            yield from list_modules(inside.name)


if __name__ == "__main__":
    main(Path(*sys.argv[1:2]) if sys.argv[1:] else ROOT / "build" / "docs")
