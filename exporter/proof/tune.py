"""Which modules to keep in float32, so that a model of lower precision meets an error budget.

The error of a choice is that of parity: the largest error of eager PyTorch over the inputs, against
the float64 truth. The share of a module is the error with that module alone in lower precision.
Rounding errors add up in squares, so the modules with the largest shares are kept first. Bisection
finds how many of them the budget needs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from exporter.errors import TuneError, UsageError
from exporter.files.place import write_whole
from exporter.files.text import parse_text
from exporter.inputs.clips import Inputs
from exporter.precision import Int8
from exporter.proof.distance import nan_is_worst, worst_error
from exporter.proof.rows import run_clips
from exporter.results import Recipe
from exporter.runners.eager import EagerRunner
from model.classifier import VideoClassifier
from model.precision import rounded_modules


def tune(
    model: VideoClassifier,
    inputs: Inputs,
    *,
    precision: str,
    budget: float,
    int8: Int8 | None = None,
    on_step: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Recipe:
    """Find a small set of modules to keep in float32 so that the error meets the budget.

    Args:
        model: The model; its weights are float32.
        inputs: The clips to measure the error on.
        precision: The lower precision.
        budget: Relative L2 of the logits against the float64 truth.
        int8: How `int8` rounds.
        on_step: Called with the number of evaluations done, their estimated total, and the next.

    Raises:
        TuneError: if float32 itself does not meet the budget.
    """
    paths = list(rounded_modules(model))
    total = len(paths) + 2 + math.ceil(math.log2(len(paths) + 1))
    with EagerRunner(model, inputs.shapes, "fp64") as runner:
        truth = run_clips(runner, inputs.arrays, 1, outputs=model.output_names)
    done = 0

    def error(kept: Sequence[str], what: str) -> float:
        nonlocal done
        on_step(done, total, what)
        done += 1
        patterns = tuple(map(re.escape, kept))
        with EagerRunner(model, inputs.shapes, precision, patterns, int8) as runner:
            logits = run_clips(runner, inputs.arrays, 1, outputs=model.output_names)
        return nan_is_worst(worst_error(logits, truth))

    without = error([], "all modules")
    if without <= budget:
        return _recipe(precision, [], budget, without, without, done, {})
    least = error(paths, "none")
    if least > budget:
        raise TuneError(
            "float32 alone is above the budget", got=f"{least:.1e}", expected=f"at most {budget:g}"
        )
    alone = {path: error([p for p in paths if p != path], path) for path in paths}
    worst_first = sorted(paths, key=lambda path: -alone[path])
    errors = {0: without, len(paths): least}
    enough, too_few = len(paths), 0
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        errors[middle] = error(worst_first[:middle], f"{middle} kept")
        if errors[middle] <= budget:
            enough = middle
        else:
            too_few = middle
    kept = worst_first[:enough]
    ranked = {path: alone[path] for path in worst_first}
    return _recipe(precision, kept, budget, errors[enough], without, done, ranked)


def _recipe(
    precision: str,
    kept: Sequence[str],
    budget: float,
    error: float,
    without: float,
    evaluations: int,
    alone: Mapping[str, float],
) -> Recipe:
    patterns = tuple(re.escape(path) for path in sorted(kept))
    return Recipe(precision, patterns, budget, error, without, evaluations, alone)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as JSON, whole or not at all; an error that is not finite becomes null.

    Raises:
        OutputError: if it cannot be written.
    """
    values = asdict(recipe)
    values["error_without"] = _finite(recipe.error_without)
    values["alone"] = {name: _finite(error) for name, error in recipe.alone.items()}
    write_whole(path, json.dumps(values, indent=2, allow_nan=False).encode() + b"\n")


def read_recipe(path: Path) -> tuple[str, tuple[str, ...]]:
    """Read the precision and the modules to keep from a recipe file.

    Raises:
        UsageError: if the file cannot be read or is not a recipe.
    """
    try:
        values = parse_text(path, json.loads)
        precision, kept = values["precision"], values["keep_fp32"]
    except OSError as error:
        raise UsageError(f"--recipe: cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"--recipe: {path} is no recipe", remedy="make one with tsformer tune-precision"
        ) from error
    if not (isinstance(kept, list) and all(isinstance(k, str) for k in [precision, *kept])):
        raise UsageError(f"--recipe: {path} is damaged", expected="precision and keep_fp32")
    return precision, tuple(kept)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
