"""The list of layers of TensorRT-RTX: read as text, and of engines that are built here."""

import platform
import sys

import onnx
import pytest
from onnx import TensorProto

from exporter.graph.attention import GraphAttention
from exporter.to_engine.build import _attentions, build_engine
from exporter.to_engine.kernels import Layer, Unfused, find_fusion, parse_layers

needs_rtx = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="tensorrt-rtx-cu13 is for Linux on x86-64",
)
# Lines as TensorRT-RTX 1.7 writes them, with most of the fields left out.
MESSAGE = """Layers:
Name: __myl_Cast_myl0_0, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [1,8] }], \
TacticName: __myl_Cast_0xe7, StreamId: 0, Metadata: [ONNX Layer: cast_0]
Name: mm_1+mm_2_myl0_1, LayerType: gemm, Inputs: [], Metadata: [ONNX Layer: mm_1][ONNX Layer: mm_2]
Name: signal_0, LayerType: signal, Inputs: []
Name: wait_0, LayerType: wait, Inputs: []
Name: weights, LayerType: constant, Inputs: []
Name: conv_myl0_2, LayerType: correlation, Inputs: [], Metadata: [ONNX Layer: conv]
Name: _gemm_mha_v2_myl0_3, LayerType: kgen, Inputs: [], Metadata: [ONNX Layer: qk][ONNX Layer: av]
Name: _gemv_mha_v1_myl0_4, LayerType: kgen, Inputs: [], Metadata: [ONNX Layer: last]
Name: __myl_Fc_myl0_5, LayerType: runtime_fusion, Inputs: [], Metadata: [ONNX Layer: qk_2]
Bindings: x, y
"""


def test_each_line_with_a_type_is_a_layer():
    layers = parse_layers(MESSAGE)
    assert [layer.kind for layer in layers] == [
        *("kgen", "gemm", "signal", "wait", "constant"),
        *("correlation", "kgen", "kgen", "runtime_fusion"),
    ]
    assert layers[1] == Layer("mm_1+mm_2_myl0_1", "gemm", ("mm_1", "mm_2"))
    assert layers[2].nodes == ()


def test_a_text_without_layers_gives_none():
    assert parse_layers("Layers:\n") == ()
    assert parse_layers("") == ()


def test_kernels_and_fused_attentions_are_counted():
    sought = [
        GraphAttention("blocks.0.attn", ("qk", "softmax", "av"), ""),
        GraphAttention("blocks.1.attn", ("qk_2", "softmax_2", "av_2"), "too wide"),
        GraphAttention("blocks.2.attn", ("last",), ""),
    ]
    fusion = find_fusion(parse_layers(MESSAGE), sought)
    assert fusion.kernels == 6
    assert fusion.kernel_kinds == {"kgen": 3, "gemm": 1, "correlation": 1, "runtime_fusion": 1}
    assert (fusion.fused_attentions, fusion.attentions) == (2, 3)
    assert fusion.unfused == (Unfused("blocks.1.attn", "too wide"),)


def test_attentions_are_counted_where_onnx_refuses_the_file_of_weights(tmp_path, attention):
    how = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    onnx.save(attention(weights=(64, 64)), tmp_path / "model.onnx", **how)
    (tmp_path / "copy.bin").hardlink_to(tmp_path / "w.bin")  # TensorRT reads it
    assert len(_attentions(tmp_path / "model.onnx")) == 1


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize(
    ("options", "fused", "reason"),
    [
        ({}, 1, None),
        ({"cast": True}, 1, None),
        ({"kind": TensorProto.FLOAT}, 0, "TensorRT fuses float32 attention of one query only"),
    ],
    ids=["fp16", "fp16 with a softmax in float32", "fp32"],
)
def test_a_build_tells_which_attentions_it_fused(tmp_path, attention, options, fused, reason):
    onnx.save(attention(**options), tmp_path / "model.onnx")
    info = build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", flavour="rtx")
    assert info.fusion is not None
    assert (info.fusion.fused_attentions, info.fusion.attentions) == (fused, 1)
    assert [entry.reason for entry in info.fusion.unfused] == ([reason] if reason else [])
    assert info.fusion.kernels >= 1
