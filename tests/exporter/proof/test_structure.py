"""Test that structure is judged apart from rounding, on graphs of every precision."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporter import ExportSpec
from exporter.files.manifest import sha256
from exporter.files.reference import (
    REFERENCE,
    KeptReference,
    Structure,
    read_reference,
    write_reference,
)
from exporter.graph.raised import raise_graph
from exporter.graph.weights import (
    Values,
    changed_weights,
    coarse_weights,
    find_stored,
    foreign_casts,
    hash_weights,
    real_weights,
)
from exporter.inputs.clips import Inputs
from exporter.pipeline import export
from exporter.precision import in_precision
from exporter.proof.exact import ExactModel
from exporter.proof.prove import find_unknown
from exporter.proof.rows import in_growing_batches
from exporter.proof.structure import compared_inputs, structures_of
from exporter.runners.exact import ExactRunner
from exporter.target.verify import verify
from exporter.to_onnx.export import export_onnx
from model import FastTimeSformer, SpaceTimeTransformer, TimeSformerViT
from model.config import SpaceTimeConfig

DEEP = {"dim": 32, "dim_head": 16, "frames": 3, "res": (32, 48), "depth": 1, "num_classes": 5}


def graph(nodes, arrays, kind=TensorProto.FLOAT, opset=21):
    x, y = (helper.make_tensor_value_info(name, kind, ["n", 4]) for name in ("x", "y"))
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    made = [helper.make_node(op, given, out, **more) for op, given, out, more in nodes]
    return helper.make_model(
        helper.make_graph(made, "g", [x], [y], weights),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )


def run(model, x):
    with ExactRunner(raise_graph(model)) as runner:
        return runner.run({"x": x})["y"]


X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)


def test_a_raised_graph_rounds_nothing():
    half = W.astype(np.float16)
    nodes = [
        ("Cast", ["x"], ["h"], {"to": TensorProto.FLOAT16}),
        ("MatMul", ["h", "w"], ["m"], {}),
        ("Gelu", ["m"], ["g"], {}),
        ("Cast", ["g"], ["f"], {"to": TensorProto.FLOAT}),
        ("LayerNormalization", ["f", "s"], ["y"], {"epsilon": 1e-5}),
    ]
    found = run(graph(nodes, {"w": half, "s": np.ones(4, np.float32)}), X)
    z = torch.nn.functional.gelu(torch.from_numpy(X.astype(float) @ half.astype(float)))
    expected = torch.nn.functional.layer_norm(z, (4,), eps=float(np.float32(1e-5)))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-13)


def quantised(step_before, step_after):
    nodes = [
        ("QuantizeLinear", ["x", "a", "z"], ["q"], {}),
        ("DequantizeLinear", ["q", "b", "z"], ["y"], {}),
    ]
    steps = {"a": np.float32(step_before), "b": np.float32(step_after), "z": np.uint8(7)}
    return graph(nodes, {name: np.asarray(value) for name, value in steps.items()})


def test_the_rounding_of_activations_is_the_identity():
    np.testing.assert_allclose(run(quantised(0.5, 0.5), X), X, rtol=1e-14, atol=1e-14)


def test_two_scales_of_an_activation_are_no_identity():
    np.testing.assert_allclose(run(quantised(0.5, 0.65), X), 1.3 * X, rtol=1e-6, atol=1e-6)


def test_weights_stored_as_integers_are_found_in_both_forms():
    levels, steps = np.arange(16, dtype=np.int8).reshape(4, 4), np.array([0.5, 1, 2, 4], "f")
    nodes = [
        ("DequantizeLinear", ["l", "s"], ["w"], {"axis": 1}),
        ("Cast", ["k"], ["c"], {"to": TensorProto.FLOAT}),
        ("Mul", ["c", "t"], ["v"], {}),
        ("MatMul", ["x", "w"], ["m"], {}),
        ("MatMul", ["m", "v"], ["y"], {}),
    ]
    arrays = {"l": levels, "s": steps, "k": levels, "t": steps[None]}
    found = find_stored(graph(nodes, arrays))
    assert [(one.name, one.scale) for one in found] == [("l", "s"), ("k", "t")]
    for one in found:
        np.testing.assert_array_equal(one.values, levels * steps.astype(float))


def test_the_zero_of_stored_weights_is_subtracted_before_they_are_scaled():
    levels, steps = np.arange(16, dtype=np.uint8).reshape(4, 4), np.array([0.5, 1, 2, 4], "f")
    arrays = {"l": levels, "s": steps, "z": np.array([3, 0, 7, 1], np.uint8)}
    nodes = [
        ("DequantizeLinear", ["l", "s", "z"], ["w"], {"axis": 0}),
        ("MatMul", ["x", "w"], ["y"], {}),
    ]
    (found,) = find_stored(graph(nodes, arrays))
    expected = (levels - arrays["z"].astype(float)[:, None]) * steps[:, None]
    np.testing.assert_array_equal(found.values, expected)


def test_a_weight_that_no_tensor_holds_is_named():
    changed = W.copy()
    changed[2, 3] *= 1.001
    arrays = {"same": W.T.copy(), "repeated": np.tile(W, (2, 1)), "other": changed}
    held = [W, np.zeros((2, 2), np.float32)]
    weights, held = real_weights(graph([], arrays)), Values(held)
    assert [name for name, array in weights.items() if array not in held] == ["other"]


def test_a_changed_weight_is_named():
    one, other = graph([], {"a": W, "b": W}), graph([], {"a": W, "b": W + 1, "c": W})
    assert changed_weights(other, hash_weights(one)) == ["b", "c"]
    assert changed_weights(one, hash_weights(one)) == []


def test_a_value_that_is_rounded_by_the_scale_of_another_is_named():
    scales = {"a": np.float32(0.1), "b": np.float32(0.2), "z": np.int8(0)}
    nodes = [
        ("QuantizeLinear", ["x", "a", "z"], ["q"], {}),
        ("DequantizeLinear", ["q", "a", "z"], ["d"], {}),
        ("QuantizeLinear", ["d", "b", "z"], ["r"], {}),
        ("DequantizeLinear", ["r", "b", "z"], ["y"], {}),
    ]
    one, other = graph(nodes, scales), graph(nodes, scales)
    for node in other.graph.node[:2]:
        node.input[1] = "b"
    assert changed_weights(one, hash_weights(one)) == []
    assert changed_weights(other, hash_weights(one)) == ["(nodes)", "q"]
    without = graph([("Identity", ["x"], ["y"], {})], scales)
    assert changed_weights(without, hash_weights(one)) == ["(nodes)", "q", "r"]
    of_an_older_version = {name: hash_weights(one)[name] for name in scales}
    assert changed_weights(one, of_an_older_version) == []


def cast_through(*kinds):
    names = ["x", *(f"c{i}" for i in range(len(kinds) - 1)), "y"]
    steps = zip(names, names[1:], kinds, strict=False)
    return graph([("Cast", [a], [b], {"to": kind}) for a, b, kind in steps], {})


def test_a_value_that_is_cast_to_another_type_is_named():
    one = cast_through(TensorProto.FLOAT16, TensorProto.FLOAT)
    other = cast_through(TensorProto.BFLOAT16, TensorProto.FLOAT)
    assert changed_weights(one, hash_weights(one)) == []
    assert changed_weights(other, hash_weights(one)) == ["(nodes)", "c0"]
    without = graph([("Identity", ["x"], ["y"], {})], {})
    assert changed_weights(without, hash_weights(one)) == ["(nodes)", "c0", "y"]
    assert changed_weights(one, {}) == []  # of an older version, which did not hash casts


def test_another_operator_is_named_though_no_weight_differs():
    one, other = (graph([(op, ["x"], ["y"], {})], {"a": W}) for op in ("Identity", "Relu"))
    assert changed_weights(other, hash_weights(one)) == ["(nodes)"]
    of_an_older_version = {n: h for n, h in hash_weights(one).items() if n != "(nodes)"}
    assert changed_weights(one, of_an_older_version) == []


@pytest.mark.parametrize(
    ("precision", "expected"), [("fp32", ("c0",)), ("fp16", ()), ("bf16", ("c0",))]
)
def test_a_cast_to_a_type_that_a_precision_does_not_have_is_named(precision, expected):
    made = cast_through(TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64)
    assert foreign_casts(made, precision) == expected


@pytest.mark.parametrize(("bits", "expected"), [(8, ()), (7, ()), (6, ("l",)), (5, ("l",))])
@pytest.mark.parametrize("zero", [False, True])
def test_weights_stored_in_fewer_bits_are_named(bits, expected, zero):
    weight = W * [0 if zero else 1, 1, 1, 1]  # a channel of zeros has any step
    largest = 2 ** (bits - 1) - 1
    steps = np.abs(weight).max(0) / largest
    steps[steps == 0] = 1
    levels = np.rint(weight / steps).astype(np.int8)
    nodes = [
        ("DequantizeLinear", ["l", "s"], ["w"], {"axis": 1}),
        ("MatMul", ["x", "w"], ["y"], {}),
    ]
    made = graph(nodes, {"l": levels, "s": steps.astype(np.float32)})
    assert coarse_weights(made) == expected


@pytest.mark.parametrize(("step", "expected"), [(0.0, ()), (1.0, ("l",))])
def test_a_channel_of_zeros_holds_no_small_weights(step, expected):
    """A step of 1 rounds all of them to 0, each by less than half a step."""
    weight = np.array([[0.004, 0.5], [-0.002, 0.25]], np.float32)  # (i, o)
    steps = np.maximum(np.abs(weight).max(0) / 127, [step, 0]).astype(np.float32)
    levels = np.round(weight / steps).astype(np.int8)
    nodes = [
        ("DequantizeLinear", ["l", "s"], ["w"], {"axis": 1}),
        ("MatMul", ["x", "w"], ["y"], {}),
    ]
    linear = torch.nn.Linear(2, 2, bias=False)
    linear.weight.data = torch.from_numpy(weight.T.copy())
    clips = {"x": np.ones((1, 2), np.float32)}
    with ExactModel(linear, clips, graph(nodes, {"l": levels, "s": steps})) as exact:
        assert exact.unknown == expected


def test_a_channel_with_the_least_step_of_fp16_holds_its_weights_exactly():
    steps = np.array([2.0**-24, 1.0], np.float16)
    arrays = {"l": np.array([[3, 0], [-5, 127]], np.int8), "s": steps}
    (one,) = find_stored(graph([("DequantizeLinear", ["l", "s"], ["w"], {"axis": 1})], arrays))
    assert one.spans(one.values)
    assert not one.spans(0.4 * one.values)


def kept_model():
    torch.manual_seed(0)
    model = FastTimeSformer(2, 3, 32, 32, 3, dim=24, dim_head=12, depth=2, attn_mechanism="regular")
    return in_precision(model.eval(), "bf16", [r"blocks\.1\..*"])


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Give a model with the last block in float32, its graph and one clip."""
    model, clip = kept_model(), torch.zeros(1, 2, 3, 32, 32)
    path = tmp_path_factory.mktemp("kept") / "model.onnx"
    export_onnx(model, {"video": clip}, path, opset=22)
    return model, onnx.load(path), {"video": clip.numpy()}


