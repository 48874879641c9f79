"""Test that a second trace does not parse and register the functions of onnxscript again."""

import pytest
from onnxscript import values
from onnxscript._framework_apis.torch_2_5 import get_torchlib_ops
from torch.onnx._internal.exporter import _registration

from exporter.to_onnx.registry import read_functions_once


@pytest.fixture
def kind(monkeypatch):
    class Kind:
        parsed = 0

        @property
        def function_ir(self):
            type(self).parsed += 1
            return object()

    monkeypatch.setattr(values, "TracedOnnxFunction", Kind)
    return Kind


def test_each_function_is_parsed_once(kind):
    read_functions_once()
    read_functions_once()
    one, other = kind(), kind()
    assert one.function_ir is one.function_ir
    assert one.function_ir is not other.function_ir
    assert kind.parsed == 2


def test_another_onnxscript_is_left_as_it_is(monkeypatch):
    monkeypatch.delattr(values, "TracedOnnxFunction")
    read_functions_once()


def test_the_class_is_that_of_the_functions_that_torch_asks_for():
    read_functions_once()
    functions = [one.function for one in get_torchlib_ops()]
    traced = [one for one in functions if isinstance(one, values.TracedOnnxFunction)]
    assert len(traced) > 300
    assert traced[0].function_ir is traced[0].function_ir


def test_a_registry_is_filled_once_for_each_opset(monkeypatch):
    read_functions_once()
    fill = _registration.ONNXRegistry.from_torchlib
    first, other = fill(opset_version=18), fill(opset_version=20)
    asked = []
    apis = vars(_registration)["onnxscript_apis"]
    monkeypatch.setattr(apis, "get_torchlib_ops", lambda: asked.append(1))
    again = fill(opset_version=18)
    assert not asked
    assert again.opset_version == 18
    assert again.functions == first.functions
    assert other.opset_version == 20


def test_a_changed_registry_changes_no_other_one():
    read_functions_once()
    first = _registration.ONNXRegistry.from_torchlib()
    target = next(iter(first.functions))
    first.functions[target].clear()
    del first.functions[next(reversed(first.functions))]
    again = _registration.ONNXRegistry.from_torchlib()
    assert again.functions[target]
    assert len(again.functions) == len(first.functions) + 1
