"""Which parts of a graph are softmax attention, and what keeps TensorRT from fusing them."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.graph.attention import find_attentions
from exporter.graph.view import GraphView

FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def found(model):
    return find_attentions(GraphView(model))


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("kind", [HALF, BF16])
def test_an_attention_in_half_precision_has_no_obstacle(attention, kind, cast):
    (entry,) = found(attention(kind, cast=cast))
    assert entry.obstacle == ""
    assert entry.nodes[0].startswith("MatMul")
    assert entry.nodes[1].startswith("Softmax")


@pytest.mark.parametrize(
    ("options", "obstacle"),
    [
        ({"kind": FLOAT}, "TensorRT fuses float32 attention of one query only"),
        ({"width": 12}, "a head has 12 channels, and TensorRT fuses 16 to 256, in steps of 8"),
        ({"width": 8}, "a head has 8 channels, and TensorRT fuses 16 to 256, in steps of 8"),
        ({"weights": (1, 2, 64, 64)}, "the rewrite frame_weights gives its query weights of each"),
    ],
)
def test_what_keeps_an_attention_from_being_fused_is_told(attention, options, obstacle):
    (entry,) = found(attention(**options))
    assert entry.obstacle.startswith(obstacle)


def test_weights_of_one_head_are_no_obstacle(attention):
    (entry,) = found(attention(weights=(64, 64)))
    assert entry.obstacle == ""


def test_random_features_are_no_attention(attention):
    assert found(attention(key=(64, 266))) == ()


def test_random_features_stored_in_int8_are_no_attention(attention):
    model = attention(key=(64, 266))
    (key,) = (weight for weight in model.graph.initializer if weight.name == "kt")
    levels = numpy_helper.from_array(np.zeros((64, 266), np.int8), "levels")
    scale = numpy_helper.from_array(np.ones((), np.float16), "scale")
    model.graph.initializer.remove(key)
    model.graph.initializer.extend([levels, scale])
    node = helper.make_node("DequantizeLinear", ["levels", "scale"], ["kt"], name="dequantize")
    model.graph.node.insert(0, node)
    assert found(model) == ()