def insert_after(graph, value, *nodes):
    """Insert operators `(op, attributes)` between a value and its readers."""
    place = next(i for i, node in enumerate(graph.node) if value in node.output)
    graph.node[place].output[:] = ["inner"]
    names = ["inner", *(f"planted_{i}" for i in range(len(nodes) - 1)), value]
    for i, (op, given, attributes) in enumerate(nodes):
        made = helper.make_node(op, [names[i], *given], [names[i + 1]], **attributes)
        graph.node.insert(place + 1 + i, made)


def last_softmax(graph):
    return [node.output[0] for node in graph.node if node.op_type == "Softmax"][-1]


ROUND = [("Cast", [], {"to": TensorProto.BFLOAT16}), ("Cast", [], {"to": TensorProto.FLOAT})]
BEND = [("Relu", [], {})]
SHIFT = [("Add", ["eight"], {}), ("Sub", ["eight"], {})]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ([], "()"),
        (ROUND, "('planted_0',)"),
        (BEND, "('Relu softmax_3',)"),
        (SHIFT, "('eight', 'Sub softmax_3')"),
    ],
)
def test_a_step_that_float64_does_not_show_is_named(kept, planted, expected):
    model, made, clips = kept
    changed = onnx.ModelProto()
    changed.CopyFrom(made)
    if planted:
        insert_after(changed.graph, last_softmax(changed.graph), *planted)
    if planted is SHIFT:
        changed.graph.initializer.append(numpy_helper.from_array(np.float32(8), "eight"))
    with ExactModel(model, clips, changed) as exact:
        assert str(find_unknown(exact, changed, "bf16", None)) == expected


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [(3, [1], [[0], [1], [2]]), (3, [1, 2, 4], [[0], [1, 2], [0, 1, 2, 0]])],
)
def test_every_clip_is_in_a_batch(count, sizes, expected):
    assert list(in_growing_batches(count, sizes)) == expected


