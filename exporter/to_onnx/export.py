"""Export a model as `model.onnx`: trace it, fold constants, check the file, and describe it.

The graph takes `video` float32 `(b, f, c, h, w)`. A graph that contains the normalisation takes
`video` uint8 `(b, f, h, w, c)` instead. Some graphs also take `mask` bool `(b, f)`. The output is
`logits` float32 `(b, classes)`, unless the model names others.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from inspect import Parameter
from io import StringIO
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from exporter.errors import OnnxError, first_line
from exporter.graph.modules import write_module_outputs
from exporter.graph.view import GraphTensor, GraphView, graph_tensor
from exporter.lint import lint
from exporter.spec import BatchProfile
from exporter.to_onnx.blocks import blocks_called, define_blocks
from exporter.to_onnx.free_batch import require_free_batch
from exporter.to_onnx.opset import LEAST_TRACED, lower_opset
from exporter.to_onnx.registry import read_functions_once
from exporter.to_onnx.simplify import simplify
from model.outputs import LOGITS

MAX_FILE_BYTES = 2**31 - 1  # the limit of one protobuf file

# Rules of `exporter.lint` that an export must not break. This includes rules about operators that
# are only slow, not wrong.
_REFUSED_BY = (
    "float64",
    "mixed-float64",
    "einsum-types",
    "einsum",
    "integer-product",
    "int64-arithmetic",
    "control-flow",
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # the colour codes of a terminal
# Metadata of torch's exporter that contains file paths of this machine.
_LOCAL_METADATA = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")


@dataclass(frozen=True)
class OnnxGraph:
    """A summary of the exported file: sizes, counts of operators, inputs and outputs."""

    opset: int
    nodes: int
    ops: Mapping[str, int]
    parameters: int
    file_bytes: int
    sha256: str
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]


def export_onnx(
    model: nn.Module,
    example: Mapping[str, Tensor],
    path: Path,
    *,
    opset: int,
    dynamic_batch: BatchProfile | None = None,
    metadata: Mapping[str, str] | None = None,
    output_names: Sequence[str] = (LOGITS,),
) -> OnnxGraph:
    """Write `model` as one ONNX file and check the file.

    Args:
        model: A model in evaluation mode; maps `(b, f, c, h, w)` to `(b, classes)`.
        example: The inputs by name, in the order of the model's forward, with the shapes to export.
        path: The file to write.
        opset: ONNX opset of the graph.
        dynamic_batch: The range of a free batch. Without it, the batch is fixed.
        metadata: Entries for the file's `metadata_props`.
        output_names: The names of what the model gives, in order.

    Raises:
        OnnxError: if torch cannot export the model, or the graph is not fit for the runtimes.
    """
    graph = _trace(model, example, max(opset, LEAST_TRACED), dynamic_batch, output_names)
    lower_opset(graph, opset)
    # Older runtimes refuse a newer container, even if they know every operator.
    graph.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    graph.producer_name = "tsformer"
    graph.metadata_props.update(metadata or {})
    _remove_local_paths(graph)
    proto = ir.to_proto(graph)
    write_module_outputs(proto)
    if proto.ByteSize() > MAX_FILE_BYTES:
        raise OnnxError(
            "the graph does not fit one ONNX file",
            got=f"{proto.ByteSize() / 2**30:.2f} GiB",
            expected="below 2 GiB",
            remedy="export a smaller model",
        )
    onnx.save(proto, path)
    return check_onnx(path)


def check_onnx(path: Path) -> OnnxGraph:
    """Check a file: that it is valid, has consistent types and shapes, and suits the runtimes.

    Raises:
        OnnxError: if the file is not valid ONNX, or contains operators or types that a runtime
            rejects or computes badly.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.shape_inference.infer_shapes(
            onnx.load(path), check_type=True, strict_mode=True, data_prop=True
        )
    except Exception as error:  # the C++ checker raises several unrelated classes
        raise OnnxError(f"{path.name} is not a valid ONNX graph: {error}") from error
    findings = find_unfit(model)
    if findings:
        raise OnnxError(
            f"{path.name} is not fit for the runtimes: {'; '.join(findings[:3])}",
            remedy="this is a defect of tsformer: please report it with the command used",
        )
    return _describe(model, path)


