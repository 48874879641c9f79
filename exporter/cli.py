"""The command line: arguments -> spec -> pipeline; exit codes; the only file that prints.

Exit codes: 0 done and proven; 2 usage; 3 an input cannot be read; 4 export or build failed; 5 not
proven; 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from exporter.errors import LadderDivergence, OutputError, ParityError, TsformerError, UsageError
from exporter.spec import PRECISIONS, BatchProfile, ExportSpec

if TYPE_CHECKING:
    from exporter.pipeline import ExportResult
    from exporter.results import Report
    from exporter.stages import OnProgress

INTERNAL_EXIT = 4
ENDINGS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}

app = App(
    name="tsformer",
    help="Take a video transformer to ONNX and TensorRT, proven to be the same model.",
    version_flags=["--version"],
    help_format="plaintext",
    version=lambda: importlib.metadata.version("tsformer"),
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # `main` gives its exit code
)
app.register_install_completion_command()


def _resolution(_type: Any, tokens: Sequence[Any]) -> tuple[int, int]:  # noqa: ANN401
    text = tokens[0].value
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"got {text!r}, expected 512 or 224x384 (height x width)")
    return int(sides[0]), int(sides[-1])


def _json_file(_type: Any, tokens: Sequence[Any]) -> dict[str, Any]:  # noqa: ANN401
    return _read_config(tokens[0].value)


def _read_config(text: str) -> dict[str, Any]:
    """A JSON object: in a file, or as the argument itself."""
    try:
        content = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        config = json.loads(content)
    except OSError as error:
        raise ValueError(f"cannot read {text}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{text} is not JSON: {error}") from error
    if isinstance(config, dict):
        config = config.get("config", config)
    if not isinstance(config, dict):
        raise ValueError(f"{text} is not a JSON object")  # noqa: TRY004  # cyclopts shows these
    return config


def _targets(_type: Any, tokens: Sequence[Any]) -> tuple[str, ...]:  # noqa: ANN401
    names = [name.strip().lower() for token in tokens for name in token.value.split(",")]
    return tuple(name for name in names if name)


def _profile(_type: Any, tokens: Sequence[Any]) -> BatchProfile:  # noqa: ANN401
    return BatchProfile.parse(tokens[0].value)


@app.command(name="export")
def export_command(
    *,
    model: str | None = None,
    attn: str | None = None,
    res: Annotated[tuple[int, int] | None, Parameter(converter=_resolution, n_tokens=1)] = None,
    scheme: str | None = None,
    frames: int | None = None,
    channels: int | None = None,
    batch: int | None = None,
    num_classes: int | None = None,
    dim: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    dim_head: int | None = None,
    patch_size: int | None = None,
    checkpoint: Path | None = None,
    config: Annotated[
        dict[str, Any] | None, Parameter(converter=_json_file, n_tokens=1, accepts_keys=False)
    ] = None,
    semantics: str | None = None,
    video: Annotated[list[Path] | None, Parameter(consume_multiple=False)] = None,
    mask: Annotated[bool, Parameter(negative="")] = False,
    eval_: Annotated[str | None, Parameter(name="--eval")] = None,
    rewrite: str = "all",
    no_rewrite: Annotated[list[str] | None, Parameter(consume_multiple=False)] = None,
    precision: str | None = None,
    keep_fp32: Annotated[list[str] | None, Parameter(consume_multiple=False)] = None,
    recipe: Path | None = None,
    calibration: Annotated[list[Path] | None, Parameter(consume_multiple=False)] = None,
    dynamic_batch: Annotated[
        BatchProfile | None, Parameter(converter=_profile, n_tokens=1, accepts_keys=False)
    ] = None,
    opset: int | None = None,
    engine: str = "auto",
    target: Annotated[tuple[str, ...], Parameter(converter=_targets, n_tokens=1)] = (),
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    force: Annotated[bool, Parameter(negative="")] = False,
    allow_ill_conditioned: Annotated[bool, Parameter(negative="")] = False,
    threads: int | None = None,
    bench_seconds: float = 20.0,
    seed: int = 0,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="")] = False,
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Export a model, prove it against eager PyTorch in float64, and time it.

    Leaves a directory with model.onnx, model.engine, manifest.json and report.json, .md and .html.

    Examples:
        tsformer export --attn fastformer --res 512

        tsformer export --checkpoint trained.pth --res 224 --frames 5 --video clip.mp4 -o build/x

    Args:
        model: Family of the checkpoint (told by its keys), or of a fresh model: fast_timesformer
            (default), timesformer_pytorch, facebookresearch, huggingface, or a preset:
            TimeSformer, TimeSformer-HR, TimeSformer-L.
        attn: Attention: fastformer (default), performer or regular.
        res: Height and width in pixels: 512, or 224x384.
        scheme: Which tokens attend together: space, joint, divided (default), local-global, axial.
        frames: Frames of a clip (default 5).
        channels: Channels of a frame (default 3).
        batch: Clips per run (default 1).
        num_classes: Classes (default 2).
        dim: Token width (default 128).
        depth: Blocks (default 12).
        heads: Attention heads (default dim / dim-head).
        dim_head: Width of a head (default 64).
        patch_size: Side of a patch in pixels (default 16).
        checkpoint: A trained model: a file or a Hugging Face directory.
        config: JSON file (or text) with what the checkpoint does not tell.
        semantics: paper or upstream (default for checkpoints of the published package).
        video: A clip to prove the export on; may be given several times.
        mask: Give the graph a second input, the frames to look at (timesformer_pytorch).
        rewrite: Lay the model out for the runtimes (all, default), or leave it as it is (none).
        no_rewrite: A rewrite to leave out; may be given several times.
        eval_: Measure accuracy on labelled clips: motion (the built-in task), or a folder
            class/clip.mp4.
        precision: Precision of the graph: fp32 (default), fp16, bf16 or int8.
        keep_fp32: What stays in float32 at a lower precision: a regular expression over module
            paths, as blocks.3.attn_t; may be given several times.
        recipe: What tune-precision found: a precision and what stays in float32.
        dynamic_batch: Let the batch vary: MIN:OPT:MAX.
        calibration: Clip, or folder of clips, whose activations scale an int8 graph (default: a
            fixed synthetic set); may be given several times.
        opset: ONNX opset (default 20; 22 for bf16).
        engine: TensorRT engine: auto, rtx, tensorrt or none.
        target: GPU architectures of the engine, as sm86,sm89.
        output: Directory to make (default: named after the model, under build/).
        force: Replace an earlier export there.
        allow_ill_conditioned: Exit 0 for a model that is no function at this precision.
        threads: Threads on the CPU.
        bench_seconds: Time for measuring latency.
        seed: Seed of a fresh model.
        json_: Print report.json instead of a table.
        quiet: Print nothing but errors.
        debug: Show the trace of an error.
    """
    del debug  # read by `main`, which catches the errors of all commands
    precision, kept = _precision(precision, keep_fp32, recipe)
    spec = ExportSpec(
        model=model,
        attn=attn,
        res=res,
        scheme=scheme,
        frames=frames,
        channels=channels,
        num_classes=num_classes,
        dim=dim,
        depth=depth,
        heads=heads,
        dim_head=dim_head,
        patch_size=patch_size,
        semantics=semantics,
        checkpoint=checkpoint,
        config=config or {},
        batch=batch,
        dynamic_batch=dynamic_batch,
        precision=precision,
        keep_fp32=kept,
        calibration=tuple(calibration or ()),
        opset=opset,
        engine=engine,
        targets=target,
        video=tuple(video or ()),
        mask=mask,
        eval=eval_,
        rewrite=rewrite,
        no_rewrite=tuple(no_rewrite or ()),
        seed=seed,
        allow_ill_conditioned=allow_ill_conditioned,
        threads=threads,
        bench_seconds=bench_seconds,
    )
    from exporter.pipeline import export

    with _progress(shown=not (quiet or json_)) as on_progress:
        result = export(spec, output, force=force, on_progress=on_progress)
    _show(result, as_json=json_, quiet=quiet)
    if result.verdict == "ill-conditioned" and allow_ill_conditioned:
        return 0
    _require_proof(
        result.verdict, result.report, result.directory, "; --allow-ill-conditioned accepts it"
    )
    return 0