def test_a_large_model_is_compared_on_few_inputs_and_a_small_one_on_all():
    names = ("bikes.mp4", "normal-0", "constant", "checkerboard", "natural")
    inputs = Inputs(names, names, {"video": np.zeros((5, 1, 1, 1, 1), np.float32)})
    assert compared_inputs(inputs, flops=10**6) == (0, 1, 2, 3, 4)
    assert compared_inputs(inputs, flops=10**12) == (3, 4)
    assert compared_inputs(inputs, flops=300 * 10**6) == (1, 3, 4)


@pytest.mark.parametrize("clips", [0, 1, 2])
def test_a_large_model_with_a_mask_is_compared_on_masked_frames_too(clips):
    names = [f"{i}.mp4" for i in range(clips)] + ["normal-0", "checkerboard", "natural"]
    names = (*names, "black", "odd-frames")
    mask = np.ones((len(names), 4), bool)
    mask[1::2, 1:] = False  # every second one, as `gather_inputs` masks them
    inputs = Inputs(names, names, {"video": np.zeros((len(names), 1, 1, 1, 1)), "mask": mask})
    chosen = compared_inputs(inputs, flops=10**12)
    assert {names.index("checkerboard"), names.index("natural")} <= {*chosen}
    assert not mask[list(chosen)].all()
    mask[:] = True
    assert len(compared_inputs(inputs, flops=10**12)) == 2


