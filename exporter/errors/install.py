"""Find faults of an installation: a missing package and its extra, a file that shadows `model`.

This module runs before the rest of the package. It imports the standard library and
`exporter.errors` only, and never `model`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from pathlib import Path

from exporter.errors import MissingPackageError, ShadowedError

NAME = "tsformer"
EXPORTING = ("cpu", "gpu")  # the extras with torch
EXTRAS = ("openvino", "runtime", "runtime-gpu", *EXPORTING, "hub", "label", "ray")  # for users
COMMANDS = ("tsformer", "export", "tsformer.py")  # the last for `python -m tsformer`
# Modules whose distributions have other names. A `-` in place of a `_` does not need an entry.
_DISTRIBUTIONS = {
    "cuda": ("cuda-bindings",),
    "google": ("protobuf",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13",),
}


def how_to_install(module: str) -> str:
    """Return the command that installs a module, for a wheel and for a checkout."""
    extras = _extras_with(module.partition(".")[0])
    if not extras:
        return f"pip install {NAME} (in a checkout: pip install .)"
    first, *others = extras
    more = f" (or {', '.join(f'[{name}]' for name in others)})" if others else ""
    return f"pip install '{NAME}[{first}]'{more}, in a checkout: pip install '.[{first}]'"


def missing_package(module: str, user: str) -> MissingPackageError:
    """Make the error for a module that is not installed; `user` names the feature that needs it."""
    return MissingPackageError(
        f"{user} needs {module}, which is not installed", remedy=how_to_install(module)
    )


def is_ours(module: str | None) -> bool:
    """Tell whether a missing module belongs to this project or to Python, which is a defect."""
    top = (module or "exporter").partition(".")[0]
    return top in ("exporter", "model") or top in sys.stdlib_module_names


def _extras_with(module: str) -> list[str]:
    """List the extras that install a module; empty if every installation has it."""
    from importlib import metadata  # it imports much, and only an error needs it

    try:
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed has no metadata
        return list(EXPORTING)
    requirements = [_parse(line) for line in lines]
    packages = {_normalised(name) for name in _DISTRIBUTIONS.get(module, (module,))}
    if any(name in packages and not extra for name, _, extra in requirements):
        return []
    found = [extra for extra in EXTRAS if packages & _closure(extra, requirements)]
    return found or list(EXPORTING)  # a package that another package needs


def _closure(extra: str, requirements: list[tuple[str, list[str], str]]) -> set[str]:
    """Collect the packages of an extra and of the extras that it includes."""
    found: set[str] = set()
    for name, of, needed_by in requirements:
        if needed_by != extra:
            continue
        if name == NAME:
            found.update(*(_closure(other, requirements) for other in of))
        found.add(name)
    return found


def _parse(line: str) -> tuple[str, list[str], str]:
    """Parse `name[a,b]>=1; extra == "c"` into name, [a, b], c."""
    parts = re.match(r"([\w.-]+)\s*(?:\[([^]]*)\])?", line)
    assert parts, line
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
    of = [name.strip() for name in (parts[2] or "").split(",") if name.strip()]
    return _normalised(parts[1]), of, extra[1] if extra else ""


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def refuse_shadow() -> None:
    """Stop if `import model` finds a file or folder of the user instead of tsformer's package.

    A command ends with a message of one line. A program gets the exception.

    Raises:
        ShadowedError: with the file and the remedy.
    """
    ours = Path(__file__).resolve().parent.parent.parent / "model"
    origin, folders = _find_model()
    found = Path(origin) if origin else next(map(Path, folders), None)
    if found is None or ours in {Path(folder).resolve() for folder in folders}:
        return
    place = found.parent.parent if found.stem == "__init__" else found.parent
    error = ShadowedError(
        f"{found} hides the package `model` of tsformer",
        remedy=f"rename it, or keep {place} off Python's path (python -P, no PYTHONPATH)",
    )
    if _is_command():
        # `exporter.cli`, which prints for all commands, cannot be imported here.
        with contextlib.suppress(OSError):
            os.write(2, f"tsformer: {error.stage}: {error}\n".encode())
        raise SystemExit(error.exit_code)
    raise error


def _find_model() -> tuple[str | None, list[str]]:
    """The file that `import model` loads or loaded, and the folders of its submodules.

    A folder without `__init__.py` has no file. Where tsformer is installed in editable mode, Python
    finds such a folder of the user first.
    """
    loaded = sys.modules.get("model")
    if loaded is not None:
        return getattr(loaded, "__file__", None), list(getattr(loaded, "__path__", ()))
    spec = importlib.util.find_spec("model")
    if spec is None:
        return None, []
    return spec.origin, list(spec.submodule_search_locations or ())


def _is_command() -> bool:
    """Tell whether a console script runs, or `python -m exporter` looks for its module."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":
        return "exporter" in sys.orig_argv
    return Path(program).name.removesuffix(".exe") in COMMANDS
