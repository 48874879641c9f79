"""Which rewrites suit an export: its target, its precision, and what stays in float32.

For TensorRT the rules are those with the most fused attentions and the fewest kernels in
`scripts/results/fusion.json`, which `scripts/gpu/fusion.py` measures. For OpenVINO the rules are
those with the lowest times in `scripts/results/layouts.json`, which `scripts/peers/layouts.py`
measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exporter.precision import kept_modules
from exporter.rewrite import REWRITES, rewrite
from exporter.rewrite.places import Folded
from exporter.rewrite.rule import Rewrite
from exporter.spec import ExportSpec
from model.classifier import VideoClassifier
from model.precision import rounded_modules

# OpenVINO computes bf16 and fp16 from a float32 graph. It makes one kernel of an attention of four
# axes, and the rewrites that are not listed break that kernel.
_IN_HALF = frozenset({"class_token", "fold_fc", "few_features", "join_groups", "fold_pixels"})
# Precision -> the rewrites that suit OpenVINO; a precision without an entry takes those of ONNX
# Runtime.
OPENVINO: Mapping[str, frozenset[str]] = {"bf16": _IN_HALF, "fp16": _IN_HALF}


def rewrite_for_export(
    spec: ExportSpec, model: VideoClassifier, target: str | None = None
) -> VideoClassifier:
    """The same function laid out for a runtime. Raises as `rewrites_to_skip` does."""
    skip = rewrites_to_skip(spec, model, target)
    return rewrite(model, skip, spec.run_batch)


def rewrites_to_skip(
    spec: ExportSpec, model: VideoClassifier, target: str | None = None
) -> dict[str, str]:
    """The rewrites that do not suit an export, each with the reason.

    Args:
        spec: The export.
        model: The model, as it was loaded.
        target: The runtime of the graph; the one that `model.onnx` is laid out for unless given.

    Raises:
        UsageError: if a module to keep in float32 is unknown.
    """
    kept = kept_modules(model, spec.keep_fp32)
    if spec.rewrite == "none":
        return dict.fromkeys(REWRITES, "--rewrite none")
    dim = getattr(model.config, "dim", 0)
    skip = {
        name: reason
        for name, rule in REWRITES.items()
        if (reason := _unsuited(rule, target or spec.optimize_for, spec.precision, dim))
        or (reason := _changing(rule, model.output_names))
    }
    skip |= dict.fromkeys(spec.no_rewrite, "--no-rewrite")
    if kept:
        # A module that stays in float32 stays a module of its own.
        modules = rounded_modules(rewrite(model, skip, spec.run_batch))
        if any(isinstance(modules[path], Folded) for path in kept):
            folding = [name for name, rule in REWRITES.items() if rule.folds_modules]
            skip |= dict.fromkeys(folding, "--keep-fp32 names a module that it folds into another")
    return skip


def _changing(rule: Rewrite[Any], outputs: Sequence[str]) -> str:
    """Which outputs of an export would mean something else; empty where none would."""
    changed = [name for name in outputs if name in rule.changes]
    return f"it changes what {', '.join(changed)} are" if changed else ""


def _unsuited(rule: Rewrite[Any], target: str, precision: str, dim: int) -> str:
    """Why a rewrite does not suit the graph of an export; empty where it does."""
    if target == "openvino":
        if precision in OPENVINO:
            suits = rule.name in OPENVINO[precision]
            return "" if suits else f"it does not suit openvino in {precision}"
        target = "onnxruntime"
    if target not in rule.targets:
        return f"it does not suit {target}"
    if precision not in rule.precisions:
        return f"it does not suit {precision}"
    if precision == "int8" and rule.int8_below_dim is not None and dim >= rule.int8_below_dim:
        return f"it does not suit int8 from a token width of {rule.int8_below_dim} on"
    return ""
