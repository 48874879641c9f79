"""Test the wheel in fresh environments: every command that an extra promises runs."""

import json
import re
import shlex
import shutil
import subprocess

import pytest

from exporter.errors.install import EXTRAS
from exporter.to_engine.flavours import FLAVOURS, probe

pytestmark = pytest.mark.slow

HEAVY = ("torch", "matplotlib", "einops", "tensorrt_rtx")  # of no command that uses an export


@pytest.fixture(scope="module")
def constraints(source):
    return source / "constraints.txt"


@pytest.fixture(scope="module")
def base(environment, wheel, constraints):
    """Make an environment with the wheel and without any extra."""
    made = environment("base")
    made.install(wheel, constraints=constraints)
    return made


def succeed(environment, commands, folder):
    for name, arguments in commands.items():
        done = environment.tsformer(*arguments, cwd=folder)
        assert done.returncode == 0, (name, done.stderr)
        assert done.stdout, name
        assert done.stderr == "", name


def test_without_an_extra_every_command_without_a_runtime_runs(base, without_a_runtime, tmp_path):
    succeed(base, without_a_runtime, tmp_path)
    assert not any(map(base.imports, (*HEAVY, "onnx", "onnxruntime")))


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (("export",), "torch", "cpu"),
        (("verify", "EXPORT", "--checkpoint"), "torch", "cpu"),
        (("lint", "EXPORT"), "onnx", "runtime"),
        (("inspect", "EXPORT"), "onnx", "runtime"),
    ],
)
def test_a_command_names_the_missing_package_and_its_extra(
    base, an_export, tmp_path, command, package, extra
):
    arguments = (an_export if word == "EXPORT" else word for word in command)
    done = base.tsformer(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith(f"tsformer: install: this command needs {package}, which is not")
    assert f"pip install 'tsformer[{extra}]'" in done.stderr
    assert f"pip install '.[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_python_import_names_the_missing_package_and_its_extra(base, tmp_path):
    done = subprocess.run(
        [base.python, "-c", "from exporter import export"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert "exporter.export needs torch, which is not installed; pip install 'tsformer[" in last


def test_the_named_install_command_installs_the_runtime(
    base, constraints, with_a_runtime, with_onnx, without_a_runtime, tmp_path
):
    """`pip install 'tsformer[runtime]'` works in place, without a package index with tsformer.

    Every command that uses an export then runs without torch and without its checkpoint.
    """
    for arguments in with_a_runtime.values():
        done = base.tsformer(*arguments, cwd=tmp_path)
        assert done.returncode == 4
        told = re.search(r"pip install ('tsformer\[\w+]')", done.stderr)
        assert told, done.stderr
        (requirement,) = shlex.split(told[1])
        assert requirement == "tsformer[runtime]"
    base.install(requirement, constraints=constraints)
    succeed(base, with_a_runtime, tmp_path)
    succeed(base, with_onnx, tmp_path)
    succeed(base, without_a_runtime, tmp_path)
    assert not any(map(base.imports, HEAVY))


def test_the_runtime_works_with_the_lowest_versions(
    environment,
    wheel,
    source,
    with_a_runtime,
    with_onnx,
    without_a_runtime,
    real_clips,
    an_export,
    tmp_path,
):
    lowest = environment("lowest")
    lowest.install(f"{wheel}[runtime]", constraints=source / "tests" / "package" / "lowest.txt")
    succeed(lowest, without_a_runtime, tmp_path)
    succeed(lowest, with_a_runtime, tmp_path)
    succeed(lowest, with_onnx, tmp_path)
    (tmp_path / "tsformer.toml").write_text("[predict]\njson = true\ntop = 1\n")
    done = lowest.tsformer("predict", an_export, real_clips["carphone"], cwd=tmp_path)
    (prediction,) = json.loads(done.stdout)["predictions"]
    assert len(prediction["classes"]) == 1
    assert not any(map(lowest.imports, HEAVY))


@pytest.mark.skipif(probe("rtx").version is None, reason="TensorRT-RTX is not installed")
def test_tensorrt_rtx_beside_the_runtime_builds_an_engine(base, constraints, an_export, tmp_path):
    base.install("tensorrt-rtx-cu13", constraints=constraints)
    copy = shutil.copytree(an_export, tmp_path / "copy")
    done = base.tsformer("build", copy, "--engine", "rtx", "--target", "sm86", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "built, not executed" in done.stdout
    assert (copy / "model.engine").read_bytes()[:4] == FLAVOURS["rtx"].magic
    assert not any(map(base.imports, ("torch", "matplotlib")))
    done = base.tsformer("verify", copy, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("file", "extras"),
    [("lowest.txt", ["runtime"]), ("lowest_cpu.txt", ["runtime", "export", "cpu"])],
)
def test_the_lowest_versions_equal_the_bounds_in_the_metadata(source, file, extras):
    """The file pins every requirement of `pyproject.toml` to its lower bound."""
    import tomllib

    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    offered = project["optional-dependencies"]
    wanted = project["dependencies"] + [line for extra in extras for line in offered[extra]]
    lines = (source / "tests" / "package" / file).read_text().splitlines()
    pinned = dict(
        line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#")
    )
    for requirement in wanted:
        if requirement.startswith("tsformer["):
            continue
        name, floor = requirement.partition(";")[0].split(">=")
        assert (pinned[name] + ".0").startswith(floor + "."), requirement
    assert set(EXTRAS) <= set(offered)
