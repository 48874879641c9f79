"""`tsformer export`: arguments -> spec -> pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from exporter.cli.options import (
    Batches,
    Flag,
    Json,
    JsonObject,
    Output,
    Paths,
    Resolution,
    Targets,
    Whole,
    WholeOrNone,
    Words,
)
from exporter.cli.proof import require_proof
from exporter.cli.terminal import progress, show
from exporter.errors import UsageError
from exporter.spec import ExportSpec

if TYPE_CHECKING:
    from exporter.pipeline import ExportResult


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of `export`, as typed: what is not given is for the checkpoint to tell.

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
        optimize_for: Lay the model out for onnxruntime on a CPU (default), or for tensorrt.
        embed_preprocess: Let the graph scale and normalise: it takes pixels, uint8 frames that are
            sampled, resized and cropped.
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

    model: str | None = None
    attn: str | None = None
    res: Resolution = None
    scheme: str | None = None
    frames: WholeOrNone = None
    channels: WholeOrNone = None
    batch: WholeOrNone = None
    num_classes: WholeOrNone = None
    dim: WholeOrNone = None
    depth: WholeOrNone = None
    heads: WholeOrNone = None
    dim_head: WholeOrNone = None
    patch_size: WholeOrNone = None
    checkpoint: Path | None = None
    config: JsonObject = None
    semantics: str | None = None
    video: Paths = None
    mask: Flag = False
    embed_preprocess: Flag = False
    eval_: Annotated[str | None, Parameter(name="--eval")] = None
    rewrite: str = "all"
    no_rewrite: Words = None
    optimize_for: str = "onnxruntime"
    precision: str | None = None
    keep_fp32: Words = None
    recipe: Path | None = None
    calibration: Paths = None
    dynamic_batch: Batches = None
    opset: WholeOrNone = None
    engine: str = "auto"
    target: Targets = ()
    output: Output = None
    force: Flag = False
    allow_ill_conditioned: Flag = False
    threads: WholeOrNone = None
    bench_seconds: float = 20.0
    seed: Whole = 0
    json_: Json = False
    quiet: Flag = False
    debug: Flag = False

    def to_spec(self) -> ExportSpec:
        """What they say to export.

        Raises:
            UsageError: if it cannot be exported.
        """
        precision, kept = _precision(self.precision, self.keep_fp32, self.recipe)
        return ExportSpec(
            model=self.model,
            attn=self.attn,
            res=self.res,
            scheme=self.scheme,
            frames=self.frames,
            channels=self.channels,
            num_classes=self.num_classes,
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            dim_head=self.dim_head,
            patch_size=self.patch_size,
            semantics=self.semantics,
            checkpoint=self.checkpoint,
            config=self.config or {},
            batch=self.batch,
            dynamic_batch=self.dynamic_batch,
            precision=precision,
            keep_fp32=kept,
            calibration=tuple(self.calibration or ()),
            opset=self.opset,
            engine=self.engine,
            targets=self.target,
            video=tuple(self.video or ()),
            mask=self.mask,
            embed_preprocess=self.embed_preprocess,
            rewrite=self.rewrite,
            no_rewrite=tuple(self.no_rewrite or ()),
            optimize_for=self.optimize_for,
            eval=self.eval_,
            seed=self.seed,
            allow_ill_conditioned=self.allow_ill_conditioned,
            threads=self.threads,
            bench_seconds=self.bench_seconds,
        )


_NONE_GIVEN = ExportOptions()


def export(*, options: Annotated[ExportOptions, Parameter(name="*")] = _NONE_GIVEN) -> int:
    """Export a model, prove it against eager PyTorch in float64, and time it.

    Leaves a directory with model.onnx, model.engine, manifest.json and report.json, .md and .html.

    Examples:
        tsformer export --attn fastformer --res 512

        tsformer export --checkpoint trained.pth --res 224 --frames 5 --video clip.mp4 -o build/x
    """
    spec = options.to_spec()
    from exporter import pipeline

    with progress(shown=not (options.quiet or options.json_)) as on_progress:
        result = pipeline.export(spec, options.output, force=options.force, on_progress=on_progress)
    _show_result(result, as_json=options.json_, quiet=options.quiet)
    if result.verdict == "ill-conditioned" and options.allow_ill_conditioned:
        return 0
    require_proof(
        result.verdict, result.report, result.directory, "; --allow-ill-conditioned accepts it"
    )
    return 0


def _precision(
    precision: str | None, keep_fp32: list[str] | None, recipe: Path | None
) -> tuple[str, tuple[str, ...]]:
    """Precision and modules to keep, as the options or a recipe have them."""
    if recipe is None:
        return precision or "fp32", tuple(keep_fp32 or ())
    from exporter.proof.tune import read_recipe

    cooked, kept = read_recipe(recipe)
    if precision not in (None, cooked):
        raise UsageError(f"--recipe is for {cooked}", got=f"--precision {precision}")
    return cooked, (*kept, *(keep_fp32 or ()))


def _show_result(result: ExportResult, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        show((result.directory / "report.json").read_text(encoding="utf-8").rstrip())
    elif not quiet:
        from exporter.report import summary_table

        show(summary_table(result.report))
        show(f"{result.directory}/report.html")
