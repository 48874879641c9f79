"""`tsformer evaluate`: accuracy of an export on labelled clips, without torch."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.cli.parsing import Flag, Json, Output, Paths, Share, WholeOrNone, jobs_of, words_of
from exporter.cli.terminal import counting, kept_in, progress, say, show
from exporter.errors import UsageError, VideoError
from exporter.spec import clip_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from exporter.predict import Predictor
    from exporter.predict.evaluate import Evaluation, Judged


def evaluate(
    directory: Path,
    data: str,
    /,
    *,
    device: str = "cpu",
    against: Paths = None,
    sampling: str | None = None,
    views: str | None = None,
    output: Output = None,
    threads: WholeOrNone = None,
    batch: WholeOrNone = None,
    jobs: WholeOrNone = None,
    max_bad: Share = 0.05,
    json_: Json = False,
    quiet: Flag = False,
    debug: Flag = False,
) -> int:
    """Measure the accuracy of an export on labelled clips; needs no torch.

    A clip that cannot be read is counted and named, and does not end the run; with more such clips
    than --max-bad the exit code is 3. With -o, a run that was ended goes on where it was.

    Examples:
        tsformer evaluate build/trained clips/

        tsformer evaluate build/trained val.csv --against build/trained-int8 -o build/accuracy

    Args:
        directory: What `tsformer export` made.
        data: A folder with a folder for each class, a list with lines `path label`, or motion.
        device: cpu and cuda run model.onnx in ONNX Runtime, engine runs the TensorRT engine,
            openvino runs OpenVINO on the CPU; several as cpu,engine. The first is the main one.
        against: Another export of the same model to run on the same clips; may be given several
            times.
        sampling: Frames of a clip, as uniform or dense:32@30 (default: as the export says).
        views: Views of a clip whose answers are averaged, as 1x3 (default: as the export says).
        output: Directory for the answers, evaluation.json and evaluation.html.
        threads: Threads on the CPU (default: one for each core).
        batch: Clips of one run (default: as many as the model takes).
        jobs: Processes that read clips (default: one for each core).
        max_bad: Share of clips that may be bad, as 5% or 0.05.
        json_: Print JSON instead of tables.
        quiet: Print nothing but errors.
        debug: Show the trace of an error.
    """
    del debug
    from exporter.predict import Predictor
    from exporter.predict import evaluate as run

    jobs = jobs_of(jobs)
    how: dict[str, Any] = {"threads": threads, "batch": batch, "clip": clip_of(sampling, views)}
    with (
        kept_in(output),
        ExitStack() as resources,
        progress(shown=not (quiet or json_)) as on_progress,
    ):
        opened = [
            (str(place), resources.enter_context(Predictor(place, device=each, **how)))
            for place in (directory, *(against or ()))
            for each in words_of(device)
        ]
        card = opened[0][1].card
        _require_same_clips(opened)
        dataset = run.open_data(data, card)
        found = run.evaluate(
            [(name, predictor.batches) for name, predictor in opened],
            run.Subject(card.config, card.preprocessing, card.task, card.labels),
            dataset,
            jobs=jobs,
            kept=output / "answers.jsonl" if output else None,
            made_by=_made_by(opened),
            on_clip=counting("evaluate", on_progress),
        )
    if output:
        _write(found, output)
    if json_:
        show(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    elif not quiet:
        show(_tables(found))
    if found.bad_share > max_bad:
        raise VideoError(
            f"{len(found.bad)} clips are bad, the first: {found.bad[0].reason}",
            got=f"{100 * found.bad_share:.3g} %",
            expected=f"at most {100 * max_bad:.3g} % (--max-bad)",
        )
    if found.bad and not json_:
        say(
            f"warning: {len(found.bad)} bad clips do not count, the first: {found.bad[0].reason}", 0
        )
    return 0


def _require_same_clips(opened: list[tuple[str, Predictor]]) -> None:
    """Raise unless all exports take the same clips, and their logits mean the same."""
    (_, first), *others = opened
    for name, other in others:
        for what in ("config", "preprocessing", "task", "labels"):
            ours, theirs = getattr(first.card, what), getattr(other.card, what)
            if ours != theirs:
                raise UsageError(
                    f"{name} has another {what}, and an evaluation has the same clips and classes",
                    remedy="evaluate it alone",
                )


def _made_by(opened: list[tuple[str, Predictor]]) -> dict[str, object]:
    return {
        "models": [predictor.card.hashes.get(predictor.file) for _, predictor in opened],
        "runtimes": [[p.runner.name, p.runner.device] for _, p in opened],
        "preprocessing": str(opened[0][1].card.preprocessing),
        "task": opened[0][1].card.task,
    }


def _write(found: Evaluation, directory: Path) -> None:
    from exporter.files.place import whole_file, write_whole
    from exporter.report.pages import write_page

    facts = found.to_dict()
    text = json.dumps(facts, indent=2, allow_nan=False)
    write_whole(directory / "evaluation.json", f"{text}\n".encode())
    shown = {"found": found, "confusions": found.confusions(_CONFUSIONS), "matrix_limit": _MATRIX}
    with whole_file(directory / "evaluation.html") as page:
        write_page(page, "evaluation.html.jinja", **shown)


def _tables(found: Evaluation) -> RenderableType:
    """Show a row for each runtime, and below it the worst classes of the main one."""
    from rich.console import Group

    from exporter.report.table import figures, plain_line, table, texts

    heads = _FIGURES[found.task]
    made = table(*texts("Runtime"), *figures(*heads, "95 %", "Agrees"), gap=2)
    for row in found.judged:
        values = [_figure(getattr(row.metrics, name), name) for name in heads.values()]
        interval = row.metrics.interval
        span = "-" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"
        agrees = "-" if row.agreement is None else f"{100 * row.agreement:.2f} %"
        made.add_row(plain_line(_who(row, found)), *values, span, agrees)
    clips = found.judged[0].metrics.clips
    rate = f", {found.clips_read / found.seconds:.1f} clips/s" if found.clips_read else ""
    bad = f", {len(found.bad)} bad" if found.bad else ""
    return Group(made, plain_line(f"{clips} clips of {found.data}{bad}{rate}"))


_CONFUSIONS, _MATRIX = 50, 30  # wrong answers in the page; classes of a matrix that is shown
_FIGURES = {
    "single-label": {"Top-1": "top1", "Top-5": "top5", "Mean class": "mean_class"},
    "multi-label": {"mAP": "map"},
    "regression": {"MSE": "mse", "R2": "r2"},
}


def _figure(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if name in ("mse", "r2") else f"{100 * value:.2f} %"


def _who(row: Judged, found: Evaluation) -> str:
    several = len({other.name for other in found.judged}) > 1
    where = f"{row.name}: " if several else ""
    return f"{where}{row.runtime} ({row.device}, {row.precision})"
