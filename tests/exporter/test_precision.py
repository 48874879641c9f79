"""Test typed graphs: the type of each operator, and the proof of each precision."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from exporter import ExportSpec
from exporter.errors import UsageError
from exporter.load import load_model
from exporter.pipeline import export
from exporter.precision import Int8, in_precision, observe_ranges
from exporter.spec import BatchProfile
from exporter.to_engine.flavours import probe
from exporter.to_onnx.export import export_onnx
from model import TimeSformer, TimeSformerViT
from model.config import MECHANISM_NAMES, SCHEME_NAMES
from model.precision import rounded_modules

pytestmark = pytest.mark.usefixtures("undrawn")

LOWER = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# One of the few seeds whose fresh fastformer separates the inputs by more than bf16 rounding, at
# both sizes.
SIZES: dict[str, Any] = {"dim": 64, "dim_head": 32, "frames": 2, "depth": 1}
QUICK = {"engine": "auto", "bench_seconds": 0.0}
# Operators that move numbers and compute none.
MOVES = {
    "Reshape",
    "Transpose",
    "Concat",
    "Slice",
    "Gather",
    "Expand",
    "Squeeze",
    "Unsqueeze",
    "Split",
    "Identity",
    "Flatten",
    "Tile",
    "Pad",
    "Where",
}
ISLANDS = {"LayerNormalization", "Softmax", "Exp", "Log", "ReduceSum", "ReduceMax"}
BITS: dict[int, int] = {
    TensorProto.BFLOAT16: 8,
    TensorProto.FLOAT16: 11,
    TensorProto.FLOAT: 24,
    TensorProto.DOUBLE: 53,
}


class Typed:
    """A graph with the type of every value."""

    def __init__(self, path):
        self.proto = onnx.shape_inference.infer_shapes(
            onnx.load(path), check_type=True, strict_mode=True, data_prop=True
        )
        graph = self.proto.graph
        values = (*graph.input, *graph.output, *graph.value_info)
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.weights = {weight.name: weight.data_type for weight in graph.initializer}
        self.values = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
        self.types |= self.weights
        self.made_by = {name: node for node in graph.node for name in node.output}
        assert set(self.made_by) <= set(self.types)

    def nodes(self, *ops):
        return [node for node in self.proto.graph.node if node.op_type in ops]

    def reals(self, node):
        """Return the types of the real numbers that a node reads and writes."""
        found = {self.types[name] for name in (*node.input, *node.output) if name}
        return found & set(BITS)

    def products_with_weights(self):
        return {
            name: self.weights[name]
            for node in self.nodes("MatMul", "Conv", "Gemm")
            for name in node.input[:2]  # a third input is a bias
            if name in self.weights
        }

    def cancelled(self):
        """Find casts that undo an earlier cast up, without a computation between the two."""
        found = []
        for node in self.nodes("Cast"):
            back_to = self.types[node.output[0]]
            if back_to not in BITS:
                continue
            pending, seen = [node.input[0]], set()
            while pending:
                name = pending.pop()
                maker = self.made_by.get(name)
                if maker is None or name in seen:
                    continue
                seen.add(name)
                if maker.op_type in MOVES:
                    pending += [x for x in maker.input if self.types.get(x) in BITS]
                elif maker.op_type == "Cast":
                    was, became = self.types[maker.input[0]], self.types[name]
                    if was == back_to and BITS.get(became, 0) > BITS[was]:
                        found.append((maker.name, node.name))
        return found


def spec(attn, precision, res=64, **options):
    return ExportSpec(
        attn=attn, precision=precision, res=(res, res), **{**SIZES, **QUICK, **options}
    )


def write_graph(model, path, precision, keep=(), batch=1):
    config = model.config
    shape = (batch, config.frames, config.channels, config.height, config.width)
    lowered = in_precision(model, precision, keep)
    export_onnx(
        lowered,
        {"video": torch.zeros(shape)},
        path,
        opset=ExportSpec(precision=precision).graph_opset,
    )
    return Typed(path)


CASES = [
    pytest.param(pair, id="-".join(pair), marks=pytest.mark.slow)
    for pair in product(MECHANISM_NAMES, LOWER)
]


@pytest.fixture(scope="module", params=CASES)
def case(request, undrawn, tmp_path_factory):
    """Run one mechanism in one precision through the whole pipeline."""
    attn, precision = request.param
    out = tmp_path_factory.mktemp("typed") / f"{attn}-{precision}"
    result = export(spec(attn, precision), out)
    return attn, precision, result, Typed(out / "model.onnx")


def rows(report) -> dict[tuple[str, str], Any]:
    return {(row.runtime, row.device): row for row in report.parity}


def assert_proven(report, precision, verdict):
    """Require that the evaluator's row passes, and that ONNX Runtime's has figures or a reason."""
    assert verdict == "pass", [row.reason for row in report.parity]
    found = rows(report)
    really = found["onnx-reference", "cpu"]
    assert (really.verdict, really.precision, really.inputs) == ("pass", precision, 16)
    assert 0 < really.rel_l2 <= really.tolerance
    assert really.tolerance == max(
        4 * really.floor_rel_l2, {"fp16": 2e-3, "bf16": 1.6e-2}[precision]
    )
    # Eager PyTorch runs in lower precision too. Otherwise the floor would be too small.
    epsilon = 2.0 ** -BITS[LOWER[precision]]
    assert epsilon / 50 < really.floor_rel_l2
    assert really.batch_invariance_rel_l2 <= really.tolerance
    beside = found["onnxruntime", "cpu"]
    assert beside.precision == precision
    if precision == "fp16":
        assert beside.verdict == "pass"
    else:
        assert beside.verdict == "not-run"
        assert beside.rel_l2 is None
        assert beside.reason


# --- proven and built


def test_a_lower_precision_graph_is_proven_in_its_precision(case):
    _, precision, result, _ = case
    assert_proven(result.report, precision, result.verdict)


def test_top_1_equals_the_truth_above_the_floor(case):
    _, _, result, _ = case
    really = rows(result.report)["onnx-reference", "cpu"]
    assert really.top1_agreement == np.mean([entry.top1_equal for entry in really.per_input])
    for entry in really.per_input:
        assert entry.top1_equal or entry.margin <= really.floor_rel_l2, entry


def test_an_engine_of_a_lower_precision_graph_is_built(case):
    _, precision, result, _ = case
    if probe("rtx").version is None:
        pytest.skip("tensorrt_rtx is not installed")
    assert (result.directory / "model.engine").read_bytes()[:4] == b"vtrt"
    assert result.report.engine["status"].startswith("built")
    if not torch.cuda.is_available():
        engine = rows(result.report)["tensorrt_rtx", "none"]
        assert (engine.verdict, engine.precision) == ("not-run", precision)
    types = {
        tensor["dtype"] for side in ("inputs", "outputs") for tensor in result.report.engine[side]
    }
    assert {str(kind).lower() for kind in types} <= {"float32", "float"}


def test_the_report_names_the_precision_and_explains_an_error_without_room(case):
    attn, precision, result, _ = case
    report = json.loads((result.directory / "report.json").read_text())
    assert report["spec"]["precision"] == precision
    assert report["spec"]["attn"] == attn
    run = [row for row in report["parity"] if row["verdict"] != "not-run"]
    without_room = any(row["rel_l2"] > 0.5 * row["tolerance"] for row in run)
    assert (report["ladder"] is not None) == without_room
    assert "onnx-reference" not in {row["runtime"] for row in report["latency"]}


@pytest.mark.slow
@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_a_lower_precision_graph_of_224_pixels_is_proven_and_built(tmp_path, attn, precision):
    result = export(spec(attn, precision, 224), tmp_path / "x")
    assert_proven(result.report, precision, result.verdict)
    if probe("rtx").version:
        assert (tmp_path / "x" / "model.engine").read_bytes()[:4] == b"vtrt"


@pytest.mark.slow
@pytest.mark.parametrize("precision", LOWER)
def test_logits_do_not_depend_on_the_batch(tmp_path, precision):
    profile = BatchProfile(1, 2, 4)
    result = export(
        spec("performer", precision, dynamic_batch=profile, engine="none"), tmp_path / "x"
    )
    assert_proven(result.report, precision, result.verdict)
    really = rows(result.report)["onnx-reference", "cpu"]
    assert really.batch_invariance_rel_l2 <= really.tolerance / 4
    (stage,) = (stage for stage in result.report.stages if stage.name == "parity")
    assert "batch 1, 2, 3, 4" in stage.detail
    assert result.report.graph["inputs"][0]["shape"][0] == "batch"


# --- the graph


def test_inputs_and_outputs_are_float32(case):
    graph = case[3].proto.graph
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT, value.name
    assert [value.name for value in graph.input] == ["video"]
    assert [value.name for value in graph.output] == ["logits"]


def test_operators_that_overflow_or_lose_digits_are_in_float32(case):
    attn, _, _, typed = case
    found = typed.nodes(*ISLANDS)
    for node in found:
        assert typed.reals(node) == {TensorProto.FLOAT}, node.name
    # FAVOR+ on few tokens needs no logarithm.
    expected = {"performer": set(ISLANDS) - {"Log"}, "regular": {"LayerNormalization", "Softmax"}}
    assert {node.op_type for node in found} >= expected.get(attn, {"LayerNormalization", "Softmax"})


def test_products_with_weights_are_in_lower_precision(case):
    _, precision, _, typed = case
    kinds = typed.products_with_weights()
    whole = [name for name, kind in kinds.items() if kind == TensorProto.FLOAT]
    # The classifier is the only product in float32, except swaps of pooled channels.
    swaps = [n for n in whole if set(np.unique(typed.values[n])) == {0.0, 1.0}]
    assert len(whole) - len(swaps) == 1
    assert set(kinds.values()) == {LOWER[precision], TensorProto.FLOAT}
    assert sum(kind == LOWER[precision] for kind in kinds.values()) > 8


def test_products_of_activations_are_in_lower_precision_except_pooled_sums(case):
    attn, precision, _, typed = case
    activations = [n for n in typed.nodes("MatMul") if not set(n.input) & set(typed.weights)]
    kinds = {TensorProto.FLOAT} if attn == "fastformer" else {LOWER[precision]}
    pooled = [
        node
        for node in activations
        if typed.made_by[node.input[0]].op_type == "Softmax" or attn != "fastformer"
    ]
    assert pooled
    for node in pooled:
        assert typed.reals(node) == kinds, node.name


def test_no_two_casts_cancel(case):
    assert case[3].cancelled() == []


def test_residual_sums_are_in_float32(case):
    typed = case[3]
    scopes = {
        node.name: {entry.key: entry.value for entry in node.metadata_props}
        for node in typed.nodes("Add")
    }
    sums = [
        node
        for node in typed.nodes("Add")
        if "'blocks.0', 'add" in scopes[node.name].get("pkg.torch.onnx.name_scopes", "")
    ]
    assert len(sums) >= 3
    for node in sums:
        assert typed.reals(node) == {TensorProto.FLOAT}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "semantics"),
    [*((name, "paper") for name in SCHEME_NAMES if name != "divided"), ("joint", "upstream")],
)
def test_every_scheme_has_its_islands_in_float32(tmp_path, scheme, semantics):
    attn = {"axial": "fastformer", "joint": "regular"}.get(scheme, "performer")
    what = {"attn": attn, "scheme": scheme, "semantics": semantics}
    model = load_model(ExportSpec(res=(32, 48), **what, **SIZES))
    typed = write_graph(model, tmp_path / "model.onnx", "fp16")
    assert typed.cancelled() == []
    for node in typed.nodes(*ISLANDS):
        assert typed.reals(node) == {TensorProto.FLOAT}, node.name


@pytest.mark.slow
@pytest.mark.parametrize("family", ["timesformer_pytorch", "facebookresearch"])
def test_every_family_has_its_islands_in_float32(tmp_path, family):
    torch.manual_seed(0)
    if family == "timesformer_pytorch":
        sizes = {"dim": 32, "num_frames": 3, "num_classes": 5, "image_size": (32, 48)}
        model = TimeSformer(**sizes, depth=1, heads=2, dim_head=16).eval()
    else:
        model = TimeSformerViT(3, 32, 48, 5, dim=32, depth=1, heads=2).eval()
    typed = write_graph(model, tmp_path / "model.onnx", "bf16")
    assert typed.cancelled() == []
    for node in typed.nodes(*ISLANDS):
        assert typed.reals(node) == {TensorProto.FLOAT}, node.name
    kinds = typed.products_with_weights()
    in_float32 = [name for name, kind in kinds.items() if kind == TensorProto.FLOAT]
    assert in_float32 == ["to_out.1.weight" if family == "timesformer_pytorch" else "head.weight"]
    assert set(kinds.values()) == {TensorProto.FLOAT, TensorProto.BFLOAT16}


def scope(node):
    notes = {entry.key: entry.value for entry in node.metadata_props}
    return notes.get("pkg.torch.onnx.name_scopes", "")


@pytest.mark.slow
def test_keep_fp32_leaves_exactly_the_matched_modules_in_float32(tmp_path):
    kept = ["blocks.0.mlp", "blocks.1.attn_t.fn", "project_in"]
    model = load_model(ExportSpec(attn="regular", res=(32, 48), **{**SIZES, "depth": 2}))
    typed = write_graph(model, tmp_path / "model.onnx", "fp16", kept)
    matched = {"blocks.0.mlp.fn", "blocks.1.attn_t.fn", "project_in"}
    seen = set()
    for node in typed.nodes("MatMul", "Conv"):
        for path in rounded_modules(model):
            if f"'{path}'" in scope(node):
                seen.add(path)
                kind = TensorProto.FLOAT if path in matched else TensorProto.FLOAT16
                assert typed.reals(node) == {kind}, (path, node.name)
    assert seen == set(rounded_modules(model))
    assert typed.cancelled() == []


# --- in_precision


def test_in_precision_changes_a_copy_and_not_the_model(tmp_path):
    model = load_model(ExportSpec(res=(32, 32), **SIZES))
    before = {name: (t.dtype, t.clone()) for name, t in model.state_dict().items()}
    for precision in ("fp64", "fp32", "fp16", "bf16"):
        assert not in_precision(model.train(), precision).training
        assert model.training
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name][0]
        assert torch.equal(tensor, before[name][1])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("blocks.0.mpl", "blocks.0.mlp"), ("(", "not a regular expression"), ("to_out", "matches no")],
)
def test_a_pattern_without_a_match_is_bad_usage(pattern, words):
    model = load_model(ExportSpec(res=(32, 32), **SIZES))
    with pytest.raises(UsageError) as caught:
        in_precision(model, "fp16", [pattern])
    message = str(caught.value)
    assert message.startswith("--keep-fp32: ")
    assert words in message
    assert "\n" not in message


# --- the spec


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "bf16", "opset": 20}, "expected 22 to 23"),
        ({"precision": "bf16", "opset": 21}, "expected 22 to 23"),
        ({"precision": "fp16", "opset": 15}, "expected 16 to 23"),
        ({"precision": "fp16", "targets": ("sm75",)}, "sm75"),
        ({"precision": "fp32", "keep_fp32": ("blocks.0",)}, "--keep-fp32 does not go"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"precision": "bf61"}, "did you mean 'bf16'"),
    ],
)
def test_a_combination_that_is_not_valid_is_bad_usage(options, words):
    with pytest.raises(UsageError) as caught:
        ExportSpec(**options)
    assert words in str(caught.value)


def test_each_precision_has_its_opset_and_targets():
    assert [ExportSpec(precision=p).graph_opset for p in ("fp32", "fp16", "bf16")] == [20, 20, 22]
    assert ExportSpec(precision="bf16", opset=23).graph_opset == 23
    assert ExportSpec(precision="fp16").engine_targets == ()
    assert set(ExportSpec(precision="bf16").engine_targets) == {
        "sm80",
        "sm86",
        "sm89",
        "sm120",
        "sm121",
    }
    assert ExportSpec(precision="bf16", targets=("sm89",)).engine_targets == ("sm89",)
    assert ExportSpec(precision="bf16", engine="none").engine_targets == ()


def test_a_spec_of_lower_precision_is_equal_after_json():
    made = ExportSpec(precision="bf16", keep_fp32=("blocks.0", r"blocks\.1\.mlp"), eval="motion")
    assert ExportSpec.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("precision", LOWER)
def test_the_default_directory_is_named_after_the_precision(precision):
    from exporter.files.names import default_directory

    made = default_directory(ExportSpec(precision=precision, res=(64, 64)))
    assert made == Path("build") / f"fastformer-divided-64x64-{precision}"


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_int8_rounds_products_and_computes_the_rest_in_its_own_precision(rest):
    model = load_model(ExportSpec(attn="regular", res=(32, 32), **SIZES))
    clips = {"video": torch.randn(2, 2, 3, 32, 32).numpy()}
    ranges = observe_ranges(model, clips)
    made = in_precision(model, "int8", int8=Int8(ranges, True, 127, rest))
    types = {module.to_out.weight.dtype for module in made.modules() if hasattr(module, "Wq")}
    types |= {made.blocks[0].attn_s.fn.to_out.weight.dtype}
    assert types == {torch.float16 if rest == "fp16" else torch.float32}
    assert made.blocks[0].attn_s.norm.weight.dtype == torch.float32
    video = torch.from_numpy(clips["video"])
    with torch.inference_mode():
        eager, rounded = in_precision(model, rest)(video), made(video)
    assert rounded.dtype == torch.float32
    assert 1e-4 < ((rounded - eager).norm() / eager.norm()).item() < 0.5
