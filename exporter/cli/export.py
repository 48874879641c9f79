"""`tsformer export`: arguments -> spec -> pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from exporter.cli.parsing import Flag, Json, Outputs, with_options_of_spec, words_of
from exporter.cli.proof import require_proof
from exporter.cli.terminal import progress, show
from exporter.errors import UsageError
from exporter.spec import OPTIONS, OUTPUT_WORDS, ExportSpec

if TYPE_CHECKING:
    from exporter.pipeline import ExportResult


@with_options_of_spec(after={"recipe": "keep_fp32", "output": "targets", "force": "output"})
class ExportOptions:
    """The options of `export`: those of an `ExportSpec`, and those that belong to the call.

    Args:
        recipe: What tune-precision found: a precision and what stays in float32.
        output: Directory to make (default: named after the model, under build/). A name of
            --outputs, as features, is taken as --outputs.
        force: Replace an earlier export there.
        json_: Print report.json instead of a table.
        quiet: Print nothing but errors.
        debug: Show the trace of an error.
    """

    recipe: Path | None = None
    output: Outputs = None
    force: Flag = False
    json_: Json = False
    quiet: Flag = False
    debug: Flag = False

    def to_spec(self) -> ExportSpec:
        """Make the spec; an option that is not given has the default of the spec.

        Raises:
            UsageError: if it cannot be exported.
        """
        given = {name: v for name in OPTIONS if (v := getattr(self, name)) is not None}
        values: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in given.items()
        }
        texts = filter(_names_outputs, self.output or ())
        named = [word for text in texts for word in words_of(text)]
        if named:
            values["outputs"] = (*values.get("outputs", ()), *named)
        return ExportSpec(**values | _read_recipe(self.recipe, values))

    @property
    def directory(self) -> Path | None:
        """The directory to make, if one is given.

        Raises:
            UsageError: if several are given.
        """
        given = [text for text in self.output or () if not _names_outputs(text)]
        if len(given) > 1:
            raise UsageError("--output is given twice", got=" and ".join(given), expected="one")
        return Path(given[0]) if given else None


_NONE_GIVEN = ExportOptions()


def export(*, options: Annotated[ExportOptions, Parameter(name="*")] = _NONE_GIVEN) -> int:
    """Export a model, prove it against eager PyTorch in float64, and time it.

    Leaves a directory with model.onnx, model.engine, manifest.json and report.json, .md and .html.

    Examples:
        tsformer export --attn fastformer --res 512

        tsformer export --checkpoint trained.pth --res 224 --frames 5 --video clip.mp4 -o build/x
    """
    spec, directory = options.to_spec(), options.directory
    from exporter import pipeline

    with progress(shown=not (options.quiet or options.json_)) as on_progress:
        result = pipeline.export(spec, directory, force=options.force, on_progress=on_progress)
    _show_result(result, as_json=options.json_, quiet=options.quiet)
    if result.verdict == "ill-conditioned" and spec.allow_ill_conditioned:
        return 0
    require_proof(
        result.verdict, result.report, result.directory, "; --allow-ill-conditioned accepts it"
    )
    return 0


def _names_outputs(text: str) -> bool:
    """Whether the value of `--output` names outputs; `./features` is a directory."""
    return all(word in OUTPUT_WORDS for word in words_of(text))


def _read_recipe(recipe: Path | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the precision and the modules to keep from a recipe, and add the given ones."""
    if recipe is None:
        return {}
    from exporter.proof.tune import read_recipe

    precision, kept = read_recipe(recipe)
    if given.get("precision", precision) != precision:
        raise UsageError(f"--recipe is for {precision}", got=f"--precision {given['precision']}")
    return {"precision": precision, "keep_fp32": (*kept, *given.get("keep_fp32", ()))}


def _show_result(result: ExportResult, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        show((result.directory / "report.json").read_text(encoding="utf-8").rstrip())
    elif not quiet:
        from exporter.report import summary_table

        show(summary_table(result.report))
        show(f"{result.directory}/report.html")
