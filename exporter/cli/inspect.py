"""`tsformer inspect`: show the contents of an export, a graph or an engine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from exporter.cli.parsing import Flag, Json
from exporter.cli.terminal import show


def inspect(path: Path, /, *, json_: Json = False, debug: Flag = False) -> int:
    """Show the contents of an export, an ONNX graph of any origin, or a TensorRT engine.

    For a graph: inputs and outputs, operators, weights by module, operations of one run, types and
    casts, and the fusions of ONNX Runtime. For an engine: the facts that need no GPU. For a
    directory: both, the rewrites that fired, and whether its files have changed since the export.

    Examples:
        tsformer inspect build/fastformer-divided-512x512-fp32
        tsformer inspect --json model.onnx

    Args:
        path: A directory that tsformer export wrote, an ONNX file, or an engine.
        json_: Print JSON, with every module and operator.
        debug: Show the trace of an error.
    """
    del debug
    from exporter.inspection import inspect as examine
    from exporter.inspection.view import inspection_view
    from exporter.report import strict_json

    found = examine(path)
    show(strict_json(asdict(found)) if json_ else inspection_view(found))
    return 0
