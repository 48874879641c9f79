"""Build the distributions, make fresh environments for them, and make an export."""

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from exporter import ExportSpec
from exporter.pipeline import export
from exporter.to_engine.flavours import FLAVOURS
from model import FastTimeSformer, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = (
    "__pycache__",
    ".*",
    "build",
    "dist",
    "*.egg-info",
)  # used if there is no git repository


def run(command, *, cwd, timeout=300, **variables):
    """Run a command without Python variables of this environment or of the checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COVERAGE_"))}
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def run_alone():
    return run


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Copy the files under version control, so that no other file can help the build."""
    copy = tmp_path_factory.mktemp("source") / "tsformer"
    if not (ROOT / ".git").exists():  # these tests run from an sdist
        return shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, os.fsdecode(listing.stdout).split("\0")):
        if (ROOT / name).exists():  # git may list a deleted file
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="session")
def build(source, tmp_path_factory):
    """`build(*options)`: run `python -m build` on the source and return the output folder."""

    def make(*options):
        out = tmp_path_factory.mktemp("dist")
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, *options]
        done = subprocess.run(
            [*map(str, command), str(source)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return out

    return make


@pytest.fixture(scope="session")
def wheel(build):
    (made,) = build("--wheel").iterdir()
    return made


@dataclass(frozen=True)
class Environment:
    """A fresh virtual environment, without pip of its own."""

    folder: Path

    @property
    def bin(self):
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def python(self):
        return self.bin / "python"

    def install(self, *requirements, constraints):
        """Install packages; without a package index skip the test, or fail it on CI."""
        pip = [sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check"]
        command = [*pip, "install", "--quiet", "--no-compile", "-c", constraints, *requirements]
        done = run_pip(command, self.folder)
        if done.returncode:
            probe = [*pip, "download", "--no-deps", "--dest", self.folder / "probe", "pip"]
            if run_pip(probe, self.folder).returncode and not os.environ.get("CI"):
                pytest.skip("no package index can be reached")
            pytest.fail(f"{' '.join(map(str, requirements))} does not install: {done.stderr}")

    def tsformer(self, *arguments, cwd, **variables):
        return run([self.bin / "tsformer", *arguments], cwd=cwd, **variables)

    def imports(self, module):
        return run([self.python, "-c", f"import {module}"], cwd=self.folder).returncode == 0


def run_pip(command, folder):
    """Run the pip of the test environment, with its settings."""
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """`environment(name)`: make a fresh virtual environment."""

    def make(name):
        folder = tmp_path_factory.mktemp(name) / "venv"
        venv.create(folder, with_pip=False, symlinks=os.name != "nt")
        return Environment(folder)

    return make


@pytest.fixture(scope="session")
def an_export(tmp_path_factory):
    """Make a small export with a measured latency, and delete its checkpoint; do not change it."""
    folder = tmp_path_factory.mktemp("package")
    model = FastTimeSformer(3, 3, 32, 48, 2, dim=32, dim_head=16, depth=1)
    save_checkpoint(model, folder / "trained.safetensors")
    spec = ExportSpec(checkpoint=folder / "trained.safetensors", bench_seconds=0.05, engine="none")
    made = export(spec, folder / "export").directory
    (folder / "trained.safetensors").unlink()
    return made


@pytest.fixture(scope="session")
def an_engine(tmp_path_factory):
    """Write a file with an engine's magic bytes; without a GPU nothing else can be read."""
    path = tmp_path_factory.mktemp("engine") / "model.engine"
    path.write_bytes(FLAVOURS["rtx"].magic + bytes(60))
    return path


@pytest.fixture(scope="session")
def without_a_runtime(an_export, an_engine):
    """The commands of every installation: name -> arguments."""
    return {
        "help": ("--help",),
        "version": ("--version",),
        "doctor": ("doctor",),
        "advise": ("advise", an_export, "--max-latency", "60s"),
        "triton": ("triton", an_export, "models", "--ensemble", "--force"),
        "inspect engine": ("inspect", an_engine),
    }


@pytest.fixture(scope="session")
def with_a_runtime(an_export, real_clips):
    """The commands that ONNX Runtime adds; no onnx is needed."""
    return {
        "predict": ("predict", an_export, real_clips["carphone"]),
        "verify": ("verify", an_export),
        "bench": ("bench", an_export, "--seconds", "0"),
    }


@pytest.fixture(scope="session")
def with_onnx(an_export):
    """The commands that read a graph, and so need the onnx of the extra `runtime`."""
    return {
        "inspect": ("inspect", an_export),
        "inspect graph": ("inspect", an_export / "model.onnx"),
        "lint": ("lint", an_export),
    }
