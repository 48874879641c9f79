"""What a graph costs: counted by hand, and against torch's own counter."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from exporter.errors import OnnxError
from exporter.graph.cost import GraphCost, MatmulShape, count_cost, matmul_shapes
from exporter.spec import DEFAULT_OPSET, BatchProfile
from exporter.to_onnx.export import export_onnx
from model import FastTimeSformer
from model.config import MECHANISM_NAMES, SCHEME_NAMES


def parse(text, **weights):
    """A model whose initializers are zeros of the given shapes (float32) or arrays."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> {text}')
    for name, weight in weights.items():
        array = np.zeros(weight, np.float32) if isinstance(weight, tuple) else weight
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def test_a_graph_counted_by_hand():
    model = parse(
        """
        agraph (float[N, 3, 8] x) => (float[N, 3, 4] y) {
            product = MatMul(x, w)
            shifted = Add(product, b)
            y = Softmax(shifted)
        }
        """,
        w=(8, 4),
        b=(4,),
    )
    made = 5 * 3 * 4
    read = 5 * 3 * 8
    assert count_cost(model, 5) == GraphCost(
        flops=2 * made * 8 + made + 5 * made,
        matmul_flops=2 * made * 8,
        # x, then each of three results written, two of them read again, then the weights
        bytes=4 * (read + 3 * made + 2 * made + 8 * 4 + 4),
        weight_bytes=4 * (8 * 4 + 4),
        by_op={"MatMul": 2 * made * 8, "Softmax": 5 * made, "Add": made},
    )
    assert matmul_shapes(model, 5) == Counter({(1, 15, 8, 4): 1})


def test_cost_grows_with_the_batch_except_for_the_weights():
    model = parse(
        "agraph (float[N, 8] x) => (float[N, 4] y) { p = MatMul(x, w) \n y = Relu(p) }", w=(8, 4)
    )
    one, seven = count_cost(model, 1), count_cost(model, 7)
    assert seven.flops == 7 * one.flops
    assert seven.weight_bytes == one.weight_bytes == 128
    assert seven.bytes - 128 == 7 * (one.bytes - 128)


def test_a_free_axis_that_is_not_the_batch_is_refused():
    free = "agraph (float[2, 3, h, 64] x) => (float[2, 4, h, 64] y) { y = Conv(x, w) }"
    with pytest.raises(OnnxError, match=r"only the batch may be free: got \['h'\]"):
        count_cost(parse(free, w=(4, 3, 1, 1)), 2)
    twice = "agraph (float[N, 3, N] x) => (float[N, 3, N] y) { y = Exp(x) }"
    with pytest.raises(OnnxError, match=r"only the batch may be free: got \['N'\]"):
        count_cost(parse(twice), 2)


def test_views_are_free_and_moves_are_only_traffic():
    model = parse(
        """
        agraph (float[2, 3, 4] x) => (float[3, 8] y) {
            turned = Transpose <perm = [1, 0, 2]> (x)
            y = Reshape(turned, shape)
        }
        """,
        shape=np.array([3, 8]),
    )
    assert count_cost(model, 2) == GraphCost(0, 0, 2 * 24 * 4 + 16, 16, {})


def test_a_pick_reads_no_more_than_it_writes():
    model = parse(
        "agraph (float[2, 100, 4] x) => (float[2, 4] y) { y = Gather <axis = 1> (x, index) }",
        index=np.array(0),
    )
    assert count_cost(model, 2).bytes == 2 * (2 * 4 * 4) + 8


def test_a_weight_is_read_once_however_many_nodes_use_it():
    model = parse(
        """
        agraph (float[2, 6] x) => (float[2, 6] y) {
            product = Mul(x, table)
            y = Mul(product, table)
        }
        """,
        table=(2, 6),
    )
    assert count_cost(model, 2).bytes == 4 * 12 * (2 + 2 + 1)


