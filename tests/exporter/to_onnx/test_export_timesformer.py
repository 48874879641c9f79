"""The graph of TimeSformer: its operators, and its logits in ONNX Runtime with a mask."""

import warnings

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import onnxscript.optimizer
import pytest
import torch
from torch import Tensor

from exporter.to_onnx.export import find_unfit
from model import TimeSformer

OPSET = 20
LIMIT = 1e-5  # relative L2 of float32 logits to eager float64
NAMES = ["video", "mask"]
KINDS = [
    pytest.param({"rotary_emb": rotary, "shift_tokens": shift}, id=f"{name}-{how}")
    for rotary, name in ((True, "rotary"), (False, "learned"))
    for shift, how in ((False, "still"), (True, "shift"))
]


def make(frames: int = 3, depth: int = 1, **options: object) -> TimeSformer:
    torch.manual_seed(0)
    return TimeSformer(
        dim=20, num_frames=frames, num_classes=4, image_size=(8, 12), patch_size=4, depth=depth,
        heads=2, dim_head=6, **options,
    ).eval()  # fmt: skip


def inputs(batch: int = 2, frames: int = 3, masked: bool = True) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    video = torch.randn(batch, frames, 3, 8, 12, generator=generator)
    mask = torch.rand(batch, frames, generator=generator) < 0.5
    mask[0] = False
    return (video, mask)[: 1 + masked]


def export(model: TimeSformer, example: tuple[Tensor, ...], free_batch: bool) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1, max=8)
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=NAMES[: len(example)],
            output_names=["logits"],
            dynamic_shapes=tuple({0: batch} for _ in example) if free_batch else None,
            optimize=False,
            verbose=False,
        )
    onnxscript.optimizer.optimize_ir(program.model, input_size_limit=2**40, output_size_limit=2**40)
    proto = ir.to_proto(program.model)
    onnx.checker.check_model(proto, full_check=True)
    return onnx.shape_inference.infer_shapes(
        proto, check_type=True, strict_mode=True, data_prop=True
    )


def error(model: TimeSformer, session: onnxruntime.InferenceSession, given: tuple[Tensor, ...]):
    feed = {name: tensor.numpy() for name, tensor in zip(NAMES, given, strict=False)}
    (logits,) = session.run(["logits"], feed)
    video, *mask = given
    with torch.no_grad():
        truth = model.double()(video.double(), *mask).numpy()
    model.float()
    assert logits.dtype == np.float32
    return np.linalg.norm(logits - truth) / np.linalg.norm(truth)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("options", KINDS)
class TestGraph:
    @pytest.mark.slow
    def test_is_fit_and_computes_the_logits_of_the_model(self, options, masked):
        model = make(**options)
        graph = export(model, inputs(masked=masked), free_batch=False)
        assert find_unfit(graph) == []
        session = onnxruntime.InferenceSession(
            graph.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        assert [(entry.name, entry.shape, entry.type) for entry in session.get_inputs()] == [
            ("video", [2, 3, 3, 8, 12], "tensor(float)"),
            ("mask", [2, 3], "tensor(bool)"),
        ][: 1 + masked]
        assert error(model, session, inputs(masked=masked)) <= LIMIT

    @pytest.mark.slow
    def test_computes_the_logits_of_the_model_at_every_batch(self, options, masked):
        model = make(**options)
        graph = export(model, inputs(masked=masked), free_batch=True)
        assert find_unfit(graph) == []
        session = onnxruntime.InferenceSession(
            graph.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        for entry in session.get_inputs():
            assert isinstance(entry.shape[0], str)
        for batch in (1, 2, 3):
            assert error(model, session, inputs(batch, masked=masked)) <= LIMIT


@pytest.mark.slow
def test_the_mask_changes_the_logits():
    """The comparison can fail: without the mask the graph computes other logits."""
    model, (video, mask) = make(depth=2), inputs()
    session = onnxruntime.InferenceSession(
        export(model, (video, mask), free_batch=False).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    feed = {"video": video.numpy(), "mask": np.ones_like(mask.numpy())}
    (logits,) = session.run(None, feed)
    with torch.no_grad():
        assert np.abs(logits - model(video, mask).numpy()).max() > 1e-2
        assert np.abs(logits - model(video).numpy()).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("options", KINDS)
def test_one_frame_leaves_no_empty_tensor(options):
    model = make(frames=1, **options)
    graph = export(model, inputs(frames=1), free_batch=False)
    shapes = [value.type.tensor_type.shape for value in graph.graph.value_info]
    assert all(dim.dim_value > 0 for shape in shapes for dim in shape.dim)
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert error(model, session, inputs(frames=1)) <= LIMIT


@pytest.mark.slow
def test_weights_are_split_not_activations():
    ops = {node.op_type for node in export(make(depth=2), inputs(), free_batch=False).graph.node}
    assert not ops & {"Split", "Chunk", "Einsum", "Gather", "GatherElements", "Not"}
