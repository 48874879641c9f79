"""The types of the values of a spec: users write specs by hand, in Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from exporter.errors import UsageError
from exporter.spec.option import BatchProfile

_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    NoneType: "None",
    BatchProfile: "a BatchProfile",
    Mapping[str, Any]: "a mapping",
    tuple[int, int]: "(height, width)",
    tuple[str, ...]: "a tuple of texts",
    tuple[Path, ...]: "a tuple of paths",
}


@cache
def types_of(owner: type) -> Mapping[str, Any]:
    """Return the declared type of every field of a dataclass."""
    return get_type_hints(owner)


def as_declared(name: str, value: object, declared: object) -> object:
    """Return a value in its declared type: a text is also a path, and one value also several.

    Raises:
        UsageError: if it has another type.
    """
    kinds = get_args(declared) if isinstance(declared, UnionType) else (declared,)
    for kind in kinds:
        taken = _converted(value, kind)
        if _fits(taken, kind):
            return taken
    raise UsageError(name, got=repr(value), expected=" or ".join(_WORDS[kind] for kind in kinds))


def _converted(value: object, kind: Any) -> object:  # noqa: ANN401  # a type or a generic alias
    if kind is Path and isinstance(value, str):
        return Path(value)
    if get_args(kind)[1:] == (...,):
        several = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
        values = value if isinstance(value, Iterable) and several else (value,)
        return tuple(_converted(each, get_args(kind)[0]) for each in values)
    return str(value) if kind is str and isinstance(value, Path) else value


def _fits(value: object, kind: Any) -> bool:  # noqa: ANN401  # a type or a generic alias
    if isinstance(value, bool):
        return kind is bool
    if not isinstance(value, (int, float) if kind is float else get_origin(kind) or kind):
        return False
    if not isinstance(value, tuple):
        return True
    first, second = get_args(kind)
    alike = second is ... or len(value) == 2
    return alike and all(_fits(each, first) for each in value)