def find_unfit(model: onnx.ModelProto) -> list[str]:
    """List the forbidden parts of a graph: float64, einsum, control flow, int64 arithmetic."""
    return [f"{found.where} {found.what}" for found in lint(GraphView(model), _REFUSED_BY)]


def _trace(
    model: nn.Module,
    example: Mapping[str, Tensor],
    opset: int,
    dynamic_batch: BatchProfile | None,
    output_names: Sequence[str],
) -> ir.Model:
    tensors, batch, shapes = tuple(example.values()), None, None
    if dynamic_batch:
        if len(tensors[0]) < 2:  # torch would fix a batch of 1
            tensors = tuple(torch.cat((tensor, tensor)) for tensor in tensors)
        batch = torch.export.Dim("batch", min=1, max=max(dynamic_batch.max, len(tensors[0])))
        shapes = _free_first_axes(model, len(tensors), batch)
    read_functions_once()
    export = partial(
        torch.onnx.export, dynamo=True, opset_version=opset, optimize=False, verbose=False
    )
    try:
        with _quiet(), _uncollected():
            with blocks_called(model) as functions:
                program = export(
                    model,
                    tensors,
                    input_names=list(example),
                    output_names=list(output_names),
                    dynamic_shapes=shapes,
                )
            assert program is not None
            if shapes:
                require_free_batch(program.model, model, tensors, shapes)
            define_blocks(program.model, functions, type(model), export, batch)
            simplify(program.model)
    except OnnxError:
        raise
    except Exception as error:  # the passes of torch raise many unrelated classes
        # Ctrl-C during an import or a trace can arrive as another error, with the KeyboardInterrupt
        # deep in the chain of its causes.
        if any(isinstance(cause, KeyboardInterrupt) for cause in _causes(error)):
            raise KeyboardInterrupt from error
        first = error.__cause__ or error  # the outer error of torch is a page of advice
        reason = first_line(_COLOUR.sub("", str(first)))
        raise OnnxError(
            f"torch could not export the model: {type(first).__name__}: {reason}",
            remedy="run with --debug for the whole trace",
        ) from error
    return program.model


def _free_first_axes(model: nn.Module, count: int, batch: Any) -> tuple[Any, ...]:  # noqa: ANN401  # a Dim
    """The free sizes of the inputs, in the structure that torch wants: `*more` is one argument."""
    free = tuple({0: batch} for _ in range(count))
    kinds = [one.kind for one in inspect.signature(model.forward).parameters.values()]
    if Parameter.VAR_POSITIONAL not in kinds:
        return free
    place = kinds.index(Parameter.VAR_POSITIONAL)
    return (*free[:place], free[place:]) if count > place else free


@contextmanager
def _uncollected() -> Iterator[None]:
    """Let the garbage collector wait: it would look at the many objects of a trace, which live."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress, hints and deprecation warnings of torch's exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(StringIO()),
            redirect_stderr(StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _remove_local_paths(model: ir.Model) -> None:
    """Remove paths of this machine, so that the same model gives the same file everywhere."""
    for node in model.graph:
        for key in _LOCAL_METADATA:
            node.metadata_props.pop(key, None)


def _describe(model: onnx.ModelProto, path: Path) -> OnnxGraph:
    content = path.read_bytes()
    weights = [w for w in model.graph.initializer if w.data_type != onnx.TensorProto.INT64]
    return OnnxGraph(
        opset=next(o.version for o in model.opset_import if o.domain == ""),
        nodes=len(model.graph.node),
        ops=dict(Counter(node.op_type for node in model.graph.node).most_common()),
        parameters=sum(math.prod(weight.dims) for weight in weights),
        file_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        inputs=tuple(map(graph_tensor, model.graph.input)),
        outputs=tuple(map(graph_tensor, model.graph.output)),
    )
