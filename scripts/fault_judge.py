"""A small export, and the judge of its copies with faults: that of `verify --checkpoint`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from fault_effects import Effects, plausible_clips
from fault_models import MODELS, SMALL, graph_of
from fault_places import Change, NotHereError

from exporter import ExportSpec
from exporter.errors import TsformerError
from exporter.files.manifest import ENGINE_GRAPH, OPENVINO_GRAPH, read_manifest
from exporter.files.reference import REFERENCE, Structure, read_reference
from exporter.graph.weights import hash_weights
from exporter.inputs.clips import gather_inputs
from exporter.load import load_exported
from exporter.pipeline import ExportResult, export
from exporter.precision import in_precision
from exporter.proof.exact import ExactModel
from exporter.proof.judge import worst_error
from exporter.proof.prove import find_unknown, traced_precision
from exporter.proof.rows import run_clips
from exporter.proof.runtimes import judge_runtimes, references_of, rounding_form
from exporter.proof.structure import TARGETS_OF_GRAPHS, judge_structures, structures_of
from exporter.results import Parity, overall_verdict
from exporter.rewrite.choose import rewrite_for_export
from exporter.run.job import calibrate
from exporter.run.stages import Stage, no_progress
from exporter.runners.open import (
    TENSORRT_GRAPH_EVALUATED,
    TENSORRT_GRAPH_RUN,
    Opened,
    load_graphs,
    load_onnx,
    load_openvino,
)

LEAST_EFFECT = 2.0  # floors: below it a fault is smaller than what rounding does


@dataclass(frozen=True)
class Outcome:
    """One fault: what judged it, and what it does.

    `by` names the row that killed it. `effect` is None for a fault that was killed.
    """

    model: str
    kind: str
    place: str
    verdict: str
    by: str
    effect: float | None
    floor: float

    @property
    def state(self) -> str:
        """`killed`, `harmless`, or `false pass`."""
        if self.verdict != "pass" or self.effect is None:
            return "killed"
        return "false pass" if self.effect > LEAST_EFFECT * self.floor else "harmless"


class Export:
    """A proven export, whose copies with faults are judged.

    Args:
        name: One of `MODELS`.
        folder: Where to export to.
    """

    def __init__(self, name: str, folder: Path) -> None:
        options = {**SMALL, **MODELS[name]}
        if "dynamic_batch" not in options:
            options["batch"] = 8  # one run of a small model takes as long as eight
        self.name, self.file = name, graph_of(name)
        directory = _proven(export(ExportSpec(**options), folder / name))
        self.spec, self._model = load_exported(read_manifest(directory))
        self._inputs = gather_inputs((), self._model.config, self._model.preprocessing)
        self._calibration = calibrate(self.spec, self._model, self.spec.precision)
        kept = read_reference(directory / REFERENCE)
        places = tuple(range(len(kept.inputs)))
        self._references = references_of(kept, places, self._model.task)
        self._structure = structures_of(kept, places)[self.file]
        target = TARGETS_OF_GRAPHS[self.file]
        self._traced_in = traced_precision(self.spec, target)
        kept_in_full = self.spec.keep_fp32 if self._traced_in != "fp32" else ()
        traced = rewrite_for_export(self.spec, self._model, target)
        self._traced = in_precision(traced, self._traced_in, kept_in_full)
        self.graph = onnx.load(directory / self.file)
        with ExitStack() as resources:
            runner = self._open(directory, resources).runners[0]
            form = rounding_form(runner.name, runner.precision)
        clips = plausible_clips(self._model)
        self.effects = Effects(self.graph, runner.precision, clips, 8)
        self.floor = worst_error(self._references[form].floor, self._references[form].truth)

    def judge(self, graph: onnx.ModelProto, folder: Path) -> tuple[Parity, ...]:
        """Judge a graph as the graph of this export."""
        onnx.save(graph, folder / self.file)
        stage, structures = Stage("parity", no_progress), {self.file: self._structure_of(graph)}
        kinds = structures, self._references, self._inputs
        how = self.spec.run_batch, self.spec.dynamic_batch, stage
        rows = judge_structures(folder, *kinds, self.spec.precision, *how)
        if overall_verdict([*rows]) == "fail":
            return rows
        with ExitStack() as resources:
            opened = Opened(self._open(folder, resources).runners)
            return (*rows, *judge_runtimes(self._references, self._inputs, opened, *how))

    def _structure_of(self, graph: onnx.ModelProto) -> Structure:
        """Give the truth of a graph: its own where it stores weights, else that of the export."""
        truth = self._structure.truth
        with ExactModel(self._traced, self._inputs.batch(8), graph) as exact:
            unknown = find_unknown(exact, graph, self._traced_in, self._calibration)
            if self.spec.precision == "int8":
                truth = run_clips(exact, self._inputs.arrays, 8, outputs=self._model.output_names)
        return replace(self._structure, truth=truth, weights=hash_weights(graph), unknown=unknown)

    def _open(self, folder: Path, resources: ExitStack) -> Opened:
        """Open the runtimes that an export judges this graph in."""
        path, precision = folder / self.file, self.spec.precision
        how: dict[str, Any] = {"threads": 1}
        if self.file == OPENVINO_GRAPH:
            return load_openvino(path, precision, resources, named=False, prove=True, **how)
        if self.file == ENGINE_GRAPH:
            opened = load_graphs(path, path, precision, resources, **how)
            names = TENSORRT_GRAPH_EVALUATED, TENSORRT_GRAPH_RUN
            return Opened(tuple(one for one in opened.runners if one.name in names))
        return load_onnx(path, precision, resources, **how)

    def plant(self, kind: str, place: str, change: Change, folder: Path) -> Outcome | None:
        """Plant one fault, and judge it; None if this graph has no place for it."""
        graph = onnx.ModelProto()
        graph.CopyFrom(self.graph)
        try:
            change(graph.graph)
            if graph.SerializeToString() == self.graph.SerializeToString():
                return None
            rows = self.judge(graph, folder)
        except (NotHereError, IndexError, StopIteration, TsformerError):  # or nothing runs it
            return None
        verdict = overall_verdict(rows)
        effect = self.effects.largest(graph) if verdict == "pass" else None
        worst = next((row for row in rows if row.verdict == "fail"), None)
        by = "" if worst is None else "weights" if "weights" in worst.reason else worst.judged
        return Outcome(self.name, kind, place, verdict, by, effect, self.floor)


def _proven(made: ExportResult) -> Path:
    """Give the directory of an export that passed."""
    if made.verdict != "pass":
        raise ValueError(f"{made.directory.name} is not proven: {made.verdict}")
    return made.directory
