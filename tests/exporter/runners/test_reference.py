"""Test that the ONNX reference evaluator rounds, and that its errors are one line."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import RuntimeFailure
from exporter.runners.open import EVALUATED
from exporter.runners.reference import ReferenceRunner

KINDS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16, "fp32": TensorProto.FLOAT}
DIGITS = {"fp16": 11, "bf16": 8}


def graph_of(nodes, weights=(), shape=("batch", 4), opset=22):
    """Make a model from `video` to `logits`, both float32."""
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "made",
            [helper.make_tensor_value_info("video", TensorProto.FLOAT, shape)],
            [
                helper.make_tensor_value_info(
                    "logits", TensorProto.FLOAT, list("abcd")[: len(shape)]
                )
            ],
            list(weights),
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return model


def through(kind, *nodes, weights=(), **options):
    """Cast `video` to a type, run the nodes from `x` to `y` in it, and cast to float32."""
    up = helper.make_node("Cast", ["y"], ["logits"], to=TensorProto.FLOAT)
    down = helper.make_node("Cast", ["video"], ["x"], to=KINDS[kind])
    return graph_of([down, *nodes, up], weights, **options)


def typed(values, kind, name):
    return helper.make_tensor(name, KINDS[kind], values.shape, values.ravel().tolist())


def rounded(values, kind):
    """Round to the nearest number of the type (ties to even), by hand."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float64))
    scale = 2.0 ** DIGITS[kind]
    return np.ldexp(np.round(mantissa * scale) / scale, exponent)


def run(model, video, precision="fp16", **options):
    with ReferenceRunner(model, precision, **options) as runner:
        return runner.run({"video": np.asarray(video, np.float32)})


@pytest.mark.parametrize("kind", EVALUATED)
def test_every_operator_rounds_to_its_output_type(kind):
    video = np.random.default_rng(0).uniform(1, 2, (3, 4))
    model = through(kind, helper.make_node("Mul", ["x", "x"], ["y"]))
    got = run(model, video, kind)["logits"]
    np.testing.assert_array_equal(got, rounded(rounded(np.float32(video), kind) ** 2, kind))
    assert got.dtype == np.float32


def test_float16_overflows_as_on_a_gpu_and_without_a_warning():
    model = through("fp16", helper.make_node("Mul", ["x", "x"], ["y"]))
    got = run(model, [[255.0, 256.0, -300.0, 1e-5]])["logits"]
    np.testing.assert_array_equal(np.isinf(got), [[False, True, True, False]])
    assert got[0, 3] == 0.0  # 1e-10 is below the smallest float16


def test_bfloat16_has_the_range_of_float32():
    model = through("bf16", helper.make_node("Mul", ["x", "x"], ["y"]))
    assert np.isfinite(run(model, [[1e4, 1e15, -1e18, 1.0]], "bf16")["logits"]).all()


def test_zero_over_zero_is_nan_without_a_warning():
    model = through("fp16", helper.make_node("Div", ["x", "x"], ["y"]))
    assert np.isnan(run(model, np.zeros((1, 4)))["logits"]).all()


@pytest.mark.parametrize("kind", EVALUATED)
def test_a_product_adds_in_float32_and_rounds_once(kind):
    """The row is 4096 and 4096 x 1/4. A sum in the type itself loses each quarter."""
    row = np.array([4096.0] + [0.25] * 4096)
    weight = typed(np.ones((4097, 2)), kind, "w")
    model = through(
        kind,
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        weights=[weight],
        shape=("batch", 4097),
    )
    got = run(model, row[None], kind)["logits"]
    np.testing.assert_array_equal(got, np.full((1, 2), 5120.0))


@pytest.mark.parametrize("kind", EVALUATED)
def test_a_product_equals_the_rounded_float32_product(kind):
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 3, 5, 7)), rng.standard_normal((3, 7, 4))
    model = through(
        kind,
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        weights=[typed(b, kind, "w")],
        shape=("batch", 3, 5, 7),
    )
    got = run(model, a, kind)["logits"]
    exact = rounded(np.float32(a), kind) @ rounded(np.float32(b), kind)
    assert got.shape == (2, 3, 5, 4)
    # The error is one rounding to the type, plus the rounding of the float32 sums.
    np.testing.assert_allclose(got, exact, rtol=2.0 ** -DIGITS[kind] * 1.01, atol=1e-5)
    np.testing.assert_array_equal(got, rounded(got, kind))


