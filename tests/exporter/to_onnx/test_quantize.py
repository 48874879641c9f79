"""int8 graphs: which parts are quantised, the distance from float32, and that they run."""

import json
import math
import platform
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from exporter.errors import OnnxError
from exporter.graph.modules import module_scopes, read_module_outputs
from exporter.inputs.synthetic import synthetic_inputs
from exporter.precision import in_precision
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.spec import BatchProfile
from exporter.to_engine.build import build_engine
from exporter.to_onnx.export import check_onnx, export_onnx
from exporter.to_onnx.int8_products import FORMS
from exporter.to_onnx.quantize import quantize
from model.fast_timesformer import FastTimeSformer
from model.timesformer import TimeSformer

SHAPE = (3, 3, 32, 48)  # f c h w
MECHANISMS = ("fastformer", "performer", "regular")
# Relative L2 of the logits. Measured: 0.02 on random weights; about 1.4 for another function.
BOUND = 0.05
needs_rtx = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="tensorrt-rtx-cu13 is for Linux on x86-64",
)


def make(attn="fastformer", *, dim=64, depth=1):
    torch.manual_seed(0)
    frames, channels, height, width = SHAPE
    model = FastTimeSformer(
        frames, channels, height, width, 5, dim, depth=depth, dim_head=32, attn_mechanism=attn
    )
    return model.eval()


def write(path, model, *, batch=1, dynamic=False, mask=False):
    example = {"video": torch.randn(batch, *SHAPE)}
    if mask:
        example["mask"] = torch.ones(batch, SHAPE[0], dtype=torch.bool)
    profile = BatchProfile(1, 2, 4) if dynamic else None
    metadata = {"tsformer.spec": "{}"}
    export_onnx(model, example, path, opset=20, dynamic_batch=profile, metadata=metadata)
    return path


def clips(count=8):
    return np.stack([clip for _, clip in synthetic_inputs(*SHAPE)])[:count]


def run(graph, inputs, form="onnxruntime"):
    """Run a graph; the products of TensorRT's form are exact, since no CPU has to have them."""
    with OnnxRuntimeRunner(graph, integer_kernels=form == "onnxruntime") as runner:
        return runner.run(inputs)["logits"]


def distance(expected, got):
    return np.linalg.norm(expected - got) / np.linalg.norm(expected)


class Graph:
    """A graph; `makers` maps a value to the node that makes it, `weights` a name to an array."""

    def __init__(self, path):
        self.model = onnx.load(path)
        self.nodes = self.model.graph.node
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.weights = {w.name: numpy_helper.to_array(w) for w in self.model.graph.initializer}

    def products(self, *, int8):
        """Return the products with int8 weights, or all other products."""
        return [
            node
            for node in self.nodes
            if node.op_type in ("MatMul", "Gemm", "Conv")
            if int8 == (self.kind(node.input[1]) == "DequantizeLinear")
        ]

    def kind(self, name):
        return self.makers[name].op_type if name in self.makers else None

    def parameters(self, name):
        """Return values, scale, zero point and axes of the DequantizeLinear that makes `name`."""
        node = self.makers[name]
        axes = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
        return *(self.weights.get(i) for i in node.input), axes


@pytest.fixture(scope="module", autouse=True)
def every_product_pays():
    """Compute products of small weights in int8 too. `storing` undoes this.

    Otherwise the weights of these small models would only be stored in int8.
    """
    with pytest.MonkeyPatch.context() as patch:
        form = FORMS["onnxruntime"]
        patch.setitem(FORMS, "onnxruntime", replace(form, least_weight=0))
        yield form


@pytest.fixture
def storing(every_product_pays, int8, monkeypatch):
    """Only store small weights in int8 from now on, as outside these tests."""
    for attn in MECHANISMS:
        int8(attn)
    monkeypatch.setitem(FORMS, "onnxruntime", every_product_pays)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quantize")


