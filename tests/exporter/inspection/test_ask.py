"""Lint agrees with the runtimes that are installed."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.cli import main
from exporter.graph.file import read_graph
from exporter.inspection import ask as asking
from exporter.inspection.ask import Answer, ask, judge
from exporter.inspection.loaders import LOADERS
from exporter.lint import Finding, lint

TAKES, REFUSES = Answer("the runtime 1.0", ""), Answer("the runtime 1.0", "no kernel for it")
FINDING = Finding(
    "not-valid", "error", ("onnxruntime", "tensorrt"), "n", "is wrong", None, (), "do"
)


def value(name: str, shape, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def save(path: Path, nodes, inputs, outputs, weights=(), *, ir=8, opset=17) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir
    onnx.save(model, path)
    return path


def add(path: Path, ir: int, opset: int) -> Path:
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return save(path, [node], [value("x", [1, 2])], [value("y", [1, 2])], ir=ir, opset=opset)


def test_a_runtime_that_takes_the_graph_clears_the_errors_of_rules_for_it():
    (left,) = judge([FINDING], {"onnxruntime": TAKES})
    assert left.runtimes == ("tensorrt",)
    assert judge([FINDING], {"onnxruntime": TAKES, "tensorrt": TAKES}) == ()


def test_a_refusal_that_no_rule_explains_is_an_error():
    refusal, _ = judge([replace(FINDING, severity="warning")], {"tensorrt": REFUSES})
    assert (refusal.rule, refusal.severity, refusal.runtimes) == ("refused", "error", ("tensorrt",))
    assert refusal.what == "is refused by the runtime 1.0: no kernel for it"
    assert judge([FINDING], {"tensorrt": REFUSES}) == (FINDING,)


def test_a_baked_batch_explains_no_refusal():
    baked = replace(FINDING, rule="baked-batch")
    refusal, kept = judge([baked], {"onnxruntime": REFUSES})
    assert (refusal.rule, refusal.runtimes) == ("refused", ("onnxruntime",))
    assert kept == baked


def test_warnings_and_a_baked_batch_stay_whatever_the_runtimes_say():
    kept = [replace(FINDING, severity="warning"), replace(FINDING, rule="baked-batch")]
    assert judge(kept, dict.fromkeys(("onnxruntime", "tensorrt"), TAKES)) == tuple(kept)


@pytest.mark.parametrize(
    ("ir", "opset", "taken"), [(8, 17, True), (14, 20, False), (10, 27, False), (4, 6, False)]
)
def test_onnx_runtime_says_whether_it_knows_the_container_and_the_opset(tmp_path, ir, opset, taken):
    _, refused = LOADERS["onnxruntime"](add(tmp_path / "g.onnx", ir, opset))
    assert (refused == "") == taken


def test_a_graph_of_ir_3_whose_weights_are_inputs_has_no_finding(tmp_path):
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    inputs = [value("x", [1, 2]), value("w", [2])]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    path = save(tmp_path / "g.onnx", [node], inputs, [value("y", [1, 2])], [weight], ir=3, opset=9)
    assert lint(read_graph(path)) == ()


def test_an_input_without_a_shape_has_no_finding(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    path = save(tmp_path / "g.onnx", [node], [value("x", None)], [value("y", None)])
    assert lint(read_graph(path)) == ()


def test_a_graph_without_outputs_is_a_graph(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    path = save(tmp_path / "g.onnx", [node], [value("x", [1, 2])], [])
    assert LOADERS["onnxruntime"](path)[1] == ""
    assert lint(read_graph(path)) == ()


def test_a_scalar_output_is_no_baked_batch(tmp_path):
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    path = save(tmp_path / "g.onnx", [node], [value("x", ["b", 2])], [value("y", [])])
    assert "baked-batch" not in {finding.rule for finding in lint(read_graph(path))}


def test_a_refusal_is_shown_for_the_runtime_that_refuses_alone(tmp_path, monkeypatch, capsys):
    answers = {"onnxruntime": TAKES, "tensorrt": REFUSES}
    monkeypatch.setattr(asking, "ask", lambda _: answers)
    assert main(["lint", str(add(tmp_path / "g.onnx", 8, 17))]) == 4
    shown = capsys.readouterr().out
    assert "error refused (1), on TensorRT\n" in shown
    assert "the graph is refused by the runtime 1.0: no kernel for it" in shown
    unknown = save(
        tmp_path / "u.onnx", [helper.make_node("Foo", ["x"], ["y"])], [value("x", [1])], []
    )
    monkeypatch.setattr(asking, "ask", lambda _: {"onnxruntime": TAKES})
    assert main(["lint", str(unknown)]) == 4
    assert "error not-valid (1), on TensorRT\n" in capsys.readouterr().out


@pytest.mark.slow
def test_branches_of_different_rank_are_an_error_where_a_runtime_refuses_them(tmp_path, capsys):
    axes = helper.make_node("Constant", [], ["ax"], value=numpy_helper.from_array(np.array([0])))
    squeezed = [axes, helper.make_node("Squeeze", ["x", "ax"], ["a"])]
    branches = [
        helper.make_graph(squeezed, "then", [], [value("a", None)]),
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["b"])], "e", [], [value("b", None)]
        ),
    ]
    node = helper.make_node("If", ["c"], ["z"], then_branch=branches[0], else_branch=branches[1])
    path = save(
        tmp_path / "g.onnx",
        [node, helper.make_node("Relu", ["z"], ["y"])],
        [value("x", [1, 2]), value("c", [], TensorProto.BOOL)],
        [value("y", ["m", "n"])],
        opset=16,
    )
    answers = ask(path)
    assert answers["onnxruntime"].refused == ""
    code = main(["lint", str(path), "--json"])
    found = json.loads(capsys.readouterr().out)["findings"]
    errors = [each for each in found if each["severity"] == "error"]
    refusing = [name for name, answer in answers.items() if answer.refused]
    assert [each["runtimes"] for each in errors] == [[name] for name in refusing]
    assert code == (4 if errors else 0)


def test_a_loader_that_dies_is_a_refusal_and_one_that_hangs_is_a_warning(tmp_path, monkeypatch):
    path = add(tmp_path / "g.onnx", 8, 17)
    stub = tmp_path / "stub.py"
    monkeypatch.setattr(asking.child, "command", lambda _: ([asking_python(), str(stub)], None))
    stub.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert {each.refused for each in ask(path).values()} == {
        "its process died while it loaded the graph"
    }
    stub.write_text("raise OSError('no room for the graph')")
    assert {each.refused for each in ask(path).values()} == {
        "its process failed: OSError: no room for the graph"
    }
    stub.write_text("raise SystemExit(1)")
    assert {each.refused for each in ask(path).values()} == {
        "its process ended without an answer (exit code 1)"
    }
    stub.write_text("")
    assert ask(path) == {}  # not installed
    monkeypatch.setattr(asking, "_SECONDS", 0.3)
    stub.write_text("import time; time.sleep(20)")
    assert {each.refused for each in ask(path).values()} == {None}
    found = {(each.rule, each.severity, each.runtimes) for each in judge((), ask(path))}
    assert found == {("no-answer", "warning", (name,)) for name in asking.RUNTIMES}


def asking_python() -> str:
    import sys

    return sys.executable


@pytest.mark.skipif(os.name != "posix", reason="needs pipes")
def test_weights_in_a_pipe_are_refused_at_once(tmp_path, capsys):
    outside = helper.make_tensor("w", TensorProto.FLOAT, [1, 2], bytes(8), raw=True)
    path = save(
        tmp_path / "m.onnx",
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", [1, 2])],
        [value("y", [1, 2])],
        [outside],
    )
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    os.mkfifo(tmp_path / "w.bin")
    started = time.monotonic()
    for command in ("lint", "inspect"):
        assert main([command, str(path)]) == 3
        assert "has its weights in w.bin: got it is a pipe or a device" in capsys.readouterr().err
    assert time.monotonic() - started < 10
    (tmp_path / "w.bin").unlink()  # a file that is missing is a finding
    assert "missing-weights" in {finding.rule for finding in lint(read_graph(path))}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs the peak of memory in kB")
def test_a_constant_that_a_few_nodes_claim_is_not_made(tmp_path):
    """The graph has 300 bytes, and a constant of 1 GB if its nodes are folded."""
    side = numpy_helper.from_array(np.array([16_000], np.int64), "side")
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Mul", ["side", "side"], ["size"]),
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
            helper.make_node("ReduceSum", ["zeros"], ["sum"]),
            helper.make_node("Add", ["x", "sum"], ["y"]),
        ],
        [value("x", [1])],
        [value("y", [1])],
        [side],
    )
    code = (
        "import re, sys; from pathlib import Path\n"
        "from exporter.runners.onnxruntime import OnnxRuntimeRunner, write_optimised\n"
        "OnnxRuntimeRunner(Path(sys.argv[1])).close()\n"
        "write_optimised(Path(sys.argv[1]), Path(sys.argv[1] + '.optimised'))\n"
        # The peak of this program alone: that of `resource` holds the process that started it.
        "status = Path('/proc/self/status').read_text()\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', status)[1])\n"
    )
    run = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 500_000
