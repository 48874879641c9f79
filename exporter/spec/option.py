"""The declaration of an export option: everything that the program knows about it.

`depth: int | None = option(None, "Blocks (default 12).", model=True)` declares a field of a
dataclass; `options_of` reads the declarations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, fields, replace
from inspect import cleandoc
from typing import Any, TypeVar

from exporter.errors import UsageError
from model.config import ConfigError, check_choice

T = TypeVar("T")
_KEY = "option"


MOST_CLIPS = 4096  # of a batch: an export runs the largest


@dataclass(frozen=True)
class BatchProfile:
    """The batch sizes that an engine accepts, `min` to `max`; it is tuned for `opt`."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        whole = all(type(size) is int for size in (self.min, self.opt, self.max))
        if not whole or not 1 <= self.min <= self.opt <= self.max <= MOST_CLIPS:
            raise UsageError(
                "--dynamic-batch",
                got=f"{self.min}:{self.opt}:{self.max}",
                expected=f"1 <= MIN <= OPT <= MAX <= {MOST_CLIPS:,}",
            )

    @classmethod
    def parse(cls, text: str) -> BatchProfile:
        """Read `MIN:OPT:MAX`."""
        if not re.fullmatch(r"\d{1,9}:\d{1,9}:\d{1,9}", text):
            raise UsageError(
                "--dynamic-batch", got=repr(text), expected="MIN:OPT:MAX, as in 1:4:16"
            )
        return cls(*map(int, text.split(":")))


@dataclass(frozen=True)
class Choices:
    """The values that an option may take; `what` names them in an error."""

    what: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Option:
    """One option of an export.

    Args:
        help: The text of the command line.
        flag: The name on the command line, without dashes.
        choices: The only values allowed, of the option itself or of each entry of a tuple.
        precisions: The precisions that take the option; empty for all.
        model: Whether it is an argument of every model family.
        graph: The place in the metadata of `model.onnx`; None if the option does not decide the
            graph.
        path: Whether it names files; their content decides, not their path.
        whole: Whether a comma belongs to the value; if not, it separates the values of a sweep.
    """

    help: str
    flag: str = ""
    choices: Choices | None = None
    precisions: tuple[str, ...] = ()
    model: bool = False
    graph: int | None = None
    path: bool = False
    whole: bool = False


def option(
    default: T,
    help: str,
    *,
    flag: str = "",
    choices: Choices | None = None,
    precisions: tuple[str, ...] = (),
    model: bool = False,
    graph: int | None = None,
    path: bool = False,
    whole: bool = False,
) -> T:
    """Declare a field of a dataclass as an option; see `Option` for the arguments.

    Without `flag`, the flag is the name of the field with hyphens. Each object gets its own copy of
    a default that is a dict.
    """
    declared = Option(help, flag, choices, precisions, model, graph, path, whole)
    if isinstance(default, dict):
        return field(default_factory=lambda: copy(default), metadata={_KEY: declared})
    return field(default=default, metadata={_KEY: declared})


def options_of(spec: type[Any]) -> Mapping[str, Option]:
    """Read the options of a dataclass, by field name and in the order of the fields."""
    found: dict[str, Option] = {}
    for entry in fields(spec):
        declared: Option = entry.metadata[_KEY]
        flag = declared.flag or entry.name.replace("_", "-")
        found[entry.name] = replace(declared, flag=flag)
    return found


def check_choices(spec: object, options: Mapping[str, Option]) -> None:
    """Raise `UsageError` if an option has a value that is not among its choices."""
    try:
        for name, declared in options.items():
            value = getattr(spec, name)
            if declared.choices and value is not None:
                for each in (value,) if isinstance(value, str) else value:
                    check_choice(declared.choices.what, each, declared.choices.values)
    except ConfigError as error:
        raise UsageError(str(error)) from error


def check_precision(spec: object, options: Mapping[str, Option], precision: str) -> None:
    """Raise `UsageError` if an option is given that the precision does not take."""
    for name, declared in options.items():
        taken = declared.precisions or (precision,)
        if getattr(spec, name) and precision not in taken:
            *others, last = taken
            choice = f"{', '.join(others)} or {last}" if others else f"--precision {last}"
            raise UsageError(
                f"--{declared.flag} does not go with --precision {precision}",
                remedy=f"choose {choice}",
            )


def document(spec: type[T]) -> type[T]:
    """Add the texts of the options to the docstring of a dataclass."""
    texts = {name: " ".join(each.help.split()) for name, each in options_of(spec).items()}
    listed = [f"    {name} ({spec.__annotations__[name]}): {text}" for name, text in texts.items()]
    spec.__doc__ = "\n".join([cleandoc(spec.__doc__ or ""), "", "Args:", *listed])
    return spec
