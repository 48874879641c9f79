"""Test that parity can fail: real graphs, each with one fault."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from exporter.inputs.synthetic import synthetic_inputs
from exporter.proof.judge import make_reference, validate
from exporter.runners.eager import EagerRunner
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.spec import DEFAULT_OPSET
from exporter.to_onnx.export import check_onnx, export_onnx
from model import FastTimeSformer

pytestmark = pytest.mark.slow  # the tests judge real exports

FRAMES, HEIGHT, WIDTH, DIM, DIM_HEAD = 3, 32, 48, 32, 16
MECHANISMS = ("fastformer", "performer", "regular")


class Exported:
    """A model, its graph and its reference; a test can change the graph and judge it."""

    def __init__(self, attn, path):
        torch.manual_seed(0)
        model = FastTimeSformer(
            FRAMES,
            3,
            HEIGHT,
            WIDTH,
            5,
            dim=DIM,
            dim_head=DIM_HEAD,
            depth=1,
            attn_mechanism=attn,
        ).eval()
        example = {"video": torch.zeros(2, FRAMES, 3, HEIGHT, WIDTH)}
        export_onnx(model, example, path, opset=DEFAULT_OPSET)
        self.attn, self.path = attn, path
        self.names, clips = zip(*synthetic_inputs(FRAMES, 3, HEIGHT, WIDTH), strict=True)
        self.clips = {"video": np.stack(clips)}
        shapes = {"video": (None, *clips[0].shape)}
        truth, floor = (EagerRunner(model, shapes, p) for p in ("fp64", "fp32"))
        self.reference = make_reference(truth, floor, self.names, self.clips)

    def load(self):
        return onnx.load(self.path)

    def judge(self, model, tmp_path):
        path = tmp_path / "changed.onnx"
        onnx.save(model, path)
        check_onnx(path)  # the changed graph must be valid
        with OnnxRuntimeRunner(path) as runner:
            return validate(runner, self.reference, self.clips, [2])[0]


@pytest.fixture(
    scope="module",
    params=["fastformer", *(pytest.param(attn, marks=pytest.mark.slow) for attn in MECHANISMS[1:])],
)
def case(request, tmp_path_factory):
    with torch.random.fork_rng():
        return Exported(request.param, tmp_path_factory.mktemp("parity") / "model.onnx")


def weights(model):
    """List the float weights with axes; scalars are constants of formulas."""
    return [
        weight
        for weight in model.graph.initializer
        if weight.data_type == onnx.TensorProto.FLOAT and weight.dims
    ]


def change(model, name, how):
    """Replace one weight by a changed copy."""
    weight = next(w for w in model.graph.initializer if w.name == name)
    values = numpy_helper.to_array(weight)
    changed = np.asarray(how(values.copy()), np.float32)
    assert not np.array_equal(changed, values), f"{name} is as it was"
    weight.CopyFrom(numpy_helper.from_array(changed, name))


def product_of(model, tail):
    """Find the weight of the matrix product whose bias name ends with `tail`."""
    (bias,) = (node for node in model.graph.node if any(x.endswith(tail) for x in node.input))
    made_by = {name: node for node in model.graph.node for name in node.output}
    (product,) = (made_by[x] for x in bias.input if x in made_by)
    (name,) = set(product.input) & {w.name for w in model.graph.initializer}
    return name


def test_the_unchanged_graph_passes(case, tmp_path):
    parity = case.judge(case.load(), tmp_path)
    assert parity.verdict == "pass", parity.reason
    assert parity.inputs == 8
    assert parity.rel_l2 > 0  # the graph is another program than the model


def double_one(values):
    """Double the largest number; in a matrix use channel 2, which every rotation changes."""
    channel = values[..., 2] if values.ndim > 1 and values.shape[-1] > 2 else values  # a view
    place = np.unravel_index(np.abs(channel).argmax(), channel.shape)
    channel[place] = 2 * channel[place] or 0.1
    return values


def weights_rotated_with(model, table):
    """Find the weights of the matrix products that a rotary table multiplies."""
    names = {weight.name for weight in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    factors = {x for node in model.graph.node if table in node.input for x in node.input}
    return {x for name in factors & set(made_by) for x in made_by[name].input if x in names}


def test_one_wrong_number_in_any_weight_fails(case, tmp_path):
    survivors = set()
    for name in [weight.name for weight in weights(case.load())]:
        model = case.load()
        change(model, name, double_one)
        if case.judge(model, tmp_path).verdict != "fail":
            survivors.add(name)
    # The graph reads only the class token's query of the last block, and no rotation applies to
    # it. If queries are not pooled, the weight for rotated queries has no effect.
    without_effect = 0 if case.attn == "fastformer" else 1
    assert len(survivors) == without_effect, survivors
    assert survivors <= weights_rotated_with(case.load(), "rotary.sin_s")


def test_the_weights_include_every_kind(case):
    names = {weight.name for weight in weights(case.load())}
    assert len(names) > 25
    assert {"project_in.bias", "to_out.fn.weight", "to_out.norm.weight", "rotary.cos_s"} <= names


@pytest.mark.parametrize("step", ["t", "s"])
def test_swapped_heads_fail(case, tmp_path, step):
    model = case.load()
    name = product_of(model, f"attn_{step}.fn.to_out.bias")

    def swap(values):
        return np.concatenate((values[DIM_HEAD:], values[:DIM_HEAD]))

    change(model, name, swap)
    assert case.judge(model, tmp_path).verdict == "fail"


@pytest.mark.parametrize("steps", ["t", "s", "ts"])
def test_a_graph_without_rotary_tables_fails(case, tmp_path, steps):
    model = case.load()
    for step in steps:
        change(model, f"rotary.cos_{step}", np.ones_like)
        change(model, f"rotary.sin_{step}", np.zeros_like)
    assert case.judge(model, tmp_path).verdict == "fail"


@pytest.mark.parametrize("step", ["t", "s"])
def test_a_rotation_the_wrong_way_fails(case, tmp_path, step):
    model = case.load()
    change(model, f"rotary.sin_{step}", np.negative)
    assert case.judge(model, tmp_path).verdict == "fail"


@pytest.mark.parametrize(
    "name",
    [
        "project_in.bias",
        "blocks.0.attn_t.fn.to_out.bias",
        "blocks.0.attn_s.fn.to_out.bias",
        "blocks.0.fc_t.bias",
        "blocks.0.mlp.fn.net.3.bias",
        "to_out.fn.bias",
    ],
)
def test_a_bias_of_zeros_fails(case, tmp_path, name):
    model = case.load()
    change(model, name, np.zeros_like)
    assert case.judge(model, tmp_path).verdict == "fail"


def reorder(model, axis, order):
    """Make the graph read its input in another order along one axis."""
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == "video":
                node.input[i] = "reordered"
    model.graph.initializer.append(numpy_helper.from_array(np.array(order), "order"))
    gather = helper.make_node("Gather", ["video", "order"], ["reordered"], axis=axis)
    model.graph.node.insert(0, gather)


@pytest.mark.parametrize(
    ("axis", "order"),
    [
        (0, [1, 0]),
        (1, [2, 1, 0]),
        (1, [0, 2, 1]),
        (2, [2, 1, 0]),
        (3, list(range(HEIGHT))[::-1]),
        (4, list(range(WIDTH))[::-1]),
        (4, [*range(16, 32), *range(16), *range(32, 48)]),
    ],
    ids=["clips", "frames", "two frames", "bgr", "upside down", "mirrored", "two patches"],
)
def test_an_input_in_another_order_fails(case, tmp_path, axis, order):
    model = case.load()
    reorder(model, axis, order)
    assert case.judge(model, tmp_path).verdict == "fail"


@pytest.mark.parametrize("bits", [11, 8], ids=["half", "bfloat16"])
def test_weights_rounded_to_less_than_float32_fail(case, tmp_path, bits):
    model = case.load()
    for weight in weights(model):
        values = numpy_helper.to_array(weight)
        mantissa, exponent = np.frexp(values)
        rounded = np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent).astype(np.float32)
        weight.CopyFrom(numpy_helper.from_array(rounded, weight.name))
    assert case.judge(model, tmp_path).verdict == "fail"