@app.command
def verify(
    directory: Path,
    /,
    *,
    checkpoint: Path | None = None,
    video: Annotated[list[Path] | None, Parameter(consume_multiple=False)] = None,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Prove an exported directory again, here: its files unchanged, its model the same.

    Runs every runtime this machine has, an engine built elsewhere included.

    Examples:
        tsformer verify build/fastformer-divided-512x512-fp32

    Args:
        directory: What `tsformer export` made.
        checkpoint: Where the checkpoint lies now, if it was moved.
        video: More clips to prove it on; may be given several times.
        json_: Print the report as JSON.
        debug: Show the trace of an error.
    """
    del debug
    from exporter.pipeline import verify as verify_directory
    from exporter.report import overall_verdict, report_json, summary_table

    with _progress(shown=not json_) as on_progress:
        report = verify_directory(
            directory, checkpoint=checkpoint, video=tuple(video or ()), on_progress=on_progress
        )
    if json_:
        _print(report_json(report))
    else:
        _print(summary_table(report))
    _require_proof(overall_verdict(report.parity), report, directory)
    return 0


@app.command
def ladder(
    directory: Path,
    /,
    *,
    checkpoint: Path | None = None,
    video: Annotated[list[Path] | None, Parameter(consume_multiple=False)] = None,
    engine: Annotated[bool, Parameter(negative="")] = False,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Name the module where a graph leaves its model: the error at each, beside eager's own.

    Examples:
        tsformer ladder build/fastformer-divided-224x224-fp16

    Args:
        directory: What `tsformer export` made; its model.onnx may have been changed since.
        checkpoint: Where the checkpoint lies now, if it was moved.
        video: Clips beside the synthetic inputs; may be given several times.
        engine: Climb in TensorRT, on a machine with a GPU.
        json_: Print JSON instead of a table.
        debug: Show the trace of an error.
    """
    del debug
    from exporter.diagnose import ladder as climb
    from exporter.report import ladder_table, strict_json

    with _progress(shown=not json_) as on_progress:
        found = climb(
            directory,
            checkpoint=checkpoint,
            video=tuple(video or ()),
            engine=engine,
            on_progress=on_progress,
        )
    _print(strict_json(asdict(found)) if json_ else ladder_table(found))
    if found.first_divergence:
        raise LadderDivergence(
            f"{found.first_divergence} is the first module above its limit",
            remedy="see tsformer tune-precision" if found.precision != "fp32" else None,
        )
    return 0


@app.command
def tune_precision(
    directory: Path,
    /,
    *,
    budget: float = 1e-3,
    precision: str | None = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    checkpoint: Path | None = None,
    video: Annotated[list[Path] | None, Parameter(consume_multiple=False)] = None,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Find what to keep in float32 so that the error meets a budget; write it as a recipe.

    Examples:
        tsformer tune-precision build/fastformer-divided-224x224-fp16 --budget 1e-3

        tsformer export --recipe build/fastformer-divided-224x224-fp16.recipe.json

    Args:
        directory: What `tsformer export` made.
        budget: Relative L2 of the logits against the float64 truth.
        precision: fp16, bf16 or int8 (default: that of the export, fp16 if it is fp32).
        output: The recipe file to write (default: beside the directory, .recipe.json).
        checkpoint: Where the checkpoint lies now, if it was moved.
        video: Clips beside the synthetic inputs; may be given several times.
        json_: Print the recipe instead of a table.
        debug: Show the trace of an error.
    """
    del debug
    if precision is not None:
        _check_lower(precision)
    if not 0 < budget < math.inf:
        raise UsageError("--budget", got=budget, expected="above 0")
    from exporter.diagnose import tune_precision as tune
    from exporter.report import recipe_table
    from exporter.tune import write_recipe

    place = output or directory.absolute().with_name(f"{directory.absolute().name}.recipe.json")
    with _progress(shown=not json_) as on_progress:
        recipe = tune(
            directory,
            budget=budget,
            precision=precision,
            checkpoint=checkpoint,
            video=tuple(video or ()),
            on_progress=on_progress,
        )
    try:
        write_recipe(recipe, place)
    except OSError as error:
        raise OutputError(f"cannot write {place}: {error.strerror}") from error
    _print(place.read_text(encoding="utf-8").rstrip() if json_ else recipe_table(recipe))
    if not json_:
        _print(str(place))
    return 0


@app.command
def doctor(*, json_: Annotated[bool, Parameter(name="--json", negative="")] = False) -> int:
    """Say what this machine can do, and what to install for the rest.

    Args:
        json_: Print JSON instead of a table.
    """
    from exporter.environment import describe, examine

    findings = examine()
    if json_:
        facts = {"environment": describe(), "findings": [asdict(f) for f in findings]}
        _print(json.dumps(facts, indent=2, ensure_ascii=False))
        return 0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("Part", "Works", "Found", "What to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        works = Text("yes", "green") if finding.works else Text("no", "yellow")
        table.add_row(finding.part, works, finding.found, finding.remedy)
    _print(table)
    return 0


def _precision(
    precision: str | None, keep_fp32: list[str] | None, recipe: Path | None
) -> tuple[str, tuple[str, ...]]:
    """Precision and modules to keep, as the options or a recipe have them."""
    if recipe is None:
        return precision or "fp32", tuple(keep_fp32 or ())
    from exporter.tune import read_recipe

    cooked, kept = read_recipe(recipe)
    if precision not in (None, cooked):
        raise UsageError(f"--recipe is for {cooked}", got=f"--precision {precision}")
    return cooked, (*kept, *(keep_fp32 or ()))


def _check_lower(precision: str) -> None:
    lower = tuple(name for name in PRECISIONS if name != "fp32")
    if precision not in lower:
        raise UsageError("--precision", got=precision, expected=f"one of {', '.join(lower)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    received: list[int] = []
    try:
        with _noting_signals(received):
            return app(argv, exit_on_error=False, print_error=False) or 0
    except (Exception, KeyboardInterrupt) as error:
        # An import or a trace that is interrupted raises anything: the signal is what counts.
        if received or isinstance(error, KeyboardInterrupt):
            how, code = ENDINGS[signal.Signals(received[0]) if received else signal.SIGINT]
            return _say(f"{how}: nothing was left behind", code)
        return _fail(error, argv)


def export_main() -> int:
    """Entry point of the console script `export`: `tsformer export` by a shorter name."""
    return main(["export", *sys.argv[1:]])


@contextmanager
def _noting_signals(received: list[int]) -> Iterator[None]:
    """Let SIGTERM clean up as Ctrl-C does, and note which of them came."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if received:
            return  # one is enough: what it set off, the cleaning up, is not to be cut short
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread
        return
    before = {number: signal.getsignal(number) for number in ENDINGS}
    caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    try:
        for number in caught:
            signal.signal(number, interrupt)
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


@contextmanager
def _progress(*, shown: bool) -> Iterator[OnProgress]:
    """A bar on a terminal's stderr; nothing where nobody looks."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda _stage, _fraction, _what: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[stage]:<8}"),
        BarColumn(30),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", stage="", what="", total=None)

        def on_progress(stage: str, fraction: float | None, what: str) -> None:
            if stage != bar.tasks[0].fields["stage"]:
                bar.reset(task, stage=stage)
            bar.update(
                task,
                stage=stage,
                what=what,
                completed=fraction or 0.0,
                total=None if fraction is None else 1.0,
            )

        yield on_progress


def _show(result: ExportResult, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        _print((result.directory / "report.json").read_text(encoding="utf-8").rstrip())
    elif not quiet:
        from exporter.report import summary_table

        _print(summary_table(result.report))
        _print(f"{result.directory}/report.html")


def _require_proof(verdict: str, report: Report, directory: Path, way_out: str = "") -> None:
    """Raise `ParityError` unless proven; `way_out` is what helps with an ill-conditioned model."""
    if verdict == "pass":
        return
    from exporter.report import headline

    hint = way_out if verdict == "ill-conditioned" else ""
    raise ParityError(f"{verdict}: {headline(report)}", remedy=f"see {directory}{hint}")


class _Output(Console):
    """Standard output; rich's own would end the process with exit code 1 where a pipe breaks."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _print(what: RenderableType) -> None:
    """Print to a reader who may have left: that changes no verdict and no exit code."""
    try:
        if isinstance(what, str):
            print(what)
        else:
            _Output().print(what)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(error: Exception, argv: Sequence[str]) -> int:
    if "--debug" in argv:
        traceback.print_exception(error)
    if isinstance(error, CycloptsError):
        error = UsageError(_one_line(error), remedy="see tsformer --help")
    if isinstance(error, TsformerError):
        return _say(f"{error.stage}: {error}", error.exit_code)
    # A defect of ours, or a machine out of memory.
    what = f"internal: {type(error).__name__}: {_one_line(error)[:300]}"
    return _say(f"{what}; run with --debug for the trace", INTERNAL_EXIT)


def _say(message: str, code: int) -> int:
    print(f"tsformer: {message}", file=sys.stderr)
    return code


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
