"""Lower a traced graph to an opset that torch's exporter does not write: 17, and 16.

torch writes opset 18 and above. TensorRT 8, the last one of JetPack 5, reads 17. Between them,
reductions took their axes as an attribute, `Split` had no `num_outputs`, and opset 16 has no
`LayerNormalization`.
"""

from __future__ import annotations

import onnx_ir as ir

from exporter.errors import OnnxError
from exporter.lint.batch import REDUCTIONS

LEAST_TRACED = 18  # of torch's exporter
# Reductions whose axes became an input with opset 18. That of ReduceSum did so with 13.
_REDUCTIONS = REDUCTIONS - {"ReduceSum"}
# Operators that opset 18 brought or changed in another way.
_NOT_BELOW_18 = {"BitwiseAnd", "BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im", "Mish"}


def lower_opset(model: ir.Model, opset: int) -> None:
    """Write the graph of a model of opset 18 with the operators of opset 17 or 16, in place.

    Raises:
        OnnxError: if an operator has no form in that opset.
    """
    if opset >= LEAST_TRACED:
        return
    graph = model.graph
    for node in list(graph):
        if node.op_type in _NOT_BELOW_18:
            raise OnnxError(f"operator {node.op_type} of {node.name} is not in opset {opset}")
        if node.op_type in _REDUCTIONS and len(node.inputs) > 1 and node.inputs[1] is not None:
            _axes_as_attribute(node)
        elif node.op_type == "Split":
            node.attributes.pop("num_outputs", None)  # it follows from the outputs
        elif node.op_type == "LayerNormalization" and opset < 17:
            _decompose_norm(graph, node)
    graph.opset_imports[""] = opset
    model.opset_imports[""] = opset


def _axes_as_attribute(node: ir.Node) -> None:
    axes = node.inputs[1]
    constant = axes.const_value if axes is not None else None
    if constant is None:
        raise OnnxError(f"the axes of {node.op_type} {node.name} are computed at run time")
    node.attributes["axes"] = ir.AttrInt64s("axes", constant.numpy().reshape(-1).tolist())
    node.attributes.pop("noop_with_empty_axes", None)
    node.resize_inputs(1)


def _decompose_norm(graph: ir.Graph, node: ir.Node) -> None:
    """Write `LayerNormalization` as its equation, computed in float32 as the operator does."""
    x, scale, *bias = node.inputs
    assert x is not None
    assert scale is not None
    rank = len(x.shape) if x.shape is not None else 0
    first = node.attributes.get_int("axis", -1)
    axes = list(range(first, 0)) if first < 0 else list(range(first, rank))
    stored, made = x.dtype, []
    kind = ir.DataType.FLOAT

    def add(op: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        new = ir.node(op, inputs, attributes or None, name=f"{node.name}_{op}_{len(made)}")
        new.metadata_props.update(node.metadata_props)
        new.outputs[0].dtype = kind
        made.append(new)
        return new.outputs[0]

    wide = x if stored == ir.DataType.FLOAT else add("Cast", x, to=int(ir.DataType.FLOAT))
    centred = add("Sub", wide, add("ReduceMean", wide, axes=axes, keepdims=1))
    variance = add("ReduceMean", add("Mul", centred, centred), axes=axes, keepdims=1)
    epsilon = ir.Value(
        name=f"{node.name}_epsilon",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([1]),
        const_value=ir.tensor([node.attributes.get_float("epsilon", 1e-5)], ir.DataType.FLOAT),
    )
    graph.initializers.add(epsilon)
    normal = add("Div", centred, add("Sqrt", add("Add", variance, epsilon)))
    if wide is not x:
        assert stored is not None
        kind = stored
        normal = add("Cast", normal, to=int(stored))
    result = add("Mul", normal, scale)
    if bias and bias[0] is not None:
        result = add("Add", result, bias[0])
    old = node.outputs[0]
    result.shape, result.type = old.shape, old.type
    graph.insert_before(node, made)
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    result.name = old.name
    graph.remove(node, safe=True)
