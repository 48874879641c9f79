"""The documentation is made from the docstrings of all modules, without a warning."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_module_has_its_page(tmp_path, environ_without_coverage):
    command = [sys.executable, ROOT / "scripts" / "docs.py", tmp_path]
    environ = environ_without_coverage
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    sources = [
        path.relative_to(ROOT).with_suffix("")
        for package in ("model", "exporter")
        for path in (ROOT / package).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    ]
    assert [page for page in sources if not (tmp_path / page).with_suffix(".html").is_file()] == []
    assert "FastTimeSformer" in (tmp_path / "model" / "fast_timesformer.html").read_text()
