"""`tsformer lint`: find constructs that a runtime refuses or runs badly."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from exporter.cli.parsing import Flag, Json
from exporter.cli.terminal import show
from exporter.errors import LintFailure, UsageError


def lint(
    graph: Path,
    /,
    *,
    runtime: str = "all",
    rules_only: Flag = False,
    json_: Json = False,
    debug: Flag = False,
) -> int:
    """Find constructs that TensorRT or ONNX Runtime will refuse or run badly.

    Each installed runtime loads the graph in a process of its own, and its answer counts. Rules say
    why, and what is slow; for a runtime that is not installed they judge alone. The graph may be of
    any origin, also one that no runtime loads. Each finding names its PyTorch module. Exit code 0:
    no finding, or only warnings (slow or inexact). Exit code 4: errors (will not load or build).

    Examples:
        tsformer lint model.onnx
        tsformer lint --runtime onnxruntime build/fastformer-divided-224x224-fp16

    Args:
        graph: An ONNX file, or a directory that tsformer export wrote.
        runtime: Apply the rules of one runtime: onnxruntime, tensorrt or all.
        rules_only: Judge by the rules alone, and load the graph in no runtime.
        json_: Print JSON, with every finding.
        debug: Show the trace of an error.
    """
    del debug
    from exporter.files.manifest import GRAPH
    from exporter.inspection.ask import lint_file
    from exporter.lint import RUNTIMES
    from exporter.report import strict_json
    from exporter.report.findings import count_line, lint_view

    if runtime not in ("all", *RUNTIMES):
        raise UsageError("--runtime", got=runtime, expected=f"one of all, {', '.join(RUNTIMES)}")
    path = graph / GRAPH if graph.is_dir() else graph
    judged = lint_file(path, rules_only=rules_only)
    runtimes = RUNTIMES if runtime == "all" else (runtime,)
    found = [f for f in judged if set(runtimes) & set(f.runtimes)]
    facts = {"graph": str(path), "findings": [asdict(finding) for finding in found]}
    show(strict_json(facts) if json_ else lint_view(found, runtimes))
    if any(finding.severity == "error" for finding in found):
        raise LintFailure(f"{path}: {count_line(found)}", remedy="see the remedies above")
    return 0