@pytest.fixture(scope="module")
def exported(folder):
    """The float32 graph of a mechanism, with a free batch. Do not change it."""
    made = {}

    def get(attn="fastformer"):
        if attn not in made:
            made[attn] = write(folder / f"{attn}.onnx", make(attn), dynamic=True)
        return made[attn]

    return get


@pytest.fixture(scope="module")
def fixed(folder):
    """The float32 graph of a wider model, with a batch of two. Do not change it.

    Its biases are 0, as in many untrained models. So the file has one tensor for all biases of one
    length, including those of LayerNorm.
    """
    model = make(dim=128)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    return write(folder / "fixed.onnx", model, batch=2)


@pytest.fixture(scope="module")
def int8(folder, exported):
    """The int8 graph of a mechanism in a form, and its summary. Do not change the graph."""
    made = {}

    def get(attn="fastformer", form="onnxruntime"):
        if (attn, form) not in made:
            out = folder / f"{attn}-{form}.onnx"
            summary = quantize(exported(attn), out, {"video": clips()}, form=form)
            made[attn, form] = out, summary
        return made[attn, form]

    return get


every = pytest.mark.parametrize(
    ("attn", "form"),
    [
        pytest.param(attn, form, marks=[] if attn == "fastformer" else pytest.mark.slow)
        for attn in MECHANISMS
        for form in FORMS
    ],
)


# --- structure


@pytest.mark.slow
@every
def test_only_products_of_weights_are_int8(int8, attn, form):
    graph, summary = Graph(int8(attn, form)[0]), int8(attn, form)[1]
    products = graph.products(int8=True)
    assert summary.products == len(products) > 10
    assert summary.kept == len(graph.products(int8=False))
    assert summary.nodes == len(graph.nodes)
    assert summary.calibration_clips == 8
    for node in products:
        weight, scale, zero, axes = graph.parameters(node.input[1])
        assert weight.dtype == np.int8
        assert not zero.any()
        channels = 0 if node.op_type == "Conv" else 1
        assert axes == [channels]
        assert scale.shape == (weight.shape[channels],)
        # The patch embedding reads float32 pixels: only its weights are int8.
        assert (graph.kind(node.input[0]) == "DequantizeLinear") == (node.op_type != "Conv")
    for node in graph.nodes:
        if node.op_type in ("LayerNormalization", "Softmax", "Gemm", "Exp"):
            assert all(graph.kind(name) != "DequantizeLinear" for name in node.input), node.name


@pytest.mark.slow
@every
def test_activations_have_one_scale_and_the_zero_point_of_the_form(int8, attn, form):
    graph = Graph(int8(attn, form)[0])
    nodes = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    assert nodes
    for node in nodes:
        scale, zero = (graph.weights[name] for name in node.input[1:])
        assert scale.shape == zero.shape == ()
        assert zero.dtype == (np.int8 if form == "tensorrt" else np.uint8)
        assert form == "onnxruntime" or zero == 0


