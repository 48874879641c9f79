"""Quantise a graph of float32 or fp16: the same graph with int8 products, calibrated on clips.

ONNX Runtime's quantiser does the work, on the products that `int8_products` chooses. This file
prepares the graph for the quantiser. Afterwards it reconnects all other nodes to the values that
they read before. If the product of a weight would not be faster in int8, the weight is stored
in int8 and the product is computed in float32.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from exporter.errors import OnnxError
from exporter.graph.weights import set_weights
from exporter.to_onnx.entries import take_in_two_steps
from exporter.to_onnx.int8_products import (
    FORMS,
    PRODUCTS,
    Form,
    choose_products,
    find_faster,
    find_vanished,
)
from exporter.to_onnx.small_steps import set_small_steps
from model.config import ConfigError, check_choice


@dataclass(frozen=True)
class Quantized:
    """A summary of a quantisation.

    Attributes:
        form: A key of `FORMS`.
        products: Number of products computed in int8.
        stored: Number of weights stored in int8 whose products are computed in float32 or fp16.
        kept: Number of products computed in float32 or fp16, those of stored weights included.
        calibration_clips: Number of calibration clips.
        nodes: Number of nodes of the int8 graph.
        bytes: Size of the int8 file.
    """

    form: str
    products: int
    stored: int
    kept: int
    calibration_clips: int
    nodes: int
    bytes: int


def quantize(
    graph: Path,
    out: Path,
    calibration: Mapping[str, np.ndarray],
    *,
    form: str,
    keep: Collection[str] = (),
) -> Quantized:
    """Write `graph` with int8 products to `out`; inputs, outputs and metadata stay the same.

    Args:
        graph: A graph of float32 or fp16 that `export_onnx` wrote.
        out: The file to write.
        calibration: Clips by input name: `video` float32 `(n, f, c, h, w)`, and `mask` bool
            `(n, f)` if the graph takes a mask. If the last fixed batch is too short, it is filled
            with the first clips.
        form: A key of `FORMS`.
        keep: Paths of modules whose products stay in float32.

    Raises:
        OnnxError: if a name is unknown, there is no calibration clip or no product to quantise, or
            ONNX Runtime cannot quantise the graph.
    """
    try:
        check_choice("form of an int8 graph", form, FORMS)
    except ConfigError as error:
        raise OnnxError(str(error)) from error
    model = onnx.load(graph)
    clips = _count_clips(model, calibration)
    linear = choose_products(model.graph, keep)
    chosen = find_faster(linear, model.graph, FORMS[form])
    if FORMS[form].split_bias:
        _split_bias(model.graph, chosen)
    quantised = copy.deepcopy(model)
    while chosen:  # with an empty list of names, the quantiser would quantise every node
        quantised = _run_library(model, _batches(model, calibration), FORMS[form], chosen)
        vanished = find_vanished(quantised.graph, linear, chosen)
        if not vanished:
            break
        quantised, chosen = copy.deepcopy(model), chosen - vanished
        linear = [node for node in linear if node.name not in vanished]
    set_small_steps(quantised.graph, model.graph)
    _restore(quantised, model, chosen)
    stored = _store(quantised.graph, [node for node in linear if node.name not in chosen])
    if form == "onnxruntime":  # which OpenVINO takes too
        take_in_two_steps(quantised.graph)
    try:
        onnx.checker.check_model(quantised, full_check=True)
    except Exception as error:  # the C++ checker raises several unrelated classes
        raise OnnxError(f"the int8 graph is not valid ONNX: {error}") from error
    onnx.save(quantised, out)
    return Quantized(
        form=form,
        products=len(chosen),
        stored=stored,
        kept=sum(node.op_type in PRODUCTS for node in model.graph.node) - len(chosen),
        calibration_clips=clips,
        nodes=len(quantised.graph.node),
        bytes=out.stat().st_size,
    )


def _count_clips(model: onnx.ModelProto, calibration: Mapping[str, np.ndarray]) -> int:
    names = [value.name for value in model.graph.input]
    counts = {len(array) for array in calibration.values()}
    if set(calibration) != set(names) or len(counts) != 1:
        raise OnnxError(
            "calibration needs as many clips for each input of the graph as for the others",
            got={name: array.shape for name, array in calibration.items()},
            expected=", ".join(names),
        )
    if counts == {0}:
        raise OnnxError("calibration needs at least one clip")
    return counts.pop()


def _store(graph: onnx.GraphProto, products: Sequence[onnx.NodeProto]) -> int:
    """Store the weights of products in int8, one scale for each output channel; return the count.

    `Cast` and `Mul` compute the float32 weight from the int8 one. A runtime folds these nodes when
    it loads the graph. It would not fold a `DequantizeLinear`, because it keeps that node for an
    integer kernel. Without such a kernel, it would compute the node again for each clip.
    """
    weights = {weight.name: weight for weight in graph.initializer}
    axes = {node.input[1]: (1, 2, 3) if node.op_type == "Conv" else -2 for node in products}
    for name, inputs in axes.items():
        weight = numpy_helper.to_array(weights.pop(name))  # (..., i, o); of a Conv (o, i, h, w)
        largest = np.abs(weight).max(axis=inputs, keepdims=True)
        scale = np.maximum(largest / 127, np.finfo(np.float32).tiny)
        levels = np.round(weight / scale).astype(np.int8)
        for part, array in ((f"{name}_levels", levels), (f"{name}_scale", scale)):
            weights[part] = numpy_helper.from_array(array, part)
        cast = onnx.helper.make_node(
            "Cast", [f"{name}_levels"], [f"{name}_float"], to=onnx.TensorProto.FLOAT
        )
        scaled = onnx.helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [name])
        for place, node in enumerate((cast, scaled)):
            graph.node.insert(place, node)
    set_weights(graph, weights)
    return len(axes)


def _split_bias(graph: onnx.GraphProto, chosen: set[str]) -> None:
    """Add two leading axes of length 1 to the biases that are added to chosen products.

    ONNX Runtime fuses a product and a bias of one axis into a `Gemm` before it looks at types, and
    it has no integer kernel for a `Gemm` with a float32 bias. The result is the same, because
    tokens have three axes or more.
    """
    products = {node.output[0] for node in graph.node if node.name in chosen}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    weights = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        of_tokens = node.op_type == "Add" and ranks.get(node.output[0], 0) >= 3
        if not of_tokens or products.isdisjoint(node.input):
            continue
        for place, name in enumerate(node.input):
            if name in weights and len(weights[name].dims) == 1:
                # Use a copy: a LayerNorm can share the tensor. In an untrained model, all biases of
                # one length are equal and so are one tensor.
                node.input[place] = f"{name}_of_tokens"
                if node.input[place] not in weights:
                    split = copy.deepcopy(weights[name])
                    split.name, split.dims[:] = node.input[place], [1, 1, *split.dims]
                    weights[split.name] = split
    set_weights(graph, weights)


def _batches(
    model: onnx.ModelProto, calibration: Mapping[str, np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of the graph's fixed size; with a free batch, single clips to save memory."""
    count = len(next(iter(calibration.values())))
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1  # 0: a free batch
    for start in range(0, count, batch):
        places = range(start, start + batch)
        yield {name: array.take(places, 0, mode="wrap") for name, array in calibration.items()}


