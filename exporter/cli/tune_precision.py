"""`tsformer tune-precision`: write a recipe of the modules to keep in float32."""

from __future__ import annotations

from pathlib import Path

from exporter.cli.parsing import Flag, Json, Output, Paths, check_lower_precision
from exporter.cli.terminal import progress, show
from exporter.errors import UsageError


def tune_precision(
    directory: Path,
    /,
    *,
    budget: float = 1e-3,
    precision: str | None = None,
    output: Output = None,
    checkpoint: Path | None = None,
    video: Paths = None,
    json_: Json = False,
    debug: Flag = False,
) -> int:
    """Find the modules to keep in float32 so that the error meets a budget; write a recipe.

    Examples:
        tsformer tune-precision build/fastformer-divided-224x224-fp16 --budget 1e-3

        tsformer export --recipe build/fastformer-divided-224x224-fp16.recipe.json

    Args:
        directory: A directory that tsformer export wrote.
        budget: Largest relative L2 error of the logits against the float64 truth.
        precision: fp16, bf16 or int8 (default: that of the export; fp16 for an fp32 export).
        output: The recipe file to write (default: beside the directory, .recipe.json).
        checkpoint: The new path of the checkpoint, if it was moved.
        video: Clips to add to the synthetic inputs; may be given several times.
        json_: Print the recipe instead of a table.
        debug: Show the trace of an error.
    """
    del debug
    if precision is not None:
        check_lower_precision(precision)
    if not 0 < budget <= 1:
        raise UsageError("--budget", got=budget, expected="above 0, at most 1")
    from exporter.files.place import require_place
    from exporter.proof.diagnose import tune_precision as tune
    from exporter.proof.tune import write_recipe
    from exporter.report import recipe_table

    place = output or directory.absolute().with_name(f"{directory.absolute().name}.recipe.json")
    require_place(place)
    with progress(shown=not json_) as on_progress:
        recipe = tune(
            directory,
            budget=budget,
            precision=precision,
            checkpoint=checkpoint,
            video=tuple(video or ()),
            on_progress=on_progress,
        )
    write_recipe(recipe, place)
    show(place.read_text(encoding="utf-8").rstrip() if json_ else recipe_table(recipe))
    if not json_:
        show(str(place))
    return 0
