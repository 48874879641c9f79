"""The exported graph has the expected content, and the check finds forbidden content."""

import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from exporter.errors import OnnxError
from exporter.spec import DEFAULT_OPSET, OPSETS, BatchProfile, ExportSpec
from exporter.to_onnx.export import check_onnx, export_onnx, find_unfit
from model import FastTimeSformer

MECHANISMS = ("fastformer", "performer", "regular")
COMBINATIONS = [(attn, scheme) for attn in MECHANISMS for scheme in ("divided", "joint")]
FRAMES, HEIGHT, WIDTH = 3, 32, 48
FORBIDDEN = {"Einsum", "If", "Loop", "Scan", "Cast", "Where", "Shape", "Expand", "Pow", "Sqrt"}
REARRANGING = {
    "Transpose",
    "Reshape",
    "Slice",
    "Gather",
    "Concat",
    "Unsqueeze",
    "Squeeze",
    "Expand",
}
# Matrix products of one block. Each attention has q and k twice (once swapped, for the rotation),
# v, the output, and the products of the mechanism itself. The feed-forward has gate, value and
# output, once for the class token and once for the patches. The last block has no feed-forward for
# the patches, since the head reads only the class token. Divided has a second attention, and fc_t.
ATTENTION = {"regular": 6 + 2, "fastformer": 6 + 4, "performer": 6 + 4}
MATMULS = {
    (attn, scheme): (2 * ATTENTION[attn] + 1 if scheme == "divided" else ATTENTION[attn]) + 6
    for attn, scheme in COMBINATIONS
}