@pytest.mark.slow
@pytest.mark.parametrize("attn", MECHANISMS)
def test_small_weights_are_stored_in_int8_and_multiplied_in_float32(
    exported, int8, storing, tmp_path, attn
):
    """This includes weights stacked by `heads_first`, which have no integer product."""
    out, calibration = tmp_path / "stored.onnx", {"video": clips()}
    summary = quantize(exported(attn), out, calibration, form="onnxruntime")
    whole, graph = int8(attn)[1], Graph(out)
    assert summary.stored > 0
    # Two products can share one weight.
    assert summary.products + summary.stored <= whole.products
    assert summary.bytes < 1.1 * whole.bytes
    for node in graph.products(int8=False):
        scaled = graph.makers.get(node.input[1])
        if scaled is not None and scaled.op_type == "Mul" and scaled.input[0] in graph.makers:
            levels = graph.weights[graph.makers[scaled.input[0]].input[0]]
            scale = graph.weights[scaled.input[1]]
            assert levels.dtype == np.int8
            inputs = (1, 2, 3) if node.op_type == "Conv" else -2
            largest = np.abs(levels).max(axis=inputs, keepdims=True)
            assert scale.shape == largest.shape
            assert largest.min() == 127  # each channel uses the whole range
    inputs = {"video": clips()}
    expected = run(exported(attn), inputs)
    stored = distance(expected, run(out, inputs))
    assert 0 < stored < distance(expected, run(int8(attn)[0], inputs)) * 1.5
    loaded = folded_nodes(out, tmp_path)
    assert not [n for n in loaded if n.op_type == "Cast" and n.input[0].endswith("_levels")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("least_weight", "least_work"), [(2**10, 0), (1, 2**14), (2**10, 2**14), (2**30, 0), (1, 2**30)]
)
def test_a_product_is_int8_if_its_weight_and_its_work_are_large_enough(
    exported, monkeypatch, tmp_path, least_weight, least_work
):
    form = replace(FORMS["onnxruntime"], least_weight=least_weight, least_work=least_work)
    monkeypatch.setitem(FORMS, "onnxruntime", form)
    source, out = exported("regular"), tmp_path / "int8.onnx"
    summary = quantize(source, out, {"video": clips()}, form="onnxruntime")
    plain = onnx.load(source).graph
    weights = {weight.name: weight.dims for weight in plain.initializer}
    shapes = {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        for value in plain.value_info
    }
    readers = {}
    for node in plain.node:
        dims = weights.get(node.input[1], []) if node.op_type in ("MatMul", "Gemm") else []
        if len(dims) == 2 and min(dims) >= 16 and node.output[0] in shapes:  # not the head
            rows = math.prod(shapes[node.output[0]][:-1])
            readers.setdefault(node.input[1], []).append(rows)
    paying = 0
    for name, rows in readers.items():
        elements = math.prod(weights[name])
        pays = elements >= least_weight and sum(rows) * elements >= least_work
        paying += len(rows) if pays else 0  # all products that share a weight, or none
    assert summary.products == len(Graph(out).products(int8=True)) == paying
    assert (paying == 0) == (2**30 in (least_weight, least_work))
    assert summary.stored > 0
    inputs = {"video": clips()}
    assert 0 < distance(run(source, inputs), run(out, inputs)) < 0.1