def test_inputs_that_are_not_here_again_are_left_out_of_the_structure():
    truth = np.arange(6.0).reshape(3, 2)
    one = Structure((0, 2, 4), truth, {})
    kept = KeptReference((), np.zeros((5, 2)), {}, None, {}, structures={"model.onnx": one})
    found = structures_of(kept, (1, 2, 3, 4))["model.onnx"]
    assert found.places == (1, 3)
    np.testing.assert_array_equal(found.truth, truth[1:])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FastTimeSformer(2, 3, 32, 32, 3, dim=48, dim_head=24, depth=1, attn_mechanism="regular")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_truth_has_the_rounded_weights_and_no_other_rounding(model, precision):
    lowered = in_precision(model, precision)
    clips = {"video": np.random.default_rng(0).standard_normal((2, 2, 3, 32, 32)).astype("f")}
    with ExactModel(lowered, clips, graph([], {})) as exact:
        found = exact.run(clips)["logits"]
    with torch.inference_mode():
        whole = in_precision(lowered, "fp64")(torch.from_numpy(clips["video"]).double()).numpy()
        rounded = lowered(torch.from_numpy(clips["video"])).numpy()
    distance = np.linalg.norm(found - whole) / np.linalg.norm(whole)
    # The scale of the logits is folded into weights of the precision, and rounds there once more.
    assert distance < 0.2 * np.linalg.norm(rounded - whole) / np.linalg.norm(whole)
    assert found.dtype == np.float64


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_graph_scales_its_weights_in_float32_as_the_model_does(precision, tmp_path):
    size = {"dim": 24, "dim_head": 12, "depth": 1}  # 12 ** -0.25 is no number of bf16
    model = FastTimeSformer(2, 3, 32, 32, num_classes=3, attn_mechanism="regular", **size)
    lowered = in_precision(model.eval(), precision)
    clip = torch.zeros(1, 2, 3, 32, 32)
    export_onnx(lowered, {"video": clip}, tmp_path / "model.onnx", opset=22)
    made = onnx.load(tmp_path / "model.onnx")
    with ExactModel(lowered, {"video": clip.numpy()}, made) as exact:
        assert exact.unknown == ()


