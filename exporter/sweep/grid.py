"""The grid of a sweep: options that all cells share, axes of values, and the cells."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import GridError, UsageError
from exporter.files.toml import read_toml
from exporter.spec import OPTIONS, nearest

MOST_CELLS = 1_000  # of a sweep: each takes ten seconds at least
TABLES = ("base", "axes")
RECIPE = "recipe"  # an option of `export` that decides the spec and is not a field of it
# Options that a comma does not split into an axis: one value may contain a comma, or one cell may
# take several values.
_NEVER_SPLIT = {declared.flag for declared in OPTIONS.values() if declared.whole} | {RECIPE}
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9-]*)\}")


@dataclass(frozen=True)
class Grid:
    """All combinations of the values of the axes, each with the options of `base`.

    Names and values are those of the options of `tsformer export`. A text may contain the
    placeholder `{OPTION}` for the value of another option:
    `checkpoint = "motion-{attn}.safetensors"`.

    Args:
        base: Options that all cells share.
        axes: The values of each axis. The last axis varies fastest in the order of the cells.

    Raises:
        UsageError: if an option is given twice, or an axis has no value or the same value twice.
    """

    base: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.axes.items():
            if name in self.base:
                raise UsageError(f"{name} is an axis and an option of all cells", remedy="keep one")
            if not values:
                raise UsageError(f"the axis {name} has no values")
            if len(set(map(repr, values))) < len(values):
                raise UsageError(f"the axis {name} has a value twice", got=list(values))

    def cells(self) -> list[dict[str, Any]]:
        """Return for each cell its value on each axis.

        Raises:
            UsageError: if there are more than `MOST_CELLS`, which is counted before any is made.
        """
        count = math.prod(map(len, self.axes.values()))
        if count > MOST_CELLS:
            raise UsageError(
                "the grid has too many cells",
                got=f"{count:,}",
                expected=f"at most {MOST_CELLS:,}",
                remedy="sweep a part of it at a time",
            )
        points = itertools.product(*self.axes.values())
        return [dict(zip(self.axes, point, strict=True)) for point in points]

    def options(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options of one cell, with placeholders replaced.

        Raises:
            UsageError: if a placeholder names an option that is not given.
        """
        options = {**self.base, **cell}
        return {name: _fill_placeholders(value, options) for name, value in options.items()}

    def with_flags(self, flags: Mapping[str, Sequence[str]]) -> Grid:
        """Return this grid with options of the command line, which replace options of this grid.

        An option with several values (`64,128`, or the option given twice) becomes an axis.
        """
        base = {name: value for name, value in self.base.items() if name not in flags}
        axes = {name: values for name, values in self.axes.items() if name not in flags}
        for name, texts in flags.items():
            if name in _NEVER_SPLIT:
                base[name] = list(texts) if len(texts) > 1 else texts[0]
                continue
            values = [value.strip() for text in texts for value in text.split(",")]
            if len(values) > 1:
                axes[name] = values
            else:
                base[name] = values[0]
        return Grid(base, axes)


def read_grid(path: Path) -> Grid:
    """Read a grid from TOML: a table `[base]` of options, and a table `[axes]` of lists of values.

    Raises:
        GridError: if the file cannot be read, or does not have this form.
    """
    content = read_toml(path, GridError)
    if not any(content.values()):
        raise GridError(
            f"{path} is empty",
            expected="a table [base] of export options and a table [axes] of lists",
            remedy="omit FILE to export the defaults",
        )
    for name, table in content.items():
        if name not in TABLES or not isinstance(table, dict):
            raise GridError(
                f"{path}: {name}",
                expected="a table [base] of export options and a table [axes] of lists",
                remedy=f"did you mean [{closest}]?" if (closest := nearest(name, TABLES)) else None,
            )
    for name, values in content.get("axes", {}).items():
        if not isinstance(values, list):
            raise GridError(
                f"{path}: {name} in [axes]",
                got=repr(values),
                expected="a list of values",
                remedy="move an option that all cells share to [base]",
            )
    return Grid(_with_hyphens(content.get("base", {})), _with_hyphens(content.get("axes", {})))


def words(options: Mapping[str, Any]) -> list[str]:
    """Return the options as arguments of a command line."""
    return [f"--{name}={text}" for name, value in options.items() for text in _texts(value)]


def name_of(cell: Mapping[str, Any]) -> str:
    """Return the name of a cell: its values, in the order of the axes."""
    return " ".join(map(str, cell.values())) or "the only cell"


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, dict):
        yield json.dumps(value)
    else:
        yield str(value)


def _fill_placeholders(value: Any, options: Mapping[str, Any]) -> Any:  # noqa: ANN401  # of TOML
    if isinstance(value, list):
        return [_fill_placeholders(item, options) for item in value]
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda found: _value_of(found[1], options), value)
    return value


def _value_of(name: str, options: Mapping[str, Any]) -> str:
    if name not in options:
        closest = nearest(name, options)
        raise UsageError(
            f"{{{name}}} stands for no option given",
            expected=f"one of {', '.join(options)}",
            remedy=f"did you mean {{{closest}}}?" if closest else None,
        )
    return str(options[name])


def _with_hyphens(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in table.items()}
