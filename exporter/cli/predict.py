"""`tsformer predict`: classify clips with an exported directory, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.cli.parsing import Flag, Json, WholeOrNone
from exporter.cli.terminal import progress, say, show
from exporter.errors import UsageError, VideoError
from exporter.report.escape import one_line
from exporter.spec import clip_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from exporter.predict import Prediction, Predictor, WindowPrediction, Windows

# What the table calls an output and its figure: scores of independent labels do not sum to 1.
_HEADS = {
    "single-label": ("Class", "Score"),
    "multi-label": ("Label", "Sigmoid"),
    "regression": ("Output", "Value"),
}


def predict(
    directory: Path,
    /,
    *clips: str,
    top: WholeOrNone = None,
    window: str | None = None,
    stride: str | None = None,
    sampling: str | None = None,
    views: str | None = None,
    features: Path | None = None,
    device: str = "cpu",
    cache: Path | None = None,
    threads: WholeOrNone = None,
    json_: Json = False,
    debug: Flag = False,
) -> int:
    """Classify clips with an exported directory; needs no torch.

    Clips are read exactly as they were for the export. A clip that cannot be read does not stop the
    others; the exit code is then 3. With --features the first such clip ends the command.

    Examples:
        tsformer predict build/trained clip.mp4

        tsformer predict build/trained clips/*.mp4 --top 1 --json

        tsformer predict build/features clips/*.mp4 --features out.npz

        tsformer predict build/trained long.mp4 --window 2s --stride 1s

    Args:
        directory: What `tsformer export` made.
        clips: Video files, or folders of frames. With --window also a pipe (pipe:0 is
            standard input), a device or a URL.
        top: Classes to show of each clip, best first (default 5, or all where there are fewer). A
            regression shows all its values.
        window: Classify windows of this length, as 2s or 500ms: a row for each, as soon as it is
            complete; with --json a line for each.
        stride: From the start of a window to that of the next (default: the window).
        sampling: Frames of a clip, as uniform or dense:32@30 (default: as the export says).
        views: Views of a clip whose answers are averaged, as 1x3 (default: as the export says).
        features: Write the outputs of the export to this .npz file instead, one row a clip.
        device: cpu and cuda run model.onnx in ONNX Runtime, engine runs the TensorRT engine,
            openvino runs OpenVINO on the CPU; openvino-bf16 an int8 export with bf16 for the rest.
        cache: Folder in which OpenVINO keeps the compiled model, to load it faster next time.
        threads: Threads on the CPU (default: one for each core).
        json_: Print JSON instead of a table.
        debug: Show the trace of an error.
    """
    del debug
    if not clips:
        raise UsageError("no clip is given", remedy="tsformer predict DIRECTORY CLIP...")
    from exporter.predict import Predictor

    clip = clip_of(sampling, views)
    windows = _windows(window, stride)
    if features is not None:
        _check_features(features, {"--window": window, "--top": top})
    with Predictor(directory, device=device, threads=threads, cache=cache, clip=clip) as predictor:
        _warn(directory, predictor, engine=device == "engine")
        if windows is not None:
            _show_windows(predictor, clips, windows, top, as_json=json_)
            return 0
        if features is not None:
            _write_features(predictor, clips, features, as_json=json_)
            return 0
        found: list[Prediction] = []
        with progress(shown=not json_) as on_progress:
            for prediction in predictor.predict(clips, top, keep_going=True):
                found.append(prediction)
                on_progress("predict", len(found) / len(clips), prediction.clip)
        failed = [prediction.error for prediction in found if prediction.error]
        if len(failed) < len(found):
            show(_json(predictor, found) if json_ else _table(predictor, found))
    _raise_if(failed, len(found))
    return 0


def _raise_if(failed: Sequence[str], clips: int) -> None:
    if failed:
        others = f" ({len(failed)} of {clips} clips failed)" if clips > 1 else ""
        raise VideoError(f"{failed[0]}{others}")


def _windows(window: str | None, stride: str | None) -> Windows | None:
    from exporter.predict import Windows

    if window is None and stride is not None:
        raise UsageError("--stride needs --window", remedy="add --window, as --window 2s")
    return None if window is None else Windows.parse(window, stride)


def _check_features(path: Path, others: Mapping[str, object]) -> None:
    """Raise `UsageError` now, not after the clips, if nothing could be written."""
    from exporter.predict.features import require_features_file

    require_features_file(path)
    for option, given in others.items():
        if given is not None:
            what = f"{option} does not go with --features"
            raise UsageError(what, remedy="use only one of them")


def _show_windows(
    predictor: Predictor, clips: Sequence[str], windows: Windows, top: int | None, *, as_json: bool
) -> None:
    """Show a row for each window as soon as it is answered: the source may never end."""
    if predictor.card.preprocessing.is_assumed:
        say(f"clips: {predictor.card.preprocessing.sentences[0]}", 0)
    failed: list[str] = []
    for clip in clips:
        try:
            for row in predictor.predict_windows(clip, windows, top):
                show(json.dumps(asdict(row), allow_nan=False) if as_json else _window_line(row))
        except VideoError as error:
            failed.append(str(error))
            if len(failed) > 1:  # the first one is the error of the run
                say(str(error), 0)
    _raise_if(failed, len(clips))


def _window_line(row: WindowPrediction) -> str:
    best = ", ".join(f"{entry.label} {entry.score:.4f}" for entry in row.classes)
    line = f"{row.clip}  {row.start:.2f} to {row.end:.2f} s  {best}"
    if row.lag is not None:
        line += f"  (lag {row.lag:.2f} s, {row.held_mb:.0f} MB held)"
    return one_line(f"{line}  ({row.note})" if row.note else line)


def _write_features(
    predictor: Predictor, clips: Sequence[str], path: Path, *, as_json: bool
) -> None:
    from exporter.predict.features import Described, describe, write_features

    found: list[Described] = []
    with progress(shown=not as_json) as on_progress:
        for described in describe(predictor, clips):
            found.append(described)
            on_progress("predict", len(found) / len(clips), described.clip)
    shapes = write_features(path, found)
    if as_json:
        notes = {described.clip: described.note for described in found}
        show(json.dumps({"file": str(path), "arrays": shapes, "clips": notes}, indent=2))
        return
    for name, shape in shapes.items():
        show(f"{path}: {name} {' x '.join(map(str, shape))}")


def _warn(directory: Path, predictor: Predictor, *, engine: bool) -> None:
    """Warn on stderr if the export or its engine is not proven."""
    card = predictor.card
    if card.verdict != "pass":
        say(f"warning: {directory} is not proven ({card.verdict}): see its report.html", 0)
    if engine and card.doubt:
        say(f"warning: {card.doubt}: run tsformer verify --record {directory} here", 0)


def _figure(score: float, task: str) -> str:
    return f"{score:.6g}" if task == "regression" else f"{score:.4f}"


def _json(predictor: Predictor, found: list[Prediction]) -> str:
    runner = predictor.runner
    facts = {
        "runtime": runner.name,
        "device": runner.device,
        "precision": runner.precision,
        "verdict": predictor.card.verdict,
        "task": predictor.card.task,
        "clip": predictor.card.preprocessing.sentences,
        "predictions": [asdict(prediction) for prediction in found],
    }
    # ASCII: a path may hold bytes that are not text.
    return json.dumps(facts, indent=2, allow_nan=False)


def _table(predictor: Predictor, found: list[Prediction]) -> RenderableType:
    from rich.console import Group

    from exporter.report.table import figures, plain_line, table, texts

    kind, figure = _HEADS[predictor.card.task]
    made = table(*texts("Clip", kind), *figures(figure), gap=3)
    for prediction in found:
        if prediction.error:
            made.add_row(plain_line(prediction.clip), "not read", "-")
        for place, entry in enumerate(prediction.classes):
            name = plain_line(prediction.clip) if place == 0 else ""
            made.add_row(name, plain_line(entry.label), _figure(entry.score, predictor.card.task))
        made.add_section()
    runner = predictor.runner
    lines = [f"{runner.name} ({runner.device}, {runner.precision})"]
    if predictor.card.preprocessing.is_assumed:
        lines.append(f"Clips: {predictor.card.preprocessing.sentences[0]}")
    lines += [f"{prediction.clip}: {prediction.note}" for prediction in found if prediction.note]
    return Group(made, *map(plain_line, lines))
