"""Test that the judge kills faults planted in a graph of lower precision."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator


@pytest.fixture(scope="module")
def faults(script):
    return script("faults")


@pytest.fixture(scope="module")
def kinds(script):
    return script("fault_kinds")


@pytest.fixture(scope="module")
def places(script):
    return script("fault_places")


def test_there_are_many_kinds(kinds):
    made = list(kinds.kinds())
    assert len(made) == len({(kind, place) for kind, place, _ in made}) >= 100
    assert len({kind for kind, _, _ in made}) >= 40


@pytest.mark.slow
@pytest.mark.usefixtures("quick_exports")
def test_faults_below_the_rounding_are_killed(faults, kinds, tmp_path):
    made = faults.Export("regular-int8", tmp_path)
    wanted = {
        ("clip: first two swapped", "frames"),
        ("weight: scale 1.3", "last"),
        ("logits: scaled 1.001", ""),
        ("residual: scaled", "first"),
        ("wrong where unit", ""),
        ("value: plus other", "product last"),
    }
    found = [
        made.plant(kind, place, change, tmp_path)
        for kind, place, change in kinds.kinds()
        if (kind, place) in wanted
    ]
    assert {(outcome.kind, outcome.place) for outcome in found} == wanted
    assert {outcome.state for outcome in found} == {"killed"}
    assert made.judge(made.graph, tmp_path)[0].verdict == "pass"


def test_a_pass_with_an_effect_is_a_false_pass(faults):
    def state(verdict, effect):
        return faults.Outcome("m-fp32", "kind", "", verdict, "", effect, 1e-3).state

    assert state("fail", 1.0) == "killed"
    assert state("pass", 1.9e-3) == "harmless"
    assert state("pass", 2.1e-3) == "false pass"


def test_the_table_counts_by_precision(faults):
    outcomes = [
        faults.Outcome("a-fp32", "kind", "", "fail", "structure", 1.0, 1e-6),
        faults.Outcome("a-int8", "other", "", "pass", "", 1.0, 1e-2),
    ]
    lines = faults.table(outcomes).splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["fp32", "1", "1", "0", "0"],
        ["int8", "1", "0", "0", "1"],
        ["all", "2", "1", "0", "1"],
    ]
    assert lines[-1].startswith("passed: a-int8 other")


def test_the_results_have_no_false_pass(faults):
    rows = json.loads(faults.RESULTS.read_text(encoding="utf-8"))["faults"]
    assert len(rows) >= 400
    assert {row["model"].rpartition("-")[2] for row in rows} == {"fp32", "fp16", "bf16", "int8"}
    assert len({row["kind"] for row in rows}) >= 40
    assert {row["state"] for row in rows} <= {"killed", "harmless"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_a_fault_changes_one_place_in_the_type_of_the_graph(places, kinds, dtype):
    tensor = numpy_helper.from_array(np.ones((2, 4), dtype), "w")
    places.edit(tensor, kinds.zero_row)
    array = numpy_helper.to_array(tensor)
    assert array.dtype == dtype
    assert array.tolist() == [[0] * 4, [1] * 4]


def test_a_graph_without_the_place_is_left_out(places, kinds):
    x, y = (helper.make_tensor_value_info(name, 1, (2, 2)) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    with pytest.raises(places.NotHereError):
        places.edit_weight(graph, 0.0, kinds.zero_row)


def test_steps_are_inserted_after_a_value(places):
    x, y = (helper.make_tensor_value_info(name, 1, (2, 2)) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    places.after(graph, "y", ("Mul", {}, 2.0), ("Neg", {}, None))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    (found,) = ReferenceEvaluator(model).run(None, {"x": np.ones((2, 2), np.float32)})
    assert found.tolist() == [[-2.0, -2.0]] * 2


def test_every_kind_of_fault_was_planted_somewhere(faults, kinds):
    planted = json.loads(faults.RESULTS.read_text(encoding="utf-8"))["faults"]
    assert {row["kind"] for row in planted} == {kind for kind, _, _ in kinds.kinds()}
