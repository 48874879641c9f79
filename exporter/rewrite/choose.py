"""Which rewrites suit an export: its target, its precision, and what stays in float32."""

from __future__ import annotations

from typing import Any

from exporter.precision import kept_modules
from exporter.rewrite import REWRITES, rewrite
from exporter.rewrite.places import Folded
from exporter.rewrite.rule import Rewrite
from exporter.spec import ExportSpec
from model.classifier import VideoClassifier
from model.precision import rounded_modules


def rewrite_for_export(
    spec: ExportSpec, model: VideoClassifier, *, integer_products: bool = False
) -> VideoClassifier:
    """The same function laid out for the runtimes. Raises as `rewrites_to_skip` does."""
    skip = rewrites_to_skip(spec, model, integer_products=integer_products)
    return rewrite(model, skip, spec.run_batch)


def rewrites_to_skip(
    spec: ExportSpec, model: VideoClassifier, *, integer_products: bool = False
) -> dict[str, str]:
    """The rewrites that do not suit an export, each with the reason.

    Args:
        spec: The export.
        model: The model, as it was loaded.
        integer_products: Choose for TensorRT's form of an int8 graph, which has as many integer
            products as it can.

    Raises:
        UsageError: if a module to keep in float32 is unknown.
    """
    kept = kept_modules(model, spec.keep_fp32)
    if spec.rewrite == "none":
        return dict.fromkeys(REWRITES, "--rewrite none")
    precision = "int8-symmetric" if integer_products else spec.precision
    dim = getattr(model.config, "dim", 0)
    skip = {
        name: reason
        for name, rule in REWRITES.items()
        if (reason := _unsuited(rule, spec.optimize_for, precision, dim))
    }
    skip |= dict.fromkeys(spec.no_rewrite, "--no-rewrite")
    if kept:
        # A module that stays in float32 stays a module of its own.
        modules = rounded_modules(rewrite(model, skip, spec.run_batch))
        if any(isinstance(modules[path], Folded) for path in kept):
            folding = [name for name, rule in REWRITES.items() if rule.folds_modules]
            skip |= dict.fromkeys(folding, "--keep-fp32 names a module that it folds into another")
    return skip


def _unsuited(rule: Rewrite[Any], target: str, precision: str, dim: int) -> str:
    """Why a rewrite does not suit the graph of an export; empty where it does."""
    if target not in rule.targets:
        return f"it does not suit {target}"
    if precision not in rule.precisions:
        return f"it does not suit {precision}"
    if precision == "int8" and rule.int8_below_dim is not None and dim >= rule.int8_below_dim:
        return f"it does not suit int8 from a token width of {rule.int8_below_dim} on"
    return ""
