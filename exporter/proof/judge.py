"""Runners -> Parity: every output judged against the float64 truth, in units of rounding.

    truth      t = eager model in float64
    floor      err(eager model in the precision p, t), p that of the runtime's graph
    candidate  err(runtime, t)                              err(y, t) = |y - t| / |t|, over logits;
               |t| is at least half its median over the inputs, see `distance.least_length`
    pass       err(candidate) <= max(4 floor, tiny_p), and the same answer wherever rounding, which
               is the floor, cannot change it

The answer is the top-1 class where one class is right: its margin in t decides. It is the sign of
every logit where labels are independent: a sigmoid of 0.5 is a logit of 0. A value has no other
answer than its error, and no output but the logits has one.

Errors and floors are the worst over the inputs, because the floor of one input can be small by
chance. Their median and their bias are judged too: see `exporter.proof.distribution`. A model whose
logits are the same for all inputs fails, because it proves nothing. If the logits in float32 and
float64 differ by more than `ILL_CONDITIONED`, rounding decides them, and no precision determines
the function of the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from exporter.proof.answers import compare_answers
from exporter.proof.decide import FLOOR_FACTOR, TINY, decide, look_at_spread
from exporter.proof.distance import (
    cosine,
    largest,
    least_length,
    mean,
    nan_is_worst,
    relative_error,
    worst_error,
)
from exporter.proof.distribution import find_system, measure
from exporter.proof.rows import (
    Sizes,
    around,
    choose_telling,
    columns,
    count_clips,
    in_batches,
    run_batches,
    run_clips,
    run_sized,
)
from exporter.results import InputParity, Parity
from exporter.runners.base import Arrays, Runner
from model.outputs import LOGITS
from model.task import TaskName

MIN_INPUTS = 8
PAIRED = 4  # inputs that eager PyTorch runs in pairs too, and a runtime a second time alone


@dataclass(frozen=True)
class Reference:
    """The outputs that candidates are compared with, rows `(n, values)` for n named inputs.

    `outputs` says which values of a row are which output (default: all are the logits). `truth`,
    `floor` and `fp32` come from eager PyTorch in float64, in the precision of the candidate, and in
    float32 (default: `floor`). `batched` is `floor` computed again in batches of two clips, for the
    inputs at the places `paired` (default: all). `task` is what the logits mean.
    """

    names: tuple[str, ...]
    truth: np.ndarray
    floor: np.ndarray
    batched: np.ndarray
    fp32: np.ndarray | None = None
    outputs: Sizes = ()
    task: TaskName = "single-label"
    paired: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        fp32 = self.floor if self.fp32 is None else self.fp32
        shapes = [array.shape for array in (self.truth, self.floor, fp32, self.batched)]
        expected = (len(self.names), self.truth.shape[-1])
        if shapes != [expected] * 3 + [(len(self.beside), *expected[1:])]:
            raise ValueError(f"reference logits differ in shape: got {shapes}")
        if not self.outputs:
            object.__setattr__(self, "outputs", ((LOGITS, self.truth.shape[-1]),))

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in their order in a row."""
        return [name for name, _ in self.outputs]

    @property
    def beside(self) -> tuple[int, ...]:
        """The places of the inputs in `batched`."""
        return tuple(range(len(self.names))) if self.paired is None else self.paired

    def of(self, name: str) -> Reference:
        """The reference of one output."""
        cut = columns(self.outputs)[name]
        fp32 = None if self.fp32 is None else self.fp32[:, cut]
        truth, floor, batched = (rows[:, cut] for rows in (self.truth, self.floor, self.batched))
        sizes = ((name, truth.shape[1]),)
        return Reference(self.names, truth, floor, batched, fp32, sizes, self.task, self.paired)


def make_reference(
    truth: Runner,
    floor: Runner,
    names: Sequence[str],
    clips: Arrays,
    outputs: Sequence[str] = (LOGITS,),
    task: TaskName = "single-label",
) -> Reference:
    """Run the eager models of truth and floor on n clips, `video` `(n, f, c, h, w)`."""
    exact, sizes = run_sized(truth, clips, outputs)
    alone = run_clips(floor, clips, 1, outputs=outputs)
    paired = choose_telling(names, PAIRED)
    beside = run_clips(floor, _at(clips, paired), 2, outputs=outputs)
    return Reference(tuple(names), exact, alone, beside, outputs=sizes, task=task, paired=paired)


def with_lower_floor(reference: Reference, floor: Runner, clips: Arrays) -> Reference:
    """Turn a float32 reference into one for the lower precision that `floor` computes in."""
    outputs, beside = reference.output_names, _at(clips, reference.beside)
    return replace(
        reference,
        floor=run_clips(floor, clips, 1, outputs=outputs),
        batched=run_clips(floor, beside, 2, outputs=outputs),
        fp32=reference.floor,
    )


def _at(clips: Arrays, places: Sequence[int]) -> Arrays:
    return {name: array[list(places)] for name, array in clips.items()}


