"""Text that leaves the program: inert, of one line for an error, and bounded for any input."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from rich.table import Table
from rich.text import Text

from exporter.cli import main
from exporter.cli.terminal import say, show

HOSTILE = "name\x1b[2J\x07\x08\u202egpj.exe\x9b31m"
# What may stand in the output: no control character but the end of a line.
ROOT = Path(__file__).parents[3]


def is_inert(text: str) -> bool:
    return all(c == "\n" or c.isprintable() for c in text)


def test_a_message_of_foreign_text_is_inert_and_has_one_line(capsys):
    assert say(f"video: {HOSTILE}\nsecond", 3) == 3
    error = capsys.readouterr().err
    assert is_inert(error)
    assert error.count("\n") == 1
    assert "gpj.exe" in error


def test_a_table_of_foreign_text_is_inert(capsys):
    table = Table("Name")
    table.add_row(Text(HOSTILE))
    show(table)
    shown = capsys.readouterr().out
    assert is_inert(shown)
    assert "gpj.exe" in shown


def test_printed_json_is_the_same_text_for_a_program(capsys):
    show('{"name": "a\u202eb\U0001d173"}')
    shown = capsys.readouterr().out
    assert is_inert(shown)
    assert shown == '{"name": "a\\u202eb\\ud834\\udd73"}\n'


@pytest.mark.parametrize(
    "argv",
    [
        ["inspect", f"{HOSTILE}.onnx"],
        ["lint", f"{HOSTILE}.onnx"],
        ["export", f"--attn={HOSTILE}"],
        ["export", f"--{HOSTILE}"],
        [HOSTILE],
        ["predict", HOSTILE, "clip.mp4"],
        ["sweep", HOSTILE],
        ["export", f"--config={HOSTILE}"],
    ],
)
def test_an_error_about_a_foreign_name_is_one_inert_line(capsys, argv):
    assert main(argv) in (2, 3)
    captured = capsys.readouterr()
    assert is_inert(captured.out + captured.err)
    assert captured.err.count("\n") == 1


# --- files without end, without bottom, or of the wrong kind --------------------------------------


def said(capsys, argv: list[str], code: int) -> str:
    assert main(argv) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert "internal" not in error
    return error


@pytest.mark.parametrize("content", ["a = " + "[" * 5000, "[export]\nframes = 'x'", "a" * 2**21])
def test_a_bad_tsformer_toml_gives_one_line(tmp_path, monkeypatch, capsys, content):
    monkeypatch.chdir(tmp_path)
    Path("tsformer.toml").write_text(content)
    assert "tsformer.toml" in said(capsys, ["export"], 2)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["export", "--config-file=/dev/zero"], 2),
        (["sweep", "/dev/zero"], 3),
        (["export", "--config=/dev/zero"], 2),
        (["inspect", "/dev/zero"], 3),
        (["lint", "/dev/zero"], 3),
    ],
)
def test_a_file_without_end_is_refused(capsys, argv, code):
    error = said(capsys, argv, code)
    assert "device" in error or "there is no file" in error


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("command", ["inspect", "lint"])
def test_a_named_pipe_is_refused_and_does_not_block(tmp_path, capsys, command):
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "pipe" in said(capsys, [command, str(tmp_path / "pipe.onnx")], 3)


def test_a_grid_is_counted_before_its_cells_are_made(tmp_path, capsys):
    axes = [f"{name} = {list(range(1, 101))}" for name in ("frames", "depth", "dim", "seed")]
    (tmp_path / "grid.toml").write_text("\n".join(["[axes]", *axes]))
    error = said(capsys, ["sweep", str(tmp_path / "grid.toml")], 2)
    assert "got 100,000,000, expected at most 1,000" in error


@pytest.mark.parametrize("content", ["", "[base]\n[axes]\n", "# nothing\n"])
def test_an_empty_grid_file_is_refused(tmp_path, capsys, content):
    (tmp_path / "grid.toml").write_text(content)
    assert "is empty" in said(capsys, ["sweep", str(tmp_path / "grid.toml")], 3)


def nested_functions(path: Path, depth: int, calls: int, *, ring: bool = False) -> Path:
    """Write a graph of functions, each of which calls the next one `calls` times."""
    made = []
    for level in range(depth):
        last = level == depth - 1
        target = ("", "Neg") if last else ("own", f"f{level + 1}")
        if last and ring:
            target = ("own", "f0")
        names = ["x", *(f"v{i}" for i in range(calls - 1)), "y"]
        nodes = [
            helper.make_node(target[1], [a], [b], domain=target[0]) for a, b in pairwise(names)
        ]
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        made.append(helper.make_function("own", f"f{level}", ["x"], ["y"], nodes, opsets))
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node("f0", ["x"], ["y"], domain="own")], "g", value[:1], value[1:]
    )
    onnx.save(
        helper.make_model(
            graph,
            functions=made,
            ir_version=8,
            opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 1)],
        ),
        path,
    )
    return path


@pytest.mark.parametrize("command", ["inspect", "lint"])
@pytest.mark.parametrize(("calls", "ring"), [(10, False), (1, True)])
def test_functions_that_unfold_without_end_are_refused(tmp_path, capsys, command, calls, ring):
    path = nested_functions(tmp_path / "bomb.onnx", 40, calls, ring=ring)
    assert "unfold" in said(capsys, [command, str(path)], 3)


def test_functions_that_unfold_to_a_few_nodes_are_read(tmp_path, capsys):
    path = nested_functions(tmp_path / "fine.onnx", 3, 2)
    assert main(["lint", str(path), "--rules-only"]) == 0
    capsys.readouterr()


# --- streams that fail ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", ["--help", "doctor", "doctor --json"])
def test_a_full_disk_behind_stdout_is_one_line_and_no_failure_of_the_work(arguments):
    command = f"{sys.executable} -m exporter {arguments} > /dev/full"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == (
        "tsformer: output: nothing could be printed: No space left on device; "
        "redirect it elsewhere\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["--help", "doctor"])
def test_a_stdout_that_is_closed_is_no_failure(arguments):
    command = f"{sys.executable} -m exporter {arguments} >&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