def exact_and_graph(model, path, precision):
    """Return what the exact model and the raised graph compute, and the unknown weights."""
    lowered = in_precision(model.eval(), precision)
    clips = {"video": np.random.default_rng(0).standard_normal((1, 2, 3, 32, 32)).astype("f")}
    export_onnx(lowered, {"video": torch.from_numpy(clips["video"])}, path, opset=22)
    made = onnx.load(path)
    with ExactModel(lowered, clips, made) as exact, ExactRunner(raise_graph(made)) as runner:
        return exact.run(clips)["logits"], runner.run(clips)["logits"], exact.unknown


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_number_has_the_precision_of_what_it_is_multiplied_with(precision, tmp_path):
    """QuickGELU multiplies by 1.702, which a graph of lower precision holds rounded."""
    torch.manual_seed(0)
    model = TimeSformerViT(2, 32, 32, 3, 24, 1, 2, hidden_act="quick_gelu")
    exact, raised, _ = exact_and_graph(model, tmp_path / "model.onnx", precision)
    np.testing.assert_allclose(exact, raised, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_weight_made_of_weights_that_only_weights_meet_is_known(precision, tmp_path):
    """A graph holds the class token with its position before `ln_pre`."""
    torch.manual_seed(0)
    config = SpaceTimeConfig(2, 3, 32, 32, 3, dim=24, depth=1, heads=2, ln_pre=True)
    model = SpaceTimeTransformer(config)
    exact, raised, unknown = exact_and_graph(model, tmp_path / "model.onnx", precision)
    np.testing.assert_allclose(exact, raised, rtol=1e-12)
    assert unknown == ()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Export in a lower precision; tests must not change the result."""
    folder, done = tmp_path_factory.mktemp("structure"), {}

    def get(precision):
        if precision not in done:
            spec = ExportSpec(precision=precision, engine="none", bench_seconds=0.0, **DEEP)
            done[precision] = export(spec, folder / precision)
        return done[precision]

    return get


def structure_of(parity):
    (row,) = (row for row in parity if row.judged == "structure")
    return row


def plant(directory, change):
    """Change the graph, and mend its hash in the manifest and its weights in the reference."""
    path = directory / "model.onnx"
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    kept = read_reference(directory / REFERENCE)
    one = replace(kept.structures["model.onnx"], weights=hash_weights(model))
    write_reference(directory / REFERENCE, replace(kept, structures={"model.onnx": one}))
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in ("model.onnx", REFERENCE):
        manifest["files"][name]["sha256"] = sha256(directory / name)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def swap_frames(graph):
    graph.initializer.append(numpy_helper.from_array(np.array([1, 0, 2]), "order"))
    for node in graph.node:
        node.input[:] = ["swapped" if name == "video" else name for name in node.input]
    graph.node.insert(0, helper.make_node("Gather", ["video", "order"], ["swapped"], axis=1))


def scale_logits(graph):
    graph.initializer.append(numpy_helper.from_array(np.float32(1.001), "factor"))
    graph.node[-1].output[0] = "unscaled"
    graph.node.append(helper.make_node("Mul", ["unscaled", "factor"], ["logits"]))


def scale_a_weight(graph):
    product = next(node for node in graph.node if node.op_type == "Gemm")
    (weight,) = (w for w in graph.initializer if w.name == product.input[1])
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(array * np.float32(1 + 1e-5), weight.name))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8"])
class TestPrecisions:
    def test_the_structure_is_exact(self, made, precision):
        row = structure_of(made(precision).report.parity)
        assert (row.verdict, row.precision, row.reason) == ("pass", precision, "")
        assert row.rel_l2 < 1e-14

    @pytest.mark.parametrize("change", [swap_frames, scale_logits, scale_a_weight])
    def test_a_fault_below_the_rounding_fails(self, made, precision, change, tmp_path):
        copy = shutil.copytree(made(precision).directory, tmp_path / "copy")
        plant(copy, change)
        rows = verify(copy).parity
        assert structure_of(rows).verdict == "fail"
        if change is not swap_frames:  # within the tolerance of the rounding
            assert rows[0].verdict == "pass"
