"""Test that a second trace does not parse the functions of onnxscript again."""

import pytest
from onnxscript import values
from onnxscript._framework_apis.torch_2_5 import get_torchlib_ops

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