def folded_nodes(path, folder):
    """Return the nodes of a graph after the optimisation by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx").graph.node


@pytest.mark.slow
def test_an_int8_weight_has_no_float_copy(int8):
    graph = Graph(int8()[0])
    read = {name for node in graph.nodes for name in node.input}
    assert set(graph.weights) <= read
    wide = [
        w for w in graph.weights.values() if w.ndim == 2 and w.dtype == np.float32 and w.size > 1024
    ]
    # A weight matrix has 64 rows; the tables have another number.
    assert not [w.shape for w in wide if w.shape[0] == 64]


def test_inputs_outputs_and_metadata_equal_those_of_the_float_graph(exported, int8):
    for form in FORMS:
        before, after = onnx.load(exported()), onnx.load(int8(form=form)[0])
        assert after.graph.input == before.graph.input
        assert after.graph.output == before.graph.output
        assert after.metadata_props == before.metadata_props
        assert after.opset_import == before.opset_import
        assert after.producer_name == "tsformer"


def test_the_map_of_module_outputs_is_unchanged(exported, int8):
    expected = read_module_outputs(onnx.load(exported()))
    assert expected
    for form in FORMS:
        assert read_module_outputs(onnx.load(int8(form=form)[0])) == expected


@every
def test_the_graph_passes_the_checks_of_an_export(int8, attn, form):
    path, summary = int8(attn, form)
    assert check_onnx(path).file_bytes == summary.bytes


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_mostly_weights_shrinks_to_a_third(fixed, tmp_path, form):
    summary = quantize(fixed, tmp_path / "int8.onnx", {"video": clips(1)}, form=form)
    assert summary.bytes < 0.35 * fixed.stat().st_size


def test_the_same_clips_give_the_same_file(exported, int8, tmp_path):
    out = tmp_path / "again.onnx"
    quantize(exported(), out, {"video": clips()}, form="onnxruntime")
    assert out.read_bytes() == int8()[0].read_bytes()


# --- products that stay in float32


def test_kept_modules_have_the_same_nodes_and_weights(exported, tmp_path):
    keep, out = ("blocks.0.attn_t.fn", "project_in"), tmp_path / "int8.onnx"
    quantize(exported(), out, {"video": clips(2)}, form="tensorrt", keep=keep)
    before, after = Graph(exported()), Graph(out)
    scopes = {node.name: module_scopes(node) for node in before.nodes}
    kept = [node for node in before.nodes if not scopes[node.name].isdisjoint(keep)]
    assert sum(node.op_type in ("MatMul", "Conv") for node in kept) > 5
    nodes = {node.name: node for node in after.nodes}
    for node in kept:
        assert nodes[node.name].input == node.input
        for name in before.weights.keys() & set(node.input):
            np.testing.assert_array_equal(after.weights[name], before.weights[name])
    assert any("blocks.0.attn_s.fn" in scopes[node.name] for node in after.products(int8=True))


@pytest.mark.slow
def test_a_weight_shared_by_a_kept_and_a_quantised_module_is_stored_twice(tmp_path):
    model = make()
    model.blocks[0].attn_t.fn.to_out = model.blocks[0].attn_s.fn.to_out
    path, out = write(tmp_path / "model.onnx", model), tmp_path / "int8.onnx"
    shared = {
        name
        for name, weight in Graph(path).weights.items()
        if weight.shape == (64, 64)
        and sum(name in node.input for node in Graph(path).nodes if node.op_type == "MatMul") > 1
    }
    assert shared
    keep = ("blocks.0.attn_s.fn",)
    quantize(path, out, {"video": clips()}, form="onnxruntime", keep=keep)
    graph = Graph(out)
    assert all(graph.weights[name].dtype == np.float32 for name in shared)
    for name in shared:
        assert sum(name in node.input for node in graph.products(int8=False)) == 1
    assert distance(run(path, {"video": clips(1)}), run(out, {"video": clips(1)})) < BOUND


def test_keeping_every_module_is_refused(exported, tmp_path):
    keep = ("project_in", "blocks.0")
    with pytest.raises(OnnxError, match="no product is left"):
        quantize(exported(), tmp_path / "x", {"video": clips(1)}, form="tensorrt", keep=keep)


# --- numbers


@every
def test_the_logits_are_close_to_those_of_float32(exported, int8, attn, form):
    inputs = {"video": clips()}
    expected, got = run(exported(attn), inputs), run(int8(attn, form)[0], inputs, form)
    assert 0 < distance(expected, got) < BOUND


@pytest.mark.slow
def test_the_bound_on_the_distance_fails_for_other_weights(exported, int8):
    """The bound can fail: another mechanism with the same sizes exceeds it."""
    inputs = {"video": clips()}
    assert distance(run(exported("regular"), inputs), run(int8("fastformer")[0], inputs)) > BOUND


@every
def test_a_clip_alone_gives_the_logits_it_has_in_a_batch(int8, attn, form):
    path, video = int8(attn, form)[0], clips(4)
    together = run(path, {"video": video})
    alone = np.concatenate([run(path, {"video": clip[np.newaxis]}) for clip in video])
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_onnxruntime_has_an_integer_kernel_for_each_product(int8, fixed, tmp_path):
    """A fixed batch too, where ONNX Runtime could fuse a product and its bias into a Gemm."""
    import onnxruntime

    out = tmp_path / "int8.onnx"
    summary = quantize(fixed, out, {"video": clips(1)}, form="onnxruntime")
    for graph in (out, int8()[0]):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
        # All products except the Conv.
        assert kinds.count("MatMulIntegerToFloat") == summary.products - 1
        assert kinds.count("Gemm") == 1  # the head


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize("attn", MECHANISMS)
def test_the_symmetric_form_builds_an_engine(int8, attn, tmp_path):
    info = build_engine(
        int8(attn, "tensorrt")[0],
        tmp_path / "model.engine",
        flavour="rtx",
        profile=BatchProfile(1, 2, 4),
        targets=("sm86",),
    )
    assert info.bytes
    assert [(i.name, i.dtype) for i in info.inputs] == [("video", "float32")]


# --- inputs


@pytest.mark.slow
def test_a_fixed_batch_is_filled_with_the_first_clips(fixed, tmp_path):
    video = clips(3)
    three, four = tmp_path / "three.onnx", tmp_path / "four.onnx"
    summary = quantize(fixed, three, {"video": video}, form="onnxruntime")
    assert summary.calibration_clips == 3
    quantize(fixed, four, {"video": video[[0, 1, 2, 0]]}, form="onnxruntime")
    assert three.read_bytes() == four.read_bytes()


@pytest.mark.slow
def test_a_model_with_a_mask_is_calibrated_with_masks(tmp_path):
    torch.manual_seed(0)
    frames, _, height, width = SHAPE
    model = TimeSformer(
        dim=32, num_frames=frames, num_classes=5, image_size=(height, width), depth=1, dim_head=16
    )
    path = write(tmp_path / "model.onnx", model.eval(), batch=2, dynamic=True, mask=True)
    masks = np.ones((4, frames), bool)
    masks[1::2, -1] = False
    inputs = {"video": clips(4), "mask": masks}
    for form in FORMS:
        out = tmp_path / f"{form}.onnx"
        assert quantize(path, out, inputs, form=form).products > 5
        assert 0 < distance(run(path, inputs), run(out, inputs)) < BOUND
    with pytest.raises(OnnxError, match=r"for each input of the graph.*expected video, mask"):
        quantize(path, tmp_path / "x", {"video": clips(4)}, form="tensorrt")
    with pytest.raises(OnnxError, match="as many clips for each input"):
        quantize(path, tmp_path / "x", {**inputs, "mask": masks[:3]}, form="tensorrt")


def test_quantising_prints_nothing(exported, tmp_path, capfd, caplog):
    quantize(exported(), tmp_path / "int8.onnx", {"video": clips(1)}, form="onnxruntime")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "tensort"}, "unknown form of an int8 graph.*did you mean 'tensorrt'"),
        ({"keep": ("blocks.0.mpl.fn",)}, r"no module 'blocks.0.mpl.fn'.*'blocks.\d.mlp.fn'"),
        ({"calibration": {"video": clips(0)}}, "at least one clip"),
        ({"calibration": {}}, "as many clips for each input"),
        ({"calibration": {"video": clips(1)[..., :-1]}}, "could not quantise the graph"),
    ],
)
def test_a_wrong_argument_gives_an_error_of_one_line(exported, tmp_path, arguments, message):
    out = tmp_path / "int8.onnx"
    given = {"calibration": {"video": clips(1)}, "form": "tensorrt", **arguments}
    with pytest.raises(OnnxError, match=message) as raised:
        quantize(exported(), out, **given)
    assert "\n" not in str(raised.value)
    assert not out.exists()


def test_the_map_of_modules_is_json_and_names_the_patch_embedding(int8):
    noted = {entry.key: entry.value for entry in onnx.load(int8()[0]).metadata_props}
    assert "project_in" in json.loads(noted["tsformer.modules"])


@pytest.mark.slow
def test_small_fp16_activations_stay_in_fp16(tmp_path):
    """Their step is no normal number of fp16: the quantiser would take 1, and round all to 0."""
    model = make("regular")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight *= 1e-3
    half = write(tmp_path / "half.onnx", in_precision(model, "fp16"))
    made = quantize(half, tmp_path / "int8.onnx", {"video": clips()}, form="tensorrt")
    graph = Graph(tmp_path / "int8.onnx")
    rounded = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    assert all(graph.weights[node.input[1]] != 1 for node in rounded)
    assert 0 < made.kept < made.products + made.kept
    check_onnx(tmp_path / "int8.onnx")
    inputs = {"video": clips(1)}
    assert distance(run(half, inputs), run(tmp_path / "int8.onnx", inputs, "tensorrt")) < BOUND