def test_a_product_in_float32_is_not_rounded():
    a, b = np.random.default_rng(2).standard_normal((2, 8, 8)).astype(np.float32)
    node = helper.make_node("MatMul", ["video", "w"], ["logits"])
    model = graph_of([node], [numpy_helper.from_array(b, "w")], shape=(8, 8))
    np.testing.assert_allclose(run(model, a, "fp32")["logits"], a @ b, rtol=1e-5, atol=1e-6)


def test_a_product_above_float16_is_infinite():
    model = through(
        "fp16",
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        weights=[typed(np.full((4, 1), 200.0), "fp16", "w")],
    )
    got = run(model, [[100.0] * 4, [50.0] * 4])["logits"]
    np.testing.assert_array_equal(got, [[np.inf], [40_000.0]])


def test_every_value_is_available_by_its_name():
    nodes = [helper.make_node("Mul", ["x", "x"], ["z"]), helper.make_node("Neg", ["z"], ["y"])]
    model, video = through("fp16", *nodes), [[1.0, 2.0, 3.0, 4.0]]
    assert set(run(model, video)) == {"logits"}
    values = run(model, video, every_value=True)
    assert set(values) >= {"x", "z", "y", "logits"}
    np.testing.assert_array_equal(values["z"], [[1, 4, 9, 16]])
    assert values["z"].dtype == np.float16


def test_a_file_gives_the_same_as_a_model_in_memory(tmp_path):
    model = through("fp16", helper.make_node("Neg", ["x"], ["y"]))
    onnx.save(model, tmp_path / "model.onnx")
    got = run(tmp_path / "model.onnx", [[1.0, 2.0, 3.0, 4.0]])["logits"]
    np.testing.assert_array_equal(got, [[-1, -2, -3, -4]])


def test_it_names_its_runtime_device_and_inputs():
    with ReferenceRunner(through("bf16", helper.make_node("Neg", ["x"], ["y"])), "bf16") as runner:
        assert (runner.name, runner.device) == ("onnx-reference", "cpu")
        assert (runner.precision, runner.threads) == ("bf16", 1)
        assert runner.input_shapes == {"video": (None, 4)}
        assert runner.transfers_included


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"clip": np.zeros((1, 4), np.float32)},
        {"video": np.zeros((1, 5), np.float32)},
        {"video": np.zeros(4, np.float32)},
        {"video": np.zeros((1, 4), np.float32), "mask": np.zeros(1)},
    ],
    ids=["none", "name", "size", "axes", "one more"],
)
def test_wrong_inputs_are_refused_in_one_line(inputs):
    model = through("fp16", helper.make_node("Neg", ["x"], ["y"]))
    with ReferenceRunner(model, "fp16") as runner, pytest.raises(RuntimeFailure) as caught:
        runner.run(inputs)
    assert "onnx-reference" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_operator_is_one_line():
    node = helper.make_node("Unheard", ["video"], ["logits"], domain="of.others")
    graph = helper.make_graph(
        [node],
        "made",
        [helper.make_tensor_value_info("video", TensorProto.FLOAT, (1, 4))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["a", "b"])],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("of.others", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    with pytest.raises(RuntimeFailure, match="does not load it") as caught:
        ReferenceRunner(model, "fp16")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_a_graph_is_one_line(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph at all\n" * 9)
    with pytest.raises(RuntimeFailure) as caught:
        ReferenceRunner(tmp_path / "model.onnx", "fp16")
    assert "\n" not in str(caught.value)


def test_a_run_that_fails_is_one_line():
    model = through(
        "fp16",
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        weights=[typed(np.ones((3, 1)), "fp16", "w")],
    )
    with ReferenceRunner(model, "fp16") as runner, pytest.raises(RuntimeFailure) as caught:
        runner.run({"video": np.zeros((1, 4), np.float32)})
    assert "failed" in str(caught.value)
    assert "\n" not in str(caught.value)
