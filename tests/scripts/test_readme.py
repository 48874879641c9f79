"""Test README.md and the measured tables of the guide."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(script):
    return script("pages")


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


def without_timing(block):
    """Change the export of a block so that it times the smallest number of runs."""
    return block.replace('engine="none"', 'engine="none", bench_seconds=0')


def test_readme_has_at_most_8000_bytes():
    assert len(README.encode()) <= 8000


def test_readme_has_no_images():
    assert "![" not in README
    assert "<img" not in README


def test_measured_blocks_equal_the_committed_results(script, pages):
    readme = script("readme")

    assert readme.render(README) == README
    assert "Pass." in README
    texts = {path.name: path.read_text(encoding="utf-8") for path in pages.list_pages()}
    assert [name for name, text in texts.items() if readme.render(text) != text] == []
    together = "".join(texts.values())
    assert [name for name in readme.blocks() if f"<!-- /{name} -->" not in together] == []


def test_render_restores_a_changed_figure(script):
    readme = script("readme")
    assert readme.render(README.replace("4.5e-07", "1.0e-09")) == README


def test_a_block_without_an_end_is_an_error(pages):
    page = "<!-- a: written by x.py -->\nold\n"
    with pytest.raises(ValueError, match="begun and not ended"):
        pages.fill(page, {"a": "new"}, "x.py")
    assert pages.fill(page + "<!-- /a -->\n", {"a": "new"}, "y.py").count("old") == 1


def test_a_table_escapes_its_cells(pages):
    shown = pages.table(["a", "b"], [["|y|", "two\nlines"]])
    assert shown == "| a | b |\n| --- | --- |\n| \\|y\\| | two lines |\n"


@pytest.mark.slow
@pytest.mark.usefixtures("quick_exports")
def test_the_python_example_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks(README)
    assert len(block.splitlines()) <= 10

    namespace = {}
    exec(without_timing(block), namespace)

    assert namespace["result"].verdict == "pass"
    assert (tmp_path / "build" / "trained" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("quick_exports")
def test_the_python_examples_of_the_guide_run(tmp_path, monkeypatch, real_clips, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(API)
    assert len(blocks) == 5

    namespace = {}
    exec(blocks[0], namespace)
    assert namespace["out"].shape == (2, 2)
    assert namespace["attended_fastformer"].shape == (16, 32, 64)
    exec(without_timing(blocks[1]), namespace)

    assert namespace["result"].verdict == "pass"
    assert (tmp_path / "build" / "trained" / "report.html").is_file()

    capsys.readouterr()
    exec(blocks[2], namespace)
    assert capsys.readouterr().out == "pass\n"

    shutil.copy(real_clips["bikes"], "clip.mp4")
    exec(blocks[3], namespace)
    assert "clip.mp4" in capsys.readouterr().out


def test_the_options_in_the_readme_exist(capsys):
    from exporter.cli import main

    assert main(["export", "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    shown = re.findall(r"^(?:\$ )?tsformer export (.*?)(?:#.*)?$", README, flags=re.MULTILINE)
    assert shown
    for line in shown:
        assert set(re.findall(r"--[a-z-]+", line)) <= known
