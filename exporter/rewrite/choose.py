"""Which rewrites suit an export: its target, its precision, and what stays in float32."""

from __future__ import annotations

from exporter.precision import kept_modules
from exporter.rewrite import FOR_A_CPU, REWRITES, rewrite
from exporter.rewrite.places import Folded
from exporter.spec import ExportSpec
from model.classifier import VideoClassifier
from model.precision import rounded_modules

# Rewrites that fold one module into another.
_FOLDING = {"fold_fc", "frame_weights"}
# Rewrites whose weights are made at run time, and those whose weights are stacked by head or frame:
# runtimes have no integer product of either.
_NOT_FOR_INT8 = {"fold_global_key"}
# Each rounds once more than what it replaces.
_NOT_BELOW_FP32 = {"bias_apart", "fold_norm"}
_STACKING = {"heads_first", "frame_weights"}
# Width of tokens from which integer products are ahead of stacked ones in float32 (ONNX Runtime).
_WIDE = 384


def rewrite_for_export(
    spec: ExportSpec, model: VideoClassifier, *, integer_products: bool = False
) -> VideoClassifier:
    """The same function laid out for the runtimes. Raises as `rewrites_to_skip` does."""
    skip = rewrites_to_skip(spec, model, integer_products=integer_products)
    return rewrite(model, skip, spec.run_batch)


def rewrites_to_skip(
    spec: ExportSpec, model: VideoClassifier, *, integer_products: bool = False
) -> set[str]:
    """The rewrites that an export is better without.

    What is to stay in float32 stays a module of its own: it is not folded into another. With
    `integer_products`, an int8 graph has as many of those as it can, as TensorRT wants it.

    Raises:
        UsageError: if a module to keep is unknown.
    """
    kept = kept_modules(model, spec.keep_fp32)
    skip = set(REWRITES) if spec.rewrite == "none" else set(spec.no_rewrite)
    if spec.optimize_for == "tensorrt":
        skip |= FOR_A_CPU
    if spec.precision in ("fp16", "bf16") or integer_products:
        skip |= _NOT_BELOW_FP32
    if spec.precision == "int8":
        skip |= _NOT_FOR_INT8
        if integer_products or getattr(model.config, "dim", 0) >= _WIDE:
            skip |= _STACKING
    if kept:
        modules = rounded_modules(rewrite(model, skip, spec.run_batch))
        if any(isinstance(modules[path], Folded) for path in kept):
            skip |= _FOLDING
    return skip
