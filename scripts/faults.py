"""Plant faults in the graphs of small exports, and see which of them the judge kills.

    python scripts/faults.py                          all models, and a table
    python scripts/faults.py --only regular-bf16      some models
    python scripts/faults.py --every 1                every fault in every model (default: a third)
    python scripts/faults.py --write                  also scripts/results/faults.json

A fault changes a graph of a proven export. The judge is that of `verify --checkpoint`: it compares
the weights with those of the model by their values, and does not look at any hash. The effect of a
fault is its largest relative change of the outputs on 80 real and natural clips. A fault with an
effect above twice the floor that passes is a false pass. The exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fault_kinds
import onnx
import torch
from fault_effects import Effects, plausible_clips
from fault_places import Change, NotHereError

from exporter import ExportSpec
from exporter.errors import TsformerError
from exporter.files.manifest import GRAPH, read_manifest
from exporter.files.reference import REFERENCE, read_reference
from exporter.graph.weights import hash_weights
from exporter.inputs.clips import gather_inputs
from exporter.load import load_exported
from exporter.machine import environment
from exporter.pipeline import export
from exporter.precision import in_precision
from exporter.proof.exact import ExactModel
from exporter.proof.judge import worst_error
from exporter.proof.prove import find_unknown
from exporter.proof.runtimes import judge_runtimes, references_of
from exporter.proof.structure import judge_structures, structures_of
from exporter.results import Parity, overall_verdict
from exporter.rewrite.choose import rewrite_for_export
from exporter.run.job import calibrate
from exporter.run.stages import Stage, no_progress
from exporter.runners.open import Opened, load_onnx
from exporter.spec import BatchProfile

RESULTS = Path(__file__).parent / "results" / "faults.json"
LEAST_EFFECT = 2.0  # floors: below it a fault is smaller than what rounding does
SMALL: dict[str, Any] = {"depth": 2, "dim": 32, "frames": 3, "res": (32, 48), "num_classes": 5}
FAST = {"dim_head": 16}
FREE = {"dynamic_batch": BatchProfile(1, 4, 8), **FAST}
VIT = {"heads": 2, "model": "facebookresearch"}
MODELS: dict[str, dict[str, Any]] = {
    **{
        f"{attn}-{precision}": {"attn": attn, "precision": precision, **FAST}
        for attn in ("fastformer", "regular", "performer")
        for precision in ("fp32", "fp16", "bf16", "int8")
    },
    "space-bf16": {"attn": "fastformer", "scheme": "space", "precision": "bf16", **FAST},
    # Wide enough that products are rounded to 8 bits: see `int8_products.FORMS`.
    "wide-int8": {"attn": "regular", "precision": "int8", "dim": 128, "dim_head": 64},
    "axial-int8": {"attn": "regular", "scheme": "axial", "precision": "int8", **FAST},
    "cut-fp16": {"attn": "performer", "scheme": "local-global", "precision": "fp16", **FAST},
    "joint-fp32": {"attn": "regular", "scheme": "joint", "precision": "fp32", **FAST},
    "facebookresearch-bf16": {"precision": "bf16", **VIT},
    "timesformer_pytorch-int8": {"model": "timesformer_pytorch", "precision": "int8", **FAST},
    "free-fp32": {"attn": "regular", "precision": "fp32", **FREE},
    "free-bf16": {"attn": "regular", "precision": "bf16", **FREE},
}


@dataclass(frozen=True)
class Outcome:
    """One fault: what judged it, and what it does. `by` names the row that killed it."""

    model: str
    kind: str
    place: str
    verdict: str
    by: str
    effect: float
    floor: float

    @property
    def state(self) -> str:
        """`killed`, `harmless`, or `false pass`."""
        if self.verdict != "pass":
            return "killed"
        return "false pass" if self.effect > LEAST_EFFECT * self.floor else "harmless"


class Export:
    """A proven export, whose copies with faults are judged.

    Args:
        name: One of `MODELS`.
        folder: Where to export to.
    """

    def __init__(self, name: str, folder: Path) -> None:
        options = {"engine": "none", "bench_seconds": 0.0, **SMALL, **MODELS[name]}
        if "dynamic_batch" not in options:
            options["batch"] = 8  # one run of a small model takes as long as eight
        self.name, self.directory = name, export(ExportSpec(**options), folder / name).directory
        manifest = read_manifest(self.directory)
        self.spec, model = load_exported(manifest)
        self.inputs = gather_inputs((), model.config, model.preprocessing)
        self.calibration = calibrate(self.spec, model, self.spec.precision)
        kept = read_reference(self.directory / REFERENCE)
        places = tuple(range(len(kept.inputs)))
        self.references = references_of(kept, places, model.task)
        self.structure = structures_of(kept, places)[GRAPH]
        self.lowered = "fp32" if self.spec.precision == "int8" else self.spec.precision
        self.traced = in_precision(rewrite_for_export(self.spec, model), self.lowered)
        self.graph = onnx.load(self.directory / GRAPH)
        self.effects = Effects(self.graph, self.spec.precision, plausible_clips(model), 8)
        form = next(form for form in reversed(list(self.references)))
        reference = self.references[form]
        self.floor = worst_error(reference.floor, reference.truth)

    def judge(self, graph: onnx.ModelProto, folder: Path) -> tuple[Parity, ...]:
        """Judge a graph as the graph of this export."""
        path = folder / GRAPH
        onnx.save(graph, path)
        with ExactModel(self.traced, self.inputs.batch(8), graph) as exact:
            unknown = find_unknown(exact, graph, self.lowered, self.calibration)
        found = _replace(self.structure, weights=hash_weights(graph), unknown=unknown)
        how = (self.spec.run_batch, self.spec.dynamic_batch, Stage("parity", no_progress))
        with ExitStack() as resources:
            opened = load_onnx(path, self.spec.precision, resources, threads=1)
            kinds = {GRAPH: found}, self.references, self.inputs, self.spec.precision
            rows = judge_structures(folder, *kinds, *how)
            if overall_verdict([*rows]) == "fail":
                return rows
            return (
                *rows,
                *judge_runtimes(self.references, self.inputs, Opened(opened.runners), *how),
            )

    def plant(self, kind: str, place: str, change: Change, folder: Path) -> Outcome | None:
        """Plant one fault, and judge it; None if this graph has no place for it."""
        graph = onnx.ModelProto()
        graph.CopyFrom(self.graph)
        try:
            change(graph.graph)
            if graph.SerializeToString() == self.graph.SerializeToString():
                return None
            effect = self.effects.in_float64(graph)
        except (
            NotHereError,
            IndexError,
            StopIteration,
            TsformerError,
        ):
            return None
        try:
            rows = self.judge(graph, folder)
        except TsformerError:  # no runtime loads it
            return None
        verdict = overall_verdict(rows)
        if verdict == "pass":
            effect = max(effect, self.effects.as_it_is(graph))
        worst = next((row for row in rows if row.verdict == "fail"), None)
        by = "" if worst is None else "weights" if "weights" in worst.reason else worst.judged
        return Outcome(self.name, kind, place, verdict, by, effect, self.floor)


def _replace(structure: Any, **changes: Any) -> Any:  # noqa: ANN401  # a Structure
    return type(structure)(**{**vars(structure), **changes})


def plant_all(name: str, every: int) -> Iterator[Outcome]:
    """Plant the faults in a model; each model gets another share of them, alone or with others."""
    faults = list(fault_kinds.kinds())
    share = faults[list(MODELS).index(name) % every :: every]
    share += [f for f in faults if "free" in name and "batch" in f[0] and f not in share]
    with tempfile.TemporaryDirectory() as folder:
        made = Export(name, Path(folder))
        for kind, place, change in share:
            if outcome := made.plant(kind, place, change, Path(folder)):
                print(
                    f"{name:<24} {kind:<24} {place:<18} {outcome.state:<10} {outcome.by:<9} "
                    f"{outcome.effect:.1e}",
                    flush=True,
                )
                yield outcome


def keep(model: str, outcomes: Sequence[Outcome]) -> None:
    """Write the outcomes of one model into the file of results, in place of its earlier ones."""
    facts = environment.describe()
    about = {key: facts[key] for key in ("date", "cpu", "packages") if key in facts}
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))["faults"] if RESULTS.exists() else []
    rows = [row for row in kept if row["model"] != model]
    rows += [asdict(one) | {"state": one.state, "effect": min(one.effect, 1e9)} for one in outcomes]
    text = json.dumps({"environment": about, "faults": rows}, indent=1)
    RESULTS.write_text(f"{text}\n", encoding="utf-8")


def table(outcomes: Sequence[Outcome]) -> str:
    """Count killed, harmless and false passes by precision, and name the false passes."""
    lines = [f"{'':<10} {'planted':>8} {'killed':>8} {'harmless':>9} {'false passes':>13}"]
    precisions = sorted({outcome.model.rpartition("-")[2] for outcome in outcomes})
    for group in [*precisions, ""]:
        found = [o for o in outcomes if o.model.endswith(group)]
        counts = Counter(outcome.state for outcome in found)
        numbers = (counts[state] for state in ("killed", "harmless", "false pass"))
        lines.append("{:<10} {:>8} {:>8} {:>9} {:>13}".format(group or "all", len(found), *numbers))
    kinds, models = ({getattr(o, key) for o in outcomes} for key in ("kind", "model"))
    lines.append(f"{len(kinds)} kinds in {len(models)} models")
    if missing := sorted({kind for kind, _, _ in fault_kinds.kinds()} - kinds):
        lines.append(f"planted nowhere: {', '.join(missing)}")
    lines += [
        f"passed: {o.model} {o.kind} {o.place}: {o.effect:.1e}, floor {o.floor:.1e}"
        for o in outcomes
        if o.state == "false pass"
    ]
    return "\n".join(lines)


def main() -> int:
    """Plant, print the table, and return 1 if a fault with an effect passes."""
    parser = argparse.ArgumentParser(description="Plant faults in small exports.")
    parser.add_argument("--only", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    environment.available_flavours = cache(environment.available_flavours)  # a process each
    outcomes: list[Outcome] = []
    for name in arguments.only:
        found = list(plant_all(name, arguments.every))
        outcomes += found
        if arguments.write:
            keep(name, found)
    print(table(outcomes))
    return int(any(outcome.state == "false pass" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
