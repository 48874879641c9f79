"""Test that `verify` kills every planted fault that the judgement of an export kills."""

import functools

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from exporter.machine import environment


@pytest.fixture(scope="module")
def faults(script):
    return script("faults")


@pytest.mark.slow
def test_verify_kills_what_the_export_kills(faults, tmp_path, monkeypatch):
    cached = functools.cache(environment.available_flavours)
    monkeypatch.setattr(environment, "available_flavours", cached)
    outcomes = list(faults.judge(faults.make("fastformer", tmp_path)))
    assert len(outcomes) == len(faults.FAULTS) >= 30
    assert faults.missed(outcomes) == []
    alive = [outcome.fault for outcome in outcomes if outcome.by_verify == "pass"]
    assert "scale 1 + 2**-23, last weight" in alive  # smaller than rounding
    assert len(alive) <= 4


def test_a_fault_that_only_the_export_kills_is_missed(faults):
    outcomes = [
        faults.Outcome("a", "fail", "fail"),
        faults.Outcome("b", "fail", "pass"),
        faults.Outcome("c", "pass", "pass"),
    ]
    assert faults.missed(outcomes) == ["b"]


def test_a_fault_changes_one_place(faults):
    weight = numpy_helper.from_array(np.ones((2, 4), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, 1, (2, 2)) for name in "xy")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight]
    )
    faults.edit_weight(graph, 0.0, faults.zero_row)
    assert numpy_helper.to_array(graph.initializer[0]).tolist() == [[0] * 4, [1] * 4]


def test_a_fault_that_changes_nothing_is_an_error(faults, tmp_path):
    x, y = (helper.make_tensor_value_info(name, 1, (2, 2)) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="changes nothing"):
        faults.plant(tmp_path, lambda graph: None)