def validate(
    candidate: Runner,
    reference: Reference,
    clips: Arrays,
    batches: Sequence[int],
    *,
    once: Sequence[int] = (),
    stateless: bool = False,
) -> tuple[Parity, ...]:
    """Judge every output of a runtime on n clips, at each of the batch sizes.

    Each size is run with the clips in order and in reverse, so that every clip stands beside
    different clips and at different places. All results must agree with each other and with the
    truth. Single clips stand beside none: `PAIRED` of them are run again, last one first, which
    shows whether a run depends on those before. A `stateless` runtime runs single clips once.
    Batches of the sizes in `once` are run with some of the clips only.
    """
    forward = range(count_clips(clips))
    again = () if stateless else choose_telling(reference.names, PAIRED)[::-1]
    every_clip = (
        chosen
        for batch in batches
        for order in (forward, again if batch == 1 else forward[::-1])
        for chosen in in_batches(order, batch)
    )
    starts = itertools.accumulate(once, initial=0)
    some = (around(forward, start, size) for start, size in zip(starts, once, strict=False))
    chosen = itertools.chain(every_clip, some)
    runs = run_batches(candidate, clips, chosen, reference.output_names)
    return judge_outputs(
        reference,
        runs,
        runtime=candidate.name,
        device=candidate.device,
        precision=candidate.precision,
    )


def judge_outputs(
    reference: Reference,
    runs: Sequence[np.ndarray],
    *,
    runtime: str,
    device: str,
    precision: str,
    min_inputs: int = MIN_INPUTS,
) -> tuple[Parity, ...]:
    """Compare every output of repeated runs, rows `(n, values)`, with the reference (pure)."""
    return tuple(
        judge(
            reference.of(name),
            [run[:, cut] for run in runs],
            runtime=runtime,
            device=device,
            precision=precision,
            min_inputs=min_inputs,
        )
        for name, cut in columns(reference.outputs).items()
    )


def judge(
    reference: Reference,
    runs: Sequence[np.ndarray],
    *,
    runtime: str,
    device: str,
    precision: str,
    min_inputs: int = MIN_INPUTS,
) -> Parity:
    """Compare one output of repeated runs, `(n, values)`, with the reference (pure)."""
    (output,) = reference.output_names
    task = reference.task if output == LOGITS else None  # no other output has an answer
    if shapes := {run.shape for run in runs} - {reference.truth.shape}:
        raise ValueError(f"logits differ in shape: got {shapes}, expected {reference.truth.shape}")
    least = least_length(reference.truth)
    per_input = tuple(
        _compare(
            name, reference.truth[i], reference.floor[i], [run[i] for run in runs], task, least
        )
        for i, name in enumerate(reference.names)
    )
    floor = largest(entry.floor_rel_l2 for entry in per_input)
    tolerance = max(FLOOR_FACTOR * floor, TINY[precision])
    pairs = [(again[i], runs[0][i]) for again in runs[1:] for i in range(len(per_input))]
    pairs += zip(reference.batched, reference.floor[list(reference.beside)], strict=True)
    invariance = largest(relative_error(again, first, least) for again, first in pairs)
    fp32 = reference.floor if reference.fp32 is None else reference.fp32
    fp32_floor = worst_error(fp32, reference.truth)
    verdict, reason = decide(
        per_input,
        fp32_floor=fp32_floor,
        floor=floor,
        tolerance=tolerance,
        invariance=invariance,
        min_inputs=min_inputs,
        output=output,
    )
    if verdict == "pass":
        verdict, reason = look_at_spread(reference.truth, fp32_floor, tolerance, output)
    if not per_input:
        return Parity(runtime, device, precision, verdict, reason=reason, output=output)
    found = measure(runs[0], reference.truth)
    of_floor = measure(reference.floor, reference.truth)
    system = find_system(found, of_floor, FLOOR_FACTOR, TINY[precision])
    if verdict == "pass" and system:
        verdict, reason = "fail", system
    return Parity(
        runtime,
        device,
        precision,
        verdict,
        rel_l2=largest(entry.rel_l2 for entry in per_input),
        max_abs=largest(entry.max_abs for entry in per_input),
        cosine=float(np.min([entry.cosine for entry in per_input])),  # NaN if any is
        top1_agreement=mean(entry.top1_equal for entry in per_input),
        top5_agreement=mean(entry.top5_overlap for entry in per_input),
        sign_agreement=mean(entry.signs_equal for entry in per_input),
        floor_rel_l2=floor,
        tolerance=tolerance,
        batch_invariance_rel_l2=invariance,
        median_rel_l2=found.median,
        bias=found.bias,
        inputs=len(per_input),
        reason=reason,
        per_input=per_input,
        output=output,
    )


def _compare(
    name: str,
    truth: np.ndarray,
    floor: np.ndarray,
    outputs: Sequence[np.ndarray],
    task: TaskName | None,
    least: float,
) -> InputParity:
    worst = max(outputs, key=lambda output: nan_is_worst(relative_error(output, truth, least)))
    return InputParity(
        name=name,
        rel_l2=relative_error(worst, truth, least),
        floor_rel_l2=relative_error(floor, truth, least),
        max_abs=float(np.abs(worst - truth).max()),
        cosine=cosine(worst, truth),
        **compare_answers(truth, worst, outputs, task, least),
    )
