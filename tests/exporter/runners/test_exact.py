"""Test the operators that compute in float64."""

import math

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from exporter.runners.exact import ExactRunner

EDGES = np.array([[np.nan, np.inf, -np.inf, 0.0, -0.0], [1e-320, 0.3, -0.7, 5.9, -6.1]])


def run(op: str, x: np.ndarray) -> np.ndarray:
    """Compute one operator on an array of two axes."""
    kind = TensorProto.DOUBLE
    values = [helper.make_tensor_value_info(name, kind, [None, None]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", values[:1], values[1:])
    imports = [helper.make_opsetid("", 20)]
    with ExactRunner(helper.make_model(graph, opset_imports=imports, ir_version=9)) as runner:
        return runner.run({"x": x})["y"]


@pytest.mark.parametrize("x", [EDGES, EDGES.T, np.zeros((0, 3)), np.linspace(-7, 7, 50_000)[None]])
def test_the_error_function_is_that_of_the_c_library_to_two_units_of_the_last_place(x):
    found = run("Erf", x)
    assert found.dtype == np.float64
    expected = np.reshape([[math.erf(value) for value in row] for row in x], x.shape)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
    np.testing.assert_array_max_ulp(found, expected, 2)


def test_gelu_is_the_equation_in_float64():
    x = np.linspace(-4, 4, 33)[None]
    expected = [[0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x[0]]]
    # Below 0 the sum cancels, so the last places of the error function show: |x| / 2 of them.
    np.testing.assert_allclose(run("Gelu", x), expected, rtol=1e-15, atol=2 * 2**-52)


def test_selu_is_the_equation_of_the_paper_in_float64_without_the_rounding_of_a_node():
    x = np.linspace(-4, 4, 33)[None]
    expected = torch.nn.functional.selu(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run("Selu", x), expected, rtol=1e-15, atol=1e-15)
