"""Test that every row of exit codes and messages on the page "Edge box" is what happens."""

import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from exporter import cli
from exporter.files.reference import REFERENCE, read_reference
from exporter.runners.open import Opened
from exporter.target import bench as bench_module

PAGE = Path(__file__).resolve().parents[3] / "docs" / "edge.md"


def rows():
    """Read the table: command, exit code, first words of the message."""
    table = PAGE.read_text(encoding="utf-8").partition("## Exit codes and messages")[2]
    lines = table.partition("\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return [(command, int(code), words.strip("`")) for command, code, words, _ in cells[2:]]


def no_export(directory, _):
    (directory / "manifest.json").unlink()
    return ["verify", directory]


def changed(directory, _):
    with (directory / "model.onnx").open("ab") as file:
        file.write(b"more")
    return ["verify", directory]


def lacking(directory, _):
    (directory / "model.onnx").unlink()
    return ["predict", directory, "clip.mp4"]


def no_reference(directory, _):
    (directory / REFERENCE).unlink()
    return ["verify", directory]


def other_reference(directory, fixture):
    truth = 1.001 * read_reference(directory / REFERENCE).truth
    fixture("change_reference")(directory, truth=truth)
    return ["verify", directory]


def wrong_graph(directory, fixture):
    graph = onnx.load(directory / "model.onnx")
    for weight in graph.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            values = 1.5 * onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, directory / "model.onnx")
    fixture("mend")(directory, "model.onnx")
    return ["verify", directory]


def damaged_graph(directory, fixture):
    (directory / "model.onnx").write_bytes(b"not a graph")
    fixture("mend")(directory, "model.onnx")
    return ["verify", directory]


def no_structure(directory, fixture):
    fixture("change_reference")(directory, structures={})
    return ["verify", directory]


def no_graph(directory, _):
    (directory / "model.onnx").unlink()
    return ["verify", directory]


def strange_clip(directory, _):
    path = directory.parent / "strange.mp4"
    path.write_bytes(b"a clip that the export did not have")
    return ["verify", directory, "--video", path]


def other_batch(directory, _):
    return ["bench", directory, "--batch", "3"]


def nothing_runs(directory, fixture):
    fixture("monkeypatch").setattr(bench_module, "open_runtimes", lambda *_, **__: Opened(()))
    return ["bench", directory]


SITUATIONS = {
    "is not an export": no_export,
    "was changed since it was exported": changed,
    "lacks": lacking,
    "has no reference.npz": no_reference,
    "is not the reference of this export": other_reference,
    "parity: fail": wrong_graph,
    "parity: not-run": no_graph,
    "does not load": damaged_graph,
    "has no truth of the structure": no_structure,
    "is not a clip of this export": strange_clip,
    "is not taken": other_batch,
    "can be run here": nothing_runs,
}
# An engine of another GPU, and a builder: `test_build.py` plays these with stand-ins.
ELSEWHERE = {"build it for this GPU", "is there already", "no engine can be built here"}
NEEDS = {
    "this command needs onnx": ("onnx", [["lint", "model.onnx"], ["inspect", "model.onnx"]]),
    "this command needs torch": ("torch", [["export"], ["verify", ".", "--checkpoint"]]),
}
WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from exporter.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_every_row_has_a_situation():
    endings = {words.rpartition("… ")[2] for _, _, words in rows()}
    known = {*SITUATIONS, *ELSEWHERE, *NEEDS}
    assert {
        next((one for one in known if ending.endswith(one)), ending) for ending in endings
    } == known


@pytest.mark.parametrize("ending", SITUATIONS)
def test_a_row_says_what_happens(ending, directory, request, capsys):
    ((_, code, words),) = [row for row in rows() if row[2].endswith(ending)]
    command = SITUATIONS[ending](directory, request.getfixturevalue)
    assert cli.main([*map(str, command)]) == code
    assert says(capsys.readouterr().err, words)


@pytest.mark.slow
@pytest.mark.parametrize("ending", NEEDS)
def test_a_row_names_the_package_that_is_missing(ending, directory):
    ((_, code, words),) = [row for row in rows() if row[2].endswith(ending)]
    package, commands = NEEDS[ending]
    for command in commands:
        run = [sys.executable, "-c", WITHOUT, package, *command]
        done = subprocess.run(run, cwd=directory, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert says(done.stderr, words)


def says(text, words):
    """Whether a text has the words, with anything in place of an ellipsis."""
    return re.search(".*".join(map(re.escape, words.split("…"))), text) is not None