@pytest.mark.parametrize(
    ("left", "right", "shape"),
    [
        ((2, 5, 8), (8, 3), (1, 10, 8, 3)),
        ((2, 5, 8), (1, 8, 3), (1, 10, 8, 3)),
        ((2, 5, 8), (2, 8, 3), (2, 5, 8, 3)),
        ((2, 1, 5, 8), (4, 8, 3), (8, 5, 8, 3)),
        ((2, 8), (8,), (1, 2, 8, 1)),
    ],
)
def test_products_of_every_rank(left, right, shape):
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("a", left), ("b", right))
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("MatMul", ["a", "b"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", inputs, [output]))
    assert matmul_shapes(model, 2) == Counter({shape: 1})
    made = np.matmul(np.zeros(left), np.zeros(right)).size
    assert count_cost(model, 2).matmul_flops == 2 * made * left[-1]


@pytest.mark.parametrize(("flags", "left", "right"), [("", (2, 8), (8, 3)), ("t", (2, 8), (3, 8))])
def test_gemm_with_its_bias(flags, left, right):
    attribute = "<transB = 1>" if flags else ""
    model = parse(
        f"agraph (float[2, 8] x) => (float[2, 3] y) {{ y = Gemm {attribute} (x, w, b) }}",
        w=right,
        b=(3,),
    )
    cost = count_cost(model, left[0])
    assert (cost.flops, cost.matmul_flops) == (2 * 2 * 8 * 3 + 6, 2 * 2 * 8 * 3)


def test_a_convolution_counts_as_its_matrix_product():
    model = parse(
        """
        agraph (float[N, 6, 8, 8] x) => (float[N, 10, 4, 4] y) {
            y = Conv <group = 2, strides = [2, 2]> (x, w, b)
        }
        """,
        w=(10, 3, 2, 2),
        b=(10,),
    )
    assert matmul_shapes(model, 3) == Counter({(2, 3 * 16, 12, 5): 1})
    cost = count_cost(model, 3)
    assert cost.matmul_flops == 2 * (3 * 10 * 4 * 4) * (3 * 2 * 2)
    assert cost.flops - cost.matmul_flops == 3 * 10 * 4 * 4


@pytest.mark.parametrize(("kind", "bytes_each"), [("float16", 2), ("bfloat16", 2), ("double", 8)])
def test_bytes_are_those_of_the_type(kind, bytes_each):
    model = parse(f"agraph ({kind}[2, 8] x) => ({kind}[2, 8] y) {{ y = Tanh(x) }}")
    cost = count_cost(model, 2)
    assert (cost.flops, cost.bytes) == (16, 2 * 16 * bytes_each)


def test_a_quantised_graph():
    model = parse(
        """
        agraph (float[N, 8] x) => (float[N, 4] y) {
            small = QuantizeLinear(x, scale, zero)
            back = DequantizeLinear(small, scale, zero)
            weight = DequantizeLinear(w, scale, zero)
            y = MatMul(back, weight)
        }
        """,
        w=np.zeros((8, 4), np.int8),
        scale=np.float32(0.1),
        zero=np.int8(0),
    )
    cost = count_cost(model, 3)
    assert cost.weight_bytes == 8 * 4 + 4 + 1
    assert cost.matmul_flops == 2 * 3 * 8 * 4
    assert cost.by_op == {
        "MatMul": 2 * 3 * 8 * 4,
        "DequantizeLinear": 2 * (3 * 8 + 8 * 4),
        "QuantizeLinear": 4 * 3 * 8,
    }
    # x read; one byte each written and read; float results written and read; y written
    assert cost.bytes == cost.weight_bytes + 24 * 4 + 2 * 24 + 2 * 24 * 4 + 2 * 32 * 4 + 12 * 4


def test_an_integer_product():
    model = parse(
        "agraph (int8[N, 8] x) => (int32[N, 4] y) { y = MatMulInteger(x, w) }",
        w=np.zeros((8, 4), np.int8),
    )
    assert matmul_shapes(model, 2) == Counter({(1, 2, 8, 4): 1})


class TestRefused:
    """Nothing is counted as free because it is not known."""

    def test_another_batch_of_a_fixed_graph(self):
        model = parse("agraph (float[2, 8] x) => (float[2, 8] y) { y = Tanh(x) }")
        with pytest.raises(OnnxError, match="fixed at batch 2: expected 3"):
            count_cost(model, 3)

    def test_a_second_free_axis(self):
        model = parse("agraph (float[N, M] x) => (float[N, M] y) { y = Tanh(x) }")
        with pytest.raises(OnnxError, match=r"only the batch may be free: got \['M', 'N'\]"):
            count_cost(model, 3)

    def test_an_operator_without_a_known_cost(self):
        model = parse(
            'agraph (float[2, 8] x) => (float[2, 8] y) { y = Einsum <equation = "ij->ij"> (x) }'
        )
        with pytest.raises(OnnxError, match="cost of operator Einsum of y is not known"):
            count_cost(model, 2)

    def test_a_shape_that_depends_on_the_data(self):
        model = parse("agraph (float[2, 8] x) => (int64[2, K] y) { y = NonZero(x) }")
        with pytest.raises(OnnxError, match="shape of 'y' cannot be found"):
            count_cost(model, 2)

    def test_an_operator_of_a_runtime(self):
        model = onnx.parser.parse_model(
            '<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>'
            "agraph (float[2, 8] x) => (float[2, 8] y)"
            " { p = com.microsoft.Gelu(x) \n y = Tanh(p) }"
        )
        with pytest.raises(OnnxError, match="shape of 'p' cannot be found"):
            count_cost(model, 2)

    def test_shapes_that_do_not_fit(self):
        model = parse("agraph (float[2, 8] x) => (float[2, 3] y) { y = MatMul(x, w) }", w=(7, 3))
        with pytest.raises(OnnxError, match="no shapes can be found at batch 2"):
            count_cost(model, 2)


# --- exported models

BATCH, FRAMES, HEIGHT, WIDTH, DIM = 2, 3, 32, 48, 32
PATCHES = FRAMES * (HEIGHT // 16) * (WIDTH // 16)
PAIRS = [(attn, "divided") for attn in MECHANISM_NAMES]
PAIRS += [("regular", scheme) for scheme in SCHEME_NAMES if scheme != "divided"]


def make(attn: Any, scheme: Any = "divided"):
    torch.manual_seed(0)
    model = FastTimeSformer(
        FRAMES,
        3,
        HEIGHT,
        WIDTH,
        num_classes=2,
        dim=DIM,
        dim_head=16,
        depth=1,
        attn_mechanism=attn,
        attn_type=scheme,
    )
    return model.eval().requires_grad_(requires_grad=False)


def write(model, path, **options):
    clips = torch.zeros(BATCH, FRAMES, 3, HEIGHT, WIDTH)
    export_onnx(model, {"video": clips}, path, opset=DEFAULT_OPSET, **options)
    return onnx.load(path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The graph of a mechanism and scheme; not to be changed."""
    made = {}

    def get(attn, scheme="divided"):
        if (attn, scheme) not in made:
            path = tmp_path_factory.mktemp("cost") / "model.onnx"
            made[attn, scheme] = write(make(attn, scheme), path)
        return made[attn, scheme]

    return get


def flops_of(module, *inputs):
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_matrix_products_are_those_torch_counts(attn, exported):
    model = make(attn)
    eager = flops_of(model, torch.zeros(BATCH, FRAMES, 3, HEIGHT, WIDTH))
    # The exporter drops what no logit reads: the patches in the last feed-forward.
    unread = flops_of(model.blocks[-1].mlp, torch.zeros(BATCH, PATCHES, DIM))
    assert 0 < unread < eager / 2
    assert count_cost(exported(attn), BATCH).matmul_flops == eager - unread


@pytest.mark.slow
@pytest.mark.parametrize(("attn", "scheme"), PAIRS)
def test_every_operator_of_an_export_has_a_known_cost(attn, scheme, exported):
    cost = count_cost(exported(attn, scheme), BATCH)
    shapes = matmul_shapes(exported(attn, scheme), BATCH)
    assert sum(shape.flops * count for shape, count in shapes.items()) == cost.matmul_flops
    assert sum(cost.by_op.values()) == cost.flops
    assert cost.matmul_flops < cost.flops
    assert cost.weight_bytes < cost.bytes
    assert all(isinstance(shape, MatmulShape) for shape in shapes)


@pytest.mark.slow
def test_a_dynamic_graph_costs_what_the_static_one_does(exported, tmp_path):
    static = exported("regular")
    profile = BatchProfile(1, 2, 4)
    dynamic = write(make("regular"), tmp_path / "dynamic.onnx", dynamic_batch=profile)
    before = dynamic.SerializeToString()
    assert matmul_shapes(dynamic, 2) == matmul_shapes(static, 2)
    one, two = count_cost(dynamic, 1), count_cost(dynamic, 2)
    assert two.matmul_flops == 2 * one.matmul_flops == count_cost(static, 2).matmul_flops
    assert two.flops == count_cost(static, 2).flops
    assert dynamic.SerializeToString() == before  # counting leaves the model as it is


@pytest.mark.slow
def test_of_a_half_precision_model_only_the_bytes_differ(exported, tmp_path):
    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = make("regular").half()

        def forward(self, video):
            return self.model(video.half()).float()

    full, half = exported("regular"), write(Half(), tmp_path / "half.onnx")
    assert matmul_shapes(half, 2) == matmul_shapes(full, 2)
    full, half = count_cost(full, 2), count_cost(half, 2)
    assert half.flops == full.flops
    assert 0.5 * full.weight_bytes <= half.weight_bytes < 0.51 * full.weight_bytes
    assert 0.5 * full.bytes < half.bytes < full.bytes  # more than half: the casts
