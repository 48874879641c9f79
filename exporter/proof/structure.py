"""Graphs -> parity rows of their structure: each graph with all types raised, against its truth.

A tolerance that has room for the rounding of bf16 or int8 has room for faults too. So a graph is
judged once more in float64, against the exported model in float64 with the weights of the graph.
Nothing rounds there, and the tolerance is that of float64. This needs onnx, but no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from exporter.errors import RuntimeFailure
from exporter.errors.install import how_to_install
from exporter.files.manifest import ENGINE_GRAPH, GRAPH, OPENVINO_GRAPH
from exporter.files.reference import KeptReference, Structure
from exporter.inputs.clips import Inputs
from exporter.proof.decide import ILL_CONDITIONED
from exporter.proof.distance import worst_error
from exporter.proof.judge import Reference, judge_outputs
from exporter.proof.rows import choose_telling, in_growing_batches, run_batches
from exporter.proof.runtimes import FP32, all_sizes, batch_sizes
from exporter.results import Parity
from exporter.run.stages import Stage
from exporter.spec import BatchProfile
from model.words import listed

# The target whose layout a graph has; None is that of `--optimize-for`.
TARGETS_OF_GRAPHS: Mapping[str, str | None] = {
    GRAPH: None,
    ENGINE_GRAPH: "tensorrt",
    OPENVINO_GRAPH: "openvino",
}
STRUCTURE = "structure"
_LEAST_INPUTS, _MOST_FLOPS = 2, 1e9
_SHOWN = 3  # of the weights in one line
_MOST_BATCHES = 8  # of the sizes of a free batch that are all run


def row_name(file: str) -> str:
    """Name the row about a graph: `structure`, and the target of another graph."""
    target = TARGETS_OF_GRAPHS[file]
    return f"{STRUCTURE}-{target}" if target else STRUCTURE


def structures_of(kept: KeptReference, places: tuple[int, ...]) -> dict[str, Structure]:
    """Give the structure of every graph, for those of its inputs that are at `places`."""
    found = {}
    for file, one in kept.structures.items():
        rows = [row for row, place in enumerate(one.places) if place in places]
        here = tuple(places.index(one.places[row]) for row in rows)
        found[file] = replace(one, places=here, truth=one.truth[rows])
    return found


def compared_inputs(inputs: Inputs, flops: int) -> tuple[int, ...]:
    """Choose the inputs to compare: all for a small model, at least two for a large one.

    A runtime is judged on all inputs. Few are enough to see a fault of structure in float64, and
    float64 takes longer than all else. Where the model takes a mask, one of them has masked frames.

    Args:
        inputs: The inputs of the export.
        flops: Floating point operations of one clip.
    """
    count = max(_LEAST_INPUTS, min(len(inputs.names), int(_MOST_FLOPS / max(flops, 1))))
    chosen = choose_telling(inputs.names, count)
    mask = inputs.arrays.get("mask")
    if mask is None or not mask[list(chosen)].all():
        return chosen
    masked = np.flatnonzero(~mask.all(axis=1))
    if len(masked) == 0:
        return chosen
    (first,) = choose_telling([inputs.names[place] for place in masked], 1)
    return tuple(sorted([*chosen, int(masked[first])]))


def judge_structures(
    directory: Path,
    structures: Mapping[str, Structure],
    references: Mapping[str, Reference],
    inputs: Inputs,
    precision: str,
    batch: int,
    profile: BatchProfile | None,
    stage: Stage,
) -> tuple[Parity, ...]:
    """Judge the structure of every graph of an export that is there.

    Args:
        directory: Where the graphs are.
        structures: File of a graph -> its truth, for every graph of the export.
        references: The float32 one says whether rounding decides the logits.
        inputs: The inputs that the truth belongs to.
        precision: That of the export.
        batch: The batch of a static graph.
        profile: The range of a free batch.
        stage: Told about the progress.

    Raises:
        RuntimeFailure: if a graph cannot be read, or the evaluator lacks an operator of it.
    """
    whole = references[FP32]
    sizes = all_sizes(batch_sizes(batch, profile), profile)
    sizes = [n for n in sizes if n <= _MOST_BATCHES or n == sizes[-1]]
    rows = []
    for file in TARGETS_OF_GRAPHS:
        if file not in structures or not (directory / file).is_file():
            continue
        name = row_name(file)
        stage.progress(None, f"{name} in float64")
        judged = _judge(name, directory / file, structures[file], whole, inputs, sizes)
        rows += [replace(row, precision=precision, judged="structure") for row in judged]
    return tuple(rows)


def _judge(
    name: str,
    graph: Path,
    structure: Structure,
    whole: Reference,
    inputs: Inputs,
    sizes: list[int],
) -> Sequence[Parity]:
    try:
        import onnx

        from exporter.graph.raised import raise_graph
        from exporter.graph.weights import changed_weights
        from exporter.runners.exact import ExactRunner
    except ModuleNotFoundError as error:
        reason = f"it needs {error.name}, which is not installed; {how_to_install('onnx')}"
        return [Parity(name, "cpu", "fp64", "not-run", reason=reason)]
    try:
        model = onnx.load(graph)
        raised = raise_graph(model)
    except Exception as error:  # of protobuf, whose exceptions depend on its implementation
        raise RuntimeFailure(f"onnx does not read {graph.name}: {error}") from error
    exact, places = structure.truth, list(structure.places)
    names = tuple(inputs.names[place] for place in places)
    clips = {name: array[places] for name, array in inputs.arrays.items()}
    same = {"truth": exact, "floor": exact, "batched": exact, "fp32": None, "paired": None}
    reference = replace(whole, names=names, **same)
    with ExactRunner(raised) as runner:
        batches = in_growing_batches(len(places), sizes)
        runs = run_batches(runner, clips, batches, reference.output_names)
    how = {"runtime": name, "device": "cpu", "precision": "fp64"}
    rows = judge_outputs(reference, runs, **how, min_inputs=1)
    if worst_error(whole.floor, whole.truth) > ILL_CONDITIONED:  # then rounding explains an error
        rows = [r if r.verdict != "fail" else replace(r, verdict="ill-conditioned") for r in rows]
    reason = ""  # what no rounding explains
    if changed := changed_weights(model, structure.weights):
        what = f"other weights, types or nodes than at export: {listed(changed, _SHOWN)}"
        reason = f"{graph.name} has {what}"
    elif structure.unknown:
        what = "weights, types or operators of no export, or scales that do not fit its values"
        reason = f"{graph.name} has {what}: {listed(structure.unknown, _SHOWN)}"
    return [replace(row, verdict="fail", reason=reason) for row in rows] if reason else rows
