"""Test that the guide names every path to the GPU that could not be run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
(SECTION,) = re.findall(
    r"^## What was never run\n(.*?)(?=^## |\Z)",
    (ROOT / "docs" / "gpu.md").read_text(),
    re.DOTALL | re.MULTILINE,
)
ROWS = [line.strip("| ").split(" | ") for line in SECTION.splitlines() if line.startswith("| ")][1:]


def test_a_row_says_what_it_was_tested_against_and_never_run_on():
    assert len(ROWS) >= 10
    assert all(len(row) == 3 and all(row) for row in ROWS)


def test_the_files_of_the_table_exist():
    named = set(re.findall(r"`((?:runners|scripts)/[\w/]+\.py)`", SECTION))
    roots = (ROOT, ROOT / "exporter")
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []
    assert len(named) >= 5


def test_every_file_that_uses_cuda_is_in_the_table():
    runners = ROOT / "exporter" / "runners"
    uses = {
        path.name
        for path in runners.glob("*.py")
        if re.search(r"^from exporter\.runners\.(cuda|device)\w* import", path.read_text(), re.M)
    }
    shared = {"open.py", "device.py", "cuda_stream.py"}
    assert uses - shared == {"tensorrt.py", "onnxruntime_cuda.py"}
    for name in ("cuda.py", "cuda_stream.py", "tensorrt.py", "onnxruntime_cuda.py"):
        assert f"`runners/{name}`" in SECTION
