"""Remove from a traced graph what computes nothing: constants, casts and shapes that cancel."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

_SIMPLIFICATIONS = (
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.cast_cast_rule,
    rules.reshape_reshape_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.remove_optional_bias_from_gemm_rule,
)
_NO_LIMIT = 2**40  # bytes


def simplify(graph: ir.Model) -> None:
    """Fold constants and remove operators that do nothing.

    This replaces `onnxscript.optimizer.optimize_ir`. One rule of that function compares every pair
    of nodes, which is slow.
    """
    for _ in range(2):  # a removed operator can make more values constant
        # No limit on sizes: a rearranged weight must become an initializer, whatever its size.
        fold_constants_ir(
            graph,
            onnx_shape_inference=True,
            input_size_limit=_NO_LIMIT,
            output_size_limit=_NO_LIMIT,
        )
        RewritePass(_SIMPLIFICATIONS)(graph)
        passes.RemoveUnusedNodesPass()(graph)
    ir.passes.Sequential(
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        # Folding makes one copy of a rearranged weight for each node that reads it.
        passes.DeduplicateInitializersPass(size_limit=_NO_LIMIT),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(graph)
