"""Every opset that can be asked for: exported, in its own container, and proven."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from exporter import ExportSpec, export
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.spec import OPSETS
from exporter.to_onnx.export import export_onnx
from model import FastTimeSformer, TimeSformerViT
from model.checkpoint import save_checkpoint

# The specification's table: the container (IR version) in which each opset appeared.
IR_VERSIONS = {16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}


def tiny(attn: str = "regular") -> FastTimeSformer:
    torch.manual_seed(2)
    sizes = {"num_classes": 3, "depth": 1, "dim": 32, "dim_head": 16}
    return FastTimeSformer(2, 3, 32, 32, attn_mechanism=attn, **sizes).eval()


def test_every_opset_has_its_container():
    assert IR_VERSIONS.keys() == {*OPSETS}
    for _, ir, opset, *_ in onnx.helper.VERSION_TABLE:
        assert IR_VERSIONS.get(opset, ir) == ir


@pytest.mark.slow
@pytest.mark.parametrize("opset", OPSETS)
def test_an_export_of_every_opset_is_proven_in_its_container(tmp_path, opset):
    attn = ("fastformer", "performer", "regular")[opset % 3]
    spec = ExportSpec(
        attn=attn, res=(32, 32), frames=2, dim=32, dim_head=16, depth=1, opset=opset,
        engine="none", bench_seconds=0,
    )  # fmt: skip
    result = export(spec, out=tmp_path / "out")
    assert result.verdict == "pass"
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == IR_VERSIONS[opset]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "opset", "precision"),
    [("selu", 16, "fp32"), ("gelu_new", 17, "fp16"), ("silu", None, "bf16"), ("gelu", 16, "int8")],
)
def test_an_activation_is_proven_whatever_a_low_opset_makes_of_it(
    tmp_path, activation, opset, precision
):
    torch.manual_seed(0)
    model = TimeSformerViT(2, 32, 32, 3, 32, 1, 2, hidden_act=activation)
    save_checkpoint(model, tmp_path / "trained.safetensors")
    spec = ExportSpec(
        checkpoint=tmp_path / "trained.safetensors", opset=opset, precision=precision,
        engine="none", bench_seconds=0,
    )  # fmt: skip
    assert export(spec, out=tmp_path / "out").verdict == "pass"


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "norms"), [(16, 0), (17, 4)])
def test_opset_16_writes_norms_as_their_equation_and_17_does_not(tmp_path, opset, norms):
    made = write(tiny(), tmp_path, opset)
    assert made.ops.get("LayerNormalization", 0) == norms
    model = onnx.load(tmp_path / "model.onnx")
    assert all(len(node.input) == 1 for node in model.graph.node if node.op_type == "ReduceMean")
    assert not any(a.name == "num_outputs" for node in model.graph.node for a in node.attribute)


@pytest.mark.slow
def test_opset_16_computes_the_same_function_as_18(tmp_path):
    model = tiny("performer")
    example = torch.randn(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    truth = model.double()(example.double()).detach().numpy()
    model.float()
    for opset in (16, 18):
        write(model, tmp_path, opset)
        with OnnxRuntimeRunner(tmp_path / "model.onnx") as runner:
            found = runner.run({"video": example.numpy()})["logits"]
        assert np.linalg.norm(found - truth) / np.linalg.norm(truth) < 1e-6


@pytest.mark.slow
def test_a_norm_of_float16_is_computed_in_float32_at_opset_16(tmp_path):
    """The operator computes so by its definition; a square of float16 would overflow."""
    write(tiny().half(), tmp_path, 16, torch.float16)
    model = onnx.load(tmp_path / "model.onnx")
    inferred = onnx.shape_inference.infer_shapes(model)
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    norms = [node for node in model.graph.node if node.op_type == "Sqrt"]
    assert len(norms) == 4
    assert {kinds[node.output[0]] for node in norms} == {onnx.TensorProto.FLOAT}


def write(model: FastTimeSformer, folder: Path, opset: int, dtype: torch.dtype = torch.float32):
    example = torch.zeros(1, 2, 3, 32, 32, dtype=dtype)
    return export_onnx(model, {"video": example}, folder / "model.onnx", opset=opset)
