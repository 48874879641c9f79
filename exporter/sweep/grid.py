"""What a sweep exports: options that all cells share, axes of values, and every cell of them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exporter.errors import GridError, UsageError
from exporter.files.toml import read_toml
from exporter.spec import OPTIONS
from model.config import nearest

TABLES = ("base", "axes")
# An option of `export` that decides the spec and is no field of it.
RECIPE = "recipe"
# Options for which a comma makes no axis: it belongs to the value, or a cell takes several.
_WHOLE = {declared.flag for declared in OPTIONS.values() if declared.whole} | {RECIPE}
_PLACE = re.compile(r"\{([a-z][a-z0-9-]*)\}")


@dataclass(frozen=True)
class Grid:
    """Every combination of the axes' values, each with the options of `base`.

    Names and values are those of `tsformer export`'s options. A text may hold `{OPTION}`, which is
    that option's value: `checkpoint = "motion-{attn}.safetensors"`.

    Args:
        base: Options that all cells share.
        axes: The values of each axis, in the order of the cells: the last varies fastest.

    Raises:
        UsageError: if an option is given twice, or an axis has no value or one of them twice.
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
        """The value of each axis, for every cell."""
        points = itertools.product(*self.axes.values())
        return [dict(zip(self.axes, point, strict=True)) for point in points]

    def options(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """All options of one cell.

        Raises:
            UsageError: if a text asks for the value of an option that is not there.
        """
        together = {**self.base, **cell}
        return {name: _filled(value, together) for name, value in together.items()}

    def with_flags(self, flags: Mapping[str, Sequence[str]]) -> Grid:
        """The same with options of the command line, which replace those of the same name.

        Several values make an axis: `64,128`, or the option given twice.
        """
        base = {name: value for name, value in self.base.items() if name not in flags}
        axes = {name: values for name, values in self.axes.items() if name not in flags}
        for name, texts in flags.items():
            if name in _WHOLE:
                base[name] = list(texts) if len(texts) > 1 else texts[0]
                continue
            values = [value.strip() for text in texts for value in text.split(",")]
            if len(values) > 1:
                axes[name] = values
            else:
                base[name] = values[0]
        return Grid(base, axes)


def read_grid(path: Path) -> Grid:
    """Read a grid from TOML: a table `[base]` of options, and `[axes]` of lists of values.

    Raises:
        GridError: if the file cannot be read, or is not of this form.
    """
    content = read_toml(path, GridError)
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
                remedy="an option that all cells share belongs into [base]",
            )
    return Grid(*({_hyphened(k): v for k, v in content.get(t, {}).items()} for t in TABLES))


def words(options: Mapping[str, Any]) -> list[str]:
    """The options as a command line has them."""
    return [f"--{name}={text}" for name, value in options.items() for text in _texts(value)]


def name_of(cell: Mapping[str, Any]) -> str:
    """A cell in words: its values, in the order of the axes."""
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


def _filled(value: Any, options: Mapping[str, Any]) -> Any:  # noqa: ANN401  # a value of TOML
    if isinstance(value, list):
        return [_filled(item, options) for item in value]
    if isinstance(value, str):
        return _PLACE.sub(lambda found: _value_of(found[1], options), value)
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


def _hyphened(name: str) -> str:
    return name.replace("_", "-")
