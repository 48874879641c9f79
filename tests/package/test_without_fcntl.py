"""Test a system without `fcntl`, as Windows: every command runs, without locks."""

import ast
import json
import sys
from pathlib import Path

import pytest

import exporter
from exporter.files.lock import Lock, have_locks
from exporter.files.staging import StagedDirectory

SOURCES = sorted(Path(exporter.__file__).parent.rglob("*.py"))
# Python runs this file at its start, also in the processes that a command starts.
BLOCKED = """
import sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
"""
QUICK = "--depth 1 --dim 32 --dim-head 16 --frames 3 --res 32x48 --engine none --bench-seconds 0"


@pytest.fixture
def run_blocked(tmp_path, run_alone):
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKED)

    def run(*command):
        return run_alone([sys.executable, *command], cwd=tmp_path, PYTHONPATH=str(folder))

    return run


def test_only_one_file_imports_fcntl():
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import) and "fcntl" in {alias.name for alias in node.names}:
                found.append(path.name)
            if isinstance(node, ast.ImportFrom) and node.module == "fcntl":
                found.append(path.name)
    assert found == ["lock.py"]


@pytest.mark.slow
def test_commands_that_need_no_torch_run(
    run_blocked, without_a_runtime, with_a_runtime, with_onnx, tmp_path
):
    assert run_blocked("-c", "import fcntl").returncode == 1
    for name, arguments in (without_a_runtime | with_a_runtime | with_onnx).items():
        done = run_blocked("-m", "exporter", *arguments)
        assert done.returncode == 0, (name, done.stderr)
        assert done.stdout, name
    made = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert made == ["export", "export_onnx", "export_preprocess"]


@pytest.mark.slow
def test_an_export_runs(run_blocked, tmp_path):
    done = run_blocked("-m", "exporter", "export", *QUICK.split(), "-o", "made", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parity"]
    assert {path.name for path in tmp_path.iterdir()} == {"first", "made"}


def test_parallel_cells_are_refused_without_locks(run_blocked, tmp_path):
    code = (
        "from pathlib import Path; from exporter.sweep.run import sweep\n"
        "sweep(None, [], Path('x'), jobs=2)"
    )
    done = run_blocked("-c", code)
    assert "UsageError: --jobs needs locks between processes" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "x").exists()


# --- in this process


@pytest.fixture
def no_fcntl(monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)


@pytest.mark.usefixtures("no_fcntl")
def test_a_lock_without_fcntl_does_not_lock(tmp_path):
    assert not have_locks()
    with Lock(tmp_path) as first, Lock(tmp_path) as second:
        first.exclusive()
        second.exclusive(wait=False)
        second.shared()
    with Lock(tmp_path / "file", create=True):
        assert (tmp_path / "file").exists()


@pytest.mark.usefixtures("no_fcntl")
def test_without_locks_no_staging_directory_is_removed(tmp_path):
    """Otherwise one run could remove the staging directory of another."""
    with StagedDirectory(tmp_path / "x") as first:
        (first.path / "manifest.json").write_text("first")
        with StagedDirectory(tmp_path / "x"):
            assert (first.path / "manifest.json").exists()
        first.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.usefixtures("no_fcntl")
def test_without_locks_an_export_is_replaced_as_a_whole(tmp_path):
    ours = '{"manifest_version": 1, "verdict": "%s"}'
    for content in ("old", "new"):
        with StagedDirectory(tmp_path / "x", force=True) as staged:
            (staged.path / "manifest.json").write_text(ours % content)
            staged.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x" / "manifest.json").read_text() == ours % "new"
