"""Write the documentation of the Python packages, from their docstrings, to build/docs.

python scripts/docs.py [DIRECTORY]
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

ROOT = Path(__file__).resolve().parent.parent


def main(directory: Path) -> None:
    """Document both packages and every module in them."""
    names = []
    for package in map(importlib.import_module, ("model", "exporter")):
        for name in package.__all__:
            setattr(package, name, getattr(package, name))  # loaded when asked for; pdoc only looks
        inside = pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        names += [package.__name__, *(one.name for one in inside if "__main__" not in one.name)]
    # The constructor of a NamedTuple forgets in which module its annotations have a meaning.
    warnings.filterwarnings("ignore", "Error parsing type annotation")
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*names, output_directory=directory)


if __name__ == "__main__":
    main(Path(*sys.argv[1:2]) if sys.argv[1:] else ROOT / "build" / "docs")