def _run_library(
    model: onnx.ModelProto, batches: Iterator[dict[str, np.ndarray]], form: Form, chosen: set[str]
) -> onnx.ModelProto:
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.quant_utils import add_pre_process_metadata
    except ImportError as error:
        raise OnnxError(f"ONNX Runtime's quantiser cannot be imported: {error}") from error

    class Reader(quantization.CalibrationDataReader):
        # None ends the iteration; the annotation of the base class does not allow it.
        def get_next(self) -> Any:  # noqa: ANN401
            return next(batches, None)

    source = copy.deepcopy(model)
    del source.graph.value_info[:]  # symbolic shapes confuse the shape inference of the quantiser
    # Without this metadata the quantiser logs advice to run a pass that breaks this graph.
    add_pre_process_metadata(source)
    with tempfile.TemporaryDirectory(prefix="tsformer-") as folder:
        path = Path(folder) / "int8.onnx"
        try:
            quantization.quantize_static(
                source,
                path,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(PRODUCTS),
                nodes_to_quantize=sorted(chosen),
                per_channel=True,
                reduce_range=form.reduce_range,
                activation_type=quantization.QuantType[form.activations],
                weight_type=quantization.QuantType.QInt8,
                # Measured: percentile calibration has a larger error, entropy has the same ranges.
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": form.activations == "QInt8",
                    "WeightSymmetric": True,
                    "QuantizeBias": False,  # TensorRT does not accept an int32 bias
                    # The output of a product is added to float32 tokens.
                    "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
                },
            )
            return onnx.load(path)
        except Exception as error:  # the quantiser raises many unrelated classes
            raise OnnxError(f"ONNX Runtime could not quantise the graph: {error}") from error


def _restore(quantised: onnx.ModelProto, model: onnx.ModelProto, chosen: set[str]) -> None:
    """Reconnect all nodes except the chosen products to their old inputs; restore the metadata.

    The quantiser connects every reader of a quantised tensor to the rounded values, and writes its
    own metadata. The patch embedding also gets its old input, the pixels, because calibration
    cannot know the bounds of pixels. Only its weights are int8.
    """
    graph = quantised.graph
    inputs = {node.name: node.input for node in model.graph.node if node.name not in chosen}
    pixels = {node.name: node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    for node in graph.node:
        # The metadata of nodes is a third of a small file. The map of modules has the same content.
        node.ClearField("metadata_props")
        if node.name in inputs:
            node.input[:] = inputs[node.name]
        elif node.name in pixels:
            node.input[0] = pixels[node.name]
    _drop_unread(graph)
    weights = (*model.graph.initializer, *graph.initializer)
    set_weights(graph, {weight.name: weight for weight in weights})
    del graph.value_info[:], quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    quantised.producer_name, quantised.producer_version = model.producer_name, ""


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the rounding nodes that no node reads any more."""
    outputs = {value.name for value in graph.output}
    while True:
        read = {name for node in graph.node for name in node.input} | outputs
        dead = [node for node in graph.node if read.isdisjoint(node.output)]
        if not dead:
            return
        for node in dead:
            graph.node.remove(node)
