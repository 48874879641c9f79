"""Compare `lint` with what the runtimes really say, over models of other people.

    python scripts/lint_corpus.py scripts/lint_corpus.json --more SITE_PACKAGES

The committed result has as `other` the models of onnxruntime, silero-vad, magika and
rapidocr-onnxruntime (`pip install --no-deps` into an environment of their own).

The models are those that the package `onnx` stores and generates for its backends, and those that
other installed packages bring. For each, ONNX Runtime (CPU) opens a session and the parser of
TensorRT-RTX reads the file; then `lint` judges. An error of lint for a runtime that takes the graph
is false; a graph that a runtime refuses without an error of lint is a miss. A graph that the parser
takes and the builder refuses counts as refused. Runs for some minutes, in worker processes, because
a native parser may crash.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worker_process import HANG, LostError, Worker

PACKAGES = ("onnx", "onnxruntime", "tensorrt_rtx_cu13")
RUNTIMES = ("onnxruntime", "tensorrt")
_SECONDS = 60  # for one model


def gather(folder: Path, more: list[Path]) -> Iterator[tuple[str, str, Path]]:
    """Yield kind, name and file of each model of the corpus; generated ones go to `folder`."""
    import onnx
    import onnx.backend.test

    stored = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for path in sorted(stored.glob("*/*/model.onnx")):
        yield "stored", f"{path.parents[1].name}/{path.parent.name}", path
    from onnx.backend.test.case.node import collect_testcases

    warnings.simplefilter("ignore")
    for case in collect_testcases(""):
        if case.model is not None:
            path = folder / f"{case.name}.onnx"
            onnx.save(case.model, path)
            yield "generated", case.name, path
    for site in (Path(onnx.__file__).parents[1], *more):
        for path in sorted(site.rglob("*.onnx")):
            if path.relative_to(site).parts[0] != "onnx":
                yield "other", str(path.relative_to(site)), path


def judge(path: Path) -> dict[str, Any]:
    """Ask both runtimes and `lint` about one graph."""
    from exporter.graph.file import read_graph
    from exporter.inspection.ask import Answer
    from exporter.inspection.ask import judge as agree
    from exporter.inspection.loaders import LOADERS
    from exporter.lint import lint

    by_rules = lint(read_graph(path))
    answers = {runtime: Answer(*load(path)) for runtime, load in LOADERS.items()}
    return {
        "onnxruntime": _ask_onnxruntime(path),
        "tensorrt": _ask_tensorrt(path),
        "rules": {runtime: _errors(by_rules, runtime) for runtime in RUNTIMES},
        "errors": {runtime: _errors(agree(by_rules, answers), runtime) for runtime in RUNTIMES},
    }


def _errors(findings: Any, runtime: str) -> list[str]:  # noqa: ANN401  # of Finding
    return sorted({f.rule for f in findings if f.severity == "error" and runtime in f.runtimes})


def _ask_onnxruntime(path: Path) -> str:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return " ".join(str(error).split())[:200]
    return ""


def _ask_tensorrt(path: Path) -> str:
    trt: Any = importlib.import_module("tensorrt_rtx")  # it has no usable type stubs
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(path))
    errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    if parsed and not errors:
        layers = (network.get_layer(i) for i in range(network.num_layers))
        if not any("ATTENTION" in str(layer.type) for layer in layers):
            return ""
        # The parser takes attention that has no kernel: only a build tells.
        built = builder.build_serialized_network(network, builder.create_builder_config())
        return "" if built is not None else "the builder returned nothing"
    return " ".join("; ".join(errors).split())[:200] or "refused without a reason"


def _work(tasks: Any, answers: Any) -> None:  # noqa: ANN401  # connections
    _quiet()
    while True:
        try:
            path = tasks.recv()
        except EOFError:  # the parent has ended
            return
        try:
            answers.send(judge(path))
        except Exception as error:
            answers.send({"failed": f"{type(error).__name__}: {error}"[:300]})


def _quiet() -> None:
    """Native parsers print each refusal."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def judge_in(worker: Worker, path: Path) -> dict[str, Any]:
    """Return the judgement, or what became of the process."""
    try:
        return worker.ask(path)
    except LostError as fault:
        return {"failed": f"no answer in {_SECONDS} s" if str(fault) == HANG else str(fault)}


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Count refusals, false errors and misses by runtime."""
    found: dict[str, Any] = {"models": dict(Counter(row["kind"] for row in rows))}
    found["failed"] = [row["name"] for row in rows if "failed" in row]
    judged = [row for row in rows if "failed" not in row]
    for runtime in RUNTIMES:
        refused = [row for row in judged if row[runtime]]
        found[runtime] = {
            "refused": len(refused),
            "false": sorted(r["name"] for r in judged if r["errors"][runtime] and not r[runtime]),
            "missed": sorted(row["name"] for row in refused if not row["errors"][runtime]),
            "rules alone": {
                "false": sum(bool(row["rules"][runtime] and not row[runtime]) for row in judged),
                "found": sum(bool(row["rules"][runtime]) for row in refused),
            },
        }
    return found


def main() -> int:
    """Judge the corpus and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=Path, help="also write the judgement of every model here")
    parser.add_argument("--every", type=int, default=1, help="take every n-th model")
    parser.add_argument("--more", type=Path, action="append", default=[], help="site-packages")
    given = parser.parse_args()
    worker, rows = Worker(_work, _SECONDS), []
    with tempfile.TemporaryDirectory() as folder:
        for kind, name, path in list(gather(Path(folder), given.more))[:: given.every]:
            rows.append({"kind": kind, "name": name, **judge_in(worker, path)})
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    result = {"versions": versions, **summarise(rows)}
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if given.rows:
        given.rows.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    for runtime in RUNTIMES:
        counts = {key: len(v) if isinstance(v, list) else v for key, v in result[runtime].items()}
        print(runtime, counts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
