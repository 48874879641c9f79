"""Test SIGKILL at any point of an export: the output is absent or complete; a rerun succeeds."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from exporter import ExportSpec
from exporter.files.manifest import read_manifest
from exporter.pipeline import export

# The stage that the export has reached, and the seconds from there to the kill.
MOMENTS = [
    (("load",), 0.0),
    (("onnx",), 1.0),
    (("engine", "Building"), 0.0),
    (("latency", "5 rounds"), 0.0),
    (("report",), 0.03),  # just before the final rename
]


def listing(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "delay"), MOMENTS, ids=str)
def test_a_killed_export_leaves_a_complete_directory_or_none(
    start, ended, tmp_path, tiny, tiny_flags, moment, delay
):
    out = tmp_path / "made"
    built = {"none": "auto", "onnxruntime": "onnxruntime,tensorrt"}
    flags = (built.get(flag, flag) for flag in tiny_flags)
    process = start("export", *flags, "-o", out)
    process.wait_for(*moment)
    time.sleep(delay)
    children = process.children()
    assert bool(children) == (moment[0] == "engine")
    code, _ = process.end(signal.SIGKILL)
    assert code == -signal.SIGKILL or out.exists()
    assert all(ended(child) for child in children)

    whole = out.exists()
    if whole:
        files = set(listing(out)) - {"manifest.json", "README.md"}
        assert set(read_manifest(out)["files"]) == files
    result = export(ExportSpec(**tiny), out, force=whole)
    assert result.verdict == "pass"
    read_manifest(out)
    assert listing(tmp_path) == ["made"]  # no `.partial` is left


@pytest.mark.slow
def test_a_kill_while_an_older_export_is_there_keeps_it(
    start, exported, tmp_path, tiny, tiny_flags
):
    out = shutil.copytree(exported().directory, tmp_path / "made")
    older = read_manifest(out)
    process = start("export", *tiny_flags, "--seed", "1", "--force", "-o", out)
    process.wait_for("parity", "onnxruntime")
    process.end(signal.SIGKILL)
    assert read_manifest(out) == older  # unchanged until the new export is complete
    export(ExportSpec(seed=1, **tiny), out, force=True)
    assert read_manifest(out)["spec"]["seed"] == 1
    assert listing(tmp_path) == ["made"]
