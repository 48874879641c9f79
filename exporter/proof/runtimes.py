"""Runners -> parity rows: each judged against the truth, in units of the rounding of its form.

Needs no model and no torch: the logits of the model come from `exporter.proof.prove`, or from
`reference.npz`.
"""

from __future__ import annotations

from collections.abc import Mapping

from exporter.files.reference import Floor, KeptReference
from exporter.inputs.clips import Inputs
from exporter.proof.distance import worst_error
from exporter.proof.judge import Reference, validate
from exporter.proof.rows import columns
from exporter.results import Parity
from exporter.run.stages import Stage
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.runners.open import FOR_PROOF_ONLY, OPENVINO_GRAPH_RUN, Opened
from exporter.runners.openvino import WITH_BF16, OpenVinoRunner
from exporter.runners.tensorrt import TensorRtRunner
from exporter.spec.option import BatchProfile
from model.task import TaskName

FP32 = "fp32"
MOST_BATCHES = 16  # of the sizes of a free batch that are all run; above, only the ends


def rounding_form(runtime: str, precision: str) -> str:
    """Name how a runtime rounds: its precision, and for int8 whose form its graph has.

    The forms of int8 are those of `int8_products.FORMS`, and `int8-bf16`: that of ONNX Runtime with
    bf16 between the products.
    """
    if precision != "int8":
        return precision
    if runtime == WITH_BF16:
        return "int8-bf16"
    on_a_cpu = (OnnxRuntimeRunner.name, OpenVinoRunner.name, OPENVINO_GRAPH_RUN)
    return "int8-onnxruntime" if runtime in on_a_cpu else "int8-tensorrt"


def references_of(
    kept: KeptReference, places: tuple[int, ...], task: TaskName
) -> dict[str, Reference]:
    """Give the reference of every rounding form, for the inputs at `places`."""
    rows = list(places)
    names = tuple(kept.inputs[place].name for place in places)
    truth, fp32 = kept.truth[rows], kept.floors[FP32].alone[rows]
    return {
        form: Reference(names, truth, floor.alone[rows], batched, fp32, kept.outputs, task, paired)
        for form, floor in kept.floors.items()
        for paired, batched in [floor.beside(places)]
    }


def floors_of(references: Mapping[str, Reference]) -> dict[str, Floor]:
    """Give the logits of the floors, to keep them in `reference.npz`."""
    return {form: Floor(made.floor, made.batched, made.beside) for form, made in references.items()}


def kept_floors(kept: KeptReference) -> dict[str, float]:
    """Give the floor of each rounding form; that of a further output has its name behind it."""
    found: dict[str, float] = {}
    for name, cut in columns(kept.outputs).items():
        for form, floor in kept.floors.items():
            error = worst_error(floor.alone[:, cut], kept.truth[:, cut])
            found[f"{form} {name}" if form in found else form] = error
    return found


def judge_runtimes(
    references: Mapping[str, Reference],
    inputs: Inputs,
    opened: Opened,
    batch: int,
    profile: BatchProfile | None,
    stage: Stage,
) -> tuple[Parity, ...]:
    """Judge every runner; the rows of the runtimes that could not be opened come last.

    Args:
        references: Rounding form -> reference.
        inputs: The inputs that the references belong to.
        opened: The runtimes of this machine.
        batch: The batch of a static graph.
        profile: The range of a free batch.
        stage: Told about the progress.
    """
    parity = []
    for runner in opened.runners:
        stage.progress(None, f"{runner.name} {runner.device}")
        form = rounding_form(runner.name, runner.precision)
        if form not in references:
            reason = f"the reference has no floor for {form}: export again"
            parity.append(
                Parity(runner.name, runner.device, runner.precision, "not-run", reason=reason)
            )
            continue
        bounded = isinstance(runner, TensorRtRunner)
        sizes = batch_sizes(batch, profile, bounded=bounded)
        # Nobody deploys these, so what they keep between runs does not matter.
        stateless = runner.name in FOR_PROOF_ONLY
        once = [n for n in all_sizes(sizes, profile) if n not in sizes]
        how = {"once": once, "stateless": stateless}
        parity += validate(runner, references[form], inputs.arrays, sizes, **how)
    sizes = ", ".join(map(str, all_sizes(batch_sizes(batch, profile), profile)))
    stage.detail = f"{len(inputs.names)} inputs at batch {sizes}"
    return (*parity, *opened.absences)


def batch_sizes(batch: int, profile: BatchProfile | None, *, bounded: bool = False) -> list[int]:
    """List the batch of a static graph, or those of 1, 2, 3, OPT and MAX that are accepted."""
    if profile is None:
        return [batch]
    least = profile.min if bounded else 1
    return sorted(n for n in {1, 2, 3, profile.opt, profile.max} if least <= n <= profile.max)


def all_sizes(sizes: list[int], profile: BatchProfile | None) -> list[int]:
    """Add to the sizes of a free batch all that the profile accepts, up to `MOST_BATCHES`."""
    if profile is None:
        return sizes
    return sorted({*sizes, *range(min(sizes), min(profile.max, MOST_BATCHES) + 1)})
