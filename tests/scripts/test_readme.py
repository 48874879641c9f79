import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def load_script(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_measured_blocks_are_those_of_the_committed_results(monkeypatch):
    readme = load_script("readme", monkeypatch)

    assert readme.render(README) == README
    assert "Pass." in README


def test_python_examples_run_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2

    namespace = {}
    exec(blocks[0], namespace)
    assert namespace["out"].shape == (2, 2)
    assert namespace["attended_fastformer"].shape == (16, 32, 64)
    exec(blocks[1].replace('engine="none"', 'engine="none", bench_seconds=0'), namespace)

    assert namespace["result"].verdict == "pass"
    assert (tmp_path / "build" / "trained" / "report.html").is_file()


def test_every_command_shown_names_options_that_exist(capsys):
    from exporter.cli import main

    assert main(["export", "--help"]) == 0
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    shown = re.findall(r"^(?:\$ )?tsformer export (.*?)(?:#.*)?$", README, flags=re.MULTILINE)
    assert shown
    for line in shown:
        assert set(re.findall(r"--[a-z-]+", line)) <= known