def make(attn="fastformer", scheme="divided", depth=1, seed=0, **changes):
    sizes = {"num_classes": 2, "dim": 32, "dim_head": 16, "depth": depth, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FastTimeSformer(
            FRAMES, 3, HEIGHT, WIDTH, attn_mechanism=attn, attn_type=scheme, **sizes
        ).eval()


def write(path, model=None, batch=1, **options):
    example = torch.zeros(batch, FRAMES, 3, HEIGHT, WIDTH)
    model = make() if model is None else model
    return export_onnx(model, {"video": example}, path, **{"opset": DEFAULT_OPSET, **options})


@pytest.fixture(scope="module", params=COMBINATIONS, ids="-".join)
def written(request, tmp_path_factory, slow):
    """A combination, its file, the summary of the file, and the graph with all types inferred."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    described = write(path, make(*request.param), batch=2, metadata={"tsformer.note": "mine"})
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True)
    return request.param, path, described, graph


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "model.onnx"
    write(path)
    return path


# --- structure, for every mechanism and scheme


@pytest.mark.slow
def test_inputs_and_outputs_are_those_of_the_contract(written):
    _, path, described, model = written
    (video,), (logits,) = described.inputs, described.outputs
    assert (video.name, video.dtype, video.shape) == ("video", "float32", (2, 3, 3, 32, 48))
    assert (logits.name, logits.dtype, logits.shape) == ("logits", "float32", (2, 2))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(x.name, x.shape) for x in session.get_inputs()] == [("video", [2, 3, 3, 32, 48])]
    assert [(x.name, x.shape) for x in session.get_outputs()] == [("logits", [2, 2])]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", DEFAULT_OPSET)]


def test_every_value_has_a_static_shape(written):
    *_, model = written
    known = {value.name: value.type.tensor_type for value in model.graph.value_info}
    for node in model.graph.node:
        for name in set(node.output) - {"logits"}:
            assert all(dim.HasField("dim_value") for dim in known[name].shape.dim), name


def test_the_graph_has_no_operator_or_type_that_runtimes_compute_badly(written):
    *_, model = written
    graph = model.graph
    assert not {node.op_type for node in graph.node} & FORBIDDEN
    assert not {node.domain for node in graph.node} - {""}
    assert not model.functions
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    made = {name for node in graph.node for name in node.output if name != "logits"}
    # With a static batch every shape is a constant, so all computed values are float32.
    assert {kinds[name] for name in made} == {TensorProto.FLOAT}
    weights = Counter(weight.data_type for weight in graph.initializer)
    assert set(weights) <= {TensorProto.FLOAT, TensorProto.INT64}
    assert find_unfit(model) == []


def test_weights_are_rearranged_before_the_export_not_in_the_graph(written):
    *_, model = written
    constant = {weight.name for weight in model.graph.initializer} | {""}
    constant |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    for node in model.graph.node:
        assert not set(node.input) <= constant, f"{node.op_type} {node.name} is a constant"
        if node.op_type in REARRANGING:
            assert node.input[0] not in constant or node.op_type == "Concat", node.name


def test_softmax_and_norm_run_over_the_last_axis(written):
    *_, model = written
    for node in model.graph.node:
        if node.op_type in ("Softmax", "LayerNormalization"):
            axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
            shapes = {v.name: len(v.type.tensor_type.shape.dim) for v in model.graph.value_info}
            assert axis in (-1, shapes[node.output[0]] - 1), node.name


def test_every_node_and_weight_is_used(written):
    *_, model = written
    used = {name for node in model.graph.node for name in node.input} | {"logits"}
    assert {weight.name for weight in model.graph.initializer} <= used
    assert all(set(node.output) & used for node in model.graph.node)


def test_the_number_of_matrix_products_is_as_expected(written):
    combination, _, described, _ = written
    # The only block is the last block.
    assert described.ops["MatMul"] == MATMULS[combination] - 3
    assert described.ops["Gemm"] == 1  # the classifier
    assert described.ops["Conv"] == 1  # the patch embedding


def test_the_summary_agrees_with_the_file(written):
    _, path, described, model = written
    assert described.file_bytes == path.stat().st_size
    assert described.nodes == len(model.graph.node) == sum(described.ops.values())
    assert described.opset == DEFAULT_OPSET
    # The weights are inside the file.
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    floats = [w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT]
    assert described.parameters == sum(int(np.prod(w.dims)) for w in floats)


def test_the_file_has_the_metadata_and_no_path_of_this_machine(written):
    _, path, _, model = written
    assert {"tsformer.note": "mine"}.items() <= {
        p.key: p.value for p in model.metadata_props
    }.items()
    assert model.producer_name == "tsformer"
    content = path.read_bytes()
    root = Path(__file__).parents[3]
    for place in (root, Path.home(), Path(torch.__file__).parent, path.parent):
        assert bytes(place) not in content, place
    assert b".py" not in content


# --- sizes


@pytest.mark.slow
@pytest.mark.parametrize("attn", ["fastformer"])
def test_each_block_adds_the_same_operators(tmp_path, attn):
    two = Counter(write(tmp_path / "2.onnx", make(attn, depth=2)).ops)
    three = Counter(write(tmp_path / "3.onnx", make(attn, depth=3)).ops)
    assert (three - two)["MatMul"] == MATMULS[attn, "divided"]
    assert (three - two)["LayerNormalization"] == 4  # time, space, and the feed-forward twice
    assert not {"Conv", "Gemm"} & set(three - two)


@pytest.mark.slow
def test_operators_do_not_depend_on_batch_or_heads(tmp_path, plain):
    expected = check_onnx(plain).ops
    assert write(tmp_path / "batch.onnx", batch=3).ops == expected
    assert write(tmp_path / "heads.onnx", make(dim_head=8)).ops == expected


@pytest.mark.slow
def test_rotary_tables_are_shared_by_the_blocks(tmp_path):
    write(tmp_path / "model.onnx", make(depth=2))
    weights = [w.name for w in onnx.load(tmp_path / "model.onnx").graph.initializer]
    assert sorted(name for name in weights if name.startswith("rotary")) == [
        "rotary.cos_s",
        "rotary.cos_t",
        "rotary.sin_s",
        "rotary.sin_t",
    ]


# --- the file


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes(tmp_path, plain):
    again = write(tmp_path / "elsewhere.onnx")
    assert (tmp_path / "elsewhere.onnx").read_bytes() == plain.read_bytes()
    assert again.sha256 == check_onnx(plain).sha256


@pytest.mark.slow
def test_another_model_gives_other_bytes(tmp_path, plain):
    write(tmp_path / "model.onnx", make(seed=1))
    assert (tmp_path / "model.onnx").read_bytes() != plain.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("opset", [OPSETS.start, OPSETS.stop - 1])
def test_the_graph_has_the_requested_opset(tmp_path, opset):
    described = write(tmp_path / "model.onnx", opset=opset)
    assert described.opset == opset
    (stamp,) = onnx.load(tmp_path / "model.onnx").opset_import
    assert stamp.version == opset


@pytest.mark.slow
def test_exporting_changes_neither_the_model_nor_the_logger(tmp_path):
    model, logger = make(), logging.getLogger("torch.onnx")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    level = logger.level
    write(tmp_path / "model.onnx", model)
    assert logger.level == level
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.slow
def test_exporting_prints_nothing(tmp_path, capfd):
    write(tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


# --- dynamic and static batch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attn", "profile"),
    [*((attn, (1, 2, 4)) for attn in MECHANISMS), ("fastformer", (1, 1, 1))],
)
def test_a_dynamic_batch_is_the_only_free_axis(tmp_path, attn, profile):
    path, model = tmp_path / "model.onnx", make(attn)
    described = write(path, model, dynamic_batch=BatchProfile(*profile))
    (video,), (logits,) = described.inputs, described.outputs
    assert (video.shape, logits.shape) == (("batch", 3, 3, 32, 48), ("batch", 2))
    assert find_unfit(onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)) == []
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 3, 5):
        clip = np.random.default_rng(batch).standard_normal((batch, 3, 3, 32, 48), np.float32)
        with torch.inference_mode():
            expected = model(torch.from_numpy(clip)).numpy()
        got = session.run(None, {"video": clip})[0]
        assert got.shape == (batch, 2)
        assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.slow
def test_a_static_graph_refuses_another_batch(plain):
    session = onnxruntime.InferenceSession(plain, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match=r"Got: 2 Expected: 1"):
        session.run(None, {"video": np.zeros((2, 3, 3, 32, 48), np.float32)})


# --- models and files that are refused


class DataDependent(nn.Module):
    def forward(self, video):
        return video.flatten(1)[:, :2] * (2 if video.sum() > 0 else 3)


class WithEinsum(nn.Module):
    def forward(self, video):
        return torch.einsum("bfchw,bfchw->bc", video, video)


class InFloat64(nn.Module):
    def forward(self, video):
        return video.double().mean((1, 3, 4)).float()


def test_a_model_that_cannot_be_exported_gives_an_error_of_one_line(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(OnnxError) as caught:
        write(path, DataDependent())
    message = str(caught.value)
    assert message.startswith("torch could not export the model")
    assert "\n" not in message
    assert "\x1b" not in message  # torch colours its errors
    assert "--debug" in message
    assert not path.exists()


@pytest.mark.parametrize(("model", "words"), [(WithEinsum(), "Einsum"), (InFloat64(), "float64")])
def test_a_graph_that_is_not_fit_for_the_runtimes_is_refused(tmp_path, model, words):
    with pytest.raises(OnnxError, match=f"not fit for the runtimes: .*{words}"):
        write(tmp_path / "model.onnx", model)


def press_ctrl_c():
    raise KeyboardInterrupt


class Interrupted(nn.Module):
    """Turn Ctrl-C into another error, as torch does when Ctrl-C arrives during an import."""

    def forward(self, video):
        try:
            press_ctrl_c()
        except KeyboardInterrupt:
            raise AttributeError("module 'torch._dynamo' has no attribute 'exc'") from None


def test_ctrl_c_while_torch_exports_raises_keyboard_interrupt(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model.onnx", Interrupted())


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\x08\x07", b"text\n" * 1000],
    ids=["empty", "word", "bare", "text"],
)
def test_a_file_that_is_not_an_onnx_graph_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(OnnxError, match=r"model\.onnx is not a valid ONNX graph") as caught:
        check_onnx(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_graph_is_refused(tmp_path, plain):
    path = tmp_path / "model.onnx"
    path.write_bytes(plain.read_bytes()[:-1000])
    with pytest.raises(OnnxError, match="not a valid ONNX graph"):
        check_onnx(path)


def test_a_graph_with_inconsistent_shapes_is_refused(tmp_path, plain):
    model = onnx.load(plain)
    classifier = next(w for w in model.graph.initializer if w.name == "to_out.fn.weight")
    classifier.CopyFrom(numpy_helper.from_array(np.zeros((2, 31), np.float32), classifier.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(OnnxError, match="not a valid ONNX graph"):
        check_onnx(tmp_path / "model.onnx")


# --- find_unfit, on graphs made by hand


def graph_of(*nodes, weights=(), inputs=("x",), output=("y", TensorProto.FLOAT)):
    """Make a graph with inferred types. Inputs are int64 if named i..., float32 otherwise."""
    kinds = {True: TensorProto.INT64, False: TensorProto.FLOAT}
    made = helper.make_graph(
        [
            helper.make_node(*n[:3], name=f"{n[0]}_{i}", **(n[3] if len(n) > 3 else {}))
            for i, n in enumerate(nodes)
        ],
        "graph",
        [helper.make_tensor_value_info(n, kinds[n[0] == "i"], [2, 3]) for n in inputs],
        [helper.make_tensor_value_info(output[0], output[1], None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)])
    return onnx.shape_inference.infer_shapes(model)


def branch(kind=TensorProto.FLOAT):
    node = helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(np.float32(1)))
    return helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("b", kind, [])])


TRUE = ("c", np.array(True))
LOOP = helper.make_graph(
    [helper.make_node("Identity", ["k"], ["l"]), helper.make_node("Identity", ["v"], ["w"])],
    "body",
    [
        helper.make_tensor_value_info("n", TensorProto.INT64, []),
        helper.make_tensor_value_info("k", TensorProto.BOOL, []),
        helper.make_tensor_value_info("v", TensorProto.FLOAT, [2, 3]),
    ],
    [
        helper.make_tensor_value_info("l", TensorProto.BOOL, []),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3]),
    ],
)
ONE = ("one", np.ones(1, np.int64))
DOUBLE = TensorProto.DOUBLE
UNFIT = {
    "einsum": (graph_of(("Einsum", ["x", "x"], ["y"], {"equation": "ab,ab->a"})), "is Einsum"),
    "if": (
        graph_of(
            ("If", ["c"], ["y"], {"then_branch": branch(), "else_branch": branch()}), weights=[TRUE]
        ),
        "is If",
    ),
    "loop": (graph_of(("Loop", ["", "c", "x"], ["y"], {"body": LOOP}), weights=[TRUE]), "is Loop"),
    "float64 within": (
        graph_of(("Cast", ["x"], ["d"], {"to": DOUBLE}), ("Cast", ["d"], ["y"], {"to": 1})),
        "d is float64",
    ),
    "float64 weight": (
        graph_of(
            ("Cast", ["w"], ["s"], {"to": 1}),
            ("Add", ["x", "s"], ["y"]),
            weights=[("w", np.ones(1))],
        ),
        "w is float64",
    ),
    "float64 output": (
        graph_of(("Cast", ["x"], ["y"], {"to": DOUBLE}), output=("y", DOUBLE)),
        "y is float64",
    ),
    "int64 output": (
        graph_of(
            ("Add", ["i", "one"], ["y"]),
            weights=[ONE],
            inputs=["i"],
            output=("y", TensorProto.INT64),
        ),
        "int64 Add outside shapes",
    ),
    "int64 that becomes a float output": (
        graph_of(
            ("Mul", ["i", "one"], ["j"]),
            ("Cast", ["j"], ["y"], {"to": 1}),
            weights=[ONE],
            inputs=["i"],
        ),
        "int64 Mul outside shapes",
    ),
    "int64 that becomes a float factor": (
        graph_of(
            ("Sub", ["i", "one"], ["j"]),
            ("Cast", ["j"], ["f"], {"to": 1}),
            ("Mul", ["x", "f"], ["y"]),
            weights=[ONE],
            inputs=["x", "i"],
        ),
        "int64 Sub outside shapes",
    ),
    "int64 that becomes positions, as in the published rotary": (
        graph_of(
            ("Mul", ["i", "one"], ["j"]),
            ("Cast", ["j"], ["f"], {"to": 1}),
            ("Sin", ["f"], ["s"]),
            ("MatMul", ["x", "s"], ["y"]),
            weights=[ONE],
            inputs=["x", "i"],
        ),
        "int64 Mul outside shapes",
    ),
    "int64 matrix product": (
        graph_of(
            ("MatMul", ["i", "w"], ["j"]),
            ("Cast", ["j"], ["f"], {"to": 1}),
            ("Exp", ["f"], ["y"]),
            weights=[("w", np.ones((3, 3), np.int64))],
            inputs=["i"],
        ),
        "MatMul of int64",
    ),
    "shape that is used as a number too": (
        graph_of(
            ("Shape", ["x"], ["s"]),
            ("Mul", ["s", "one"], ["t"]),
            ("Reshape", ["x", "t"], ["r"]),
            ("Cast", ["t"], ["f"], {"to": 1}),
            ("ReduceMax", ["f"], ["m"]),
            ("Mul", ["r", "m"], ["y"]),
            weights=[ONE],
        ),
        "int64 Mul outside shapes",
    ),
}
FIT = {
    "float": graph_of(("Add", ["x", "x"], ["y"])),
    "shape of reshape": graph_of(
        ("Shape", ["x"], ["s"]),
        ("Mul", ["s", "one"], ["t"]),
        ("Reshape", ["x", "t"], ["y"]),
        weights=[ONE],
    ),
    "shape put together": graph_of(
        ("Shape", ["x"], ["s"]),
        ("Gather", ["s", "first"], ["b"]),
        ("Mul", ["b", "three"], ["bf"]),
        ("Concat", ["bf", "one"], ["t"], {"axis": 0}),
        ("Reshape", ["x", "t"], ["y"]),
        weights=[ONE, ("first", np.zeros(1, np.int64)), ("three", np.full(1, 3, np.int64))],
    ),
    "ends of slice": graph_of(
        ("Shape", ["x"], ["s"]),
        ("Sub", ["s", "one"], ["e"]),
        ("Slice", ["x", "starts", "e"], ["y"]),
        weights=[ONE, ("starts", np.zeros(2, np.int64))],
    ),
    "shape of expand": graph_of(
        ("Shape", ["x"], ["s"]),
        ("Add", ["s", "zero"], ["t"]),
        ("Expand", ["x", "t"], ["y"]),
        weights=[("zero", np.zeros(2, np.int64))],
    ),
}


@pytest.mark.parametrize(("model", "words"), UNFIT.values(), ids=UNFIT)
def test_find_unfit_names_the_forbidden_part(model, words):
    assert words in "; ".join(find_unfit(model))


@pytest.mark.parametrize("model", FIT.values(), ids=FIT)
def test_find_unfit_accepts_a_valid_graph(model):
    assert find_unfit(model) == []


# --- a whole export


@pytest.mark.slow
def test_the_metadata_of_an_export_describes_its_model(exported):
    model = onnx.load(exported("regular").directory / "model.onnx")
    said = {p.key: p.value for p in model.metadata_props}
    config = json.loads(said["tsformer.config"])
    assert said["tsformer.family"] == "fast_timesformer"
    assert said["tsformer.precision"] == "fp32"
    assert config["attn_mechanism"] == "regular"
    assert json.loads(said["tsformer.preprocessing"])["mean"] == [0.0, 0.0, 0.0]
    assert ExportSpec.from_dict(exported("regular").report.spec).attn == "regular"
