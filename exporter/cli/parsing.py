"""Options that several commands take, and the conversion of their text to values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

from cyclopts import Parameter

from exporter.errors import UsageError
from exporter.files.text import parse_nested, parse_text
from exporter.spec import LOWER_PRECISIONS, OPTIONS, BatchProfile, ExportSpec
from exporter.spec.checks import check_count

T = TypeVar("T")


def _resolution(_type: Any, tokens: Sequence[Any]) -> tuple[int, int]:  # noqa: ANN401
    text = tokens[0].value
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise ValueError(f"got {text!r}, expected 512 or 224x384 (height x width)")
    return int(sides[0]), int(sides[-1])


def _json_object(_type: Any, tokens: Sequence[Any]) -> dict[str, Any]:  # noqa: ANN401
    return _read_config(tokens[0].value)


def _read_config(text: str) -> dict[str, Any]:
    """Read a JSON object from a file, or from the argument itself."""
    try:
        given = text.lstrip().startswith("{")
        config = parse_nested(text, json.loads) if given else parse_text(Path(text), json.loads)
    except OSError as error:
        raise ValueError(f"cannot read {text}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{text} is not JSON: {error}") from error
    if isinstance(config, dict):
        config = config.get("config", config)
    if not isinstance(config, dict):
        raise ValueError(f"{text} is not a JSON object")  # noqa: TRY004  # cyclopts shows these
    return config


def words_of(text: str) -> list[str]:
    """Split a text at its commas, without the spaces around the words."""
    return [word.strip() for word in text.split(",")]


def _targets(_type: Any, tokens: Sequence[Any]) -> tuple[str, ...]:  # noqa: ANN401
    text = ",".join(token.value for token in tokens)
    names = tuple(word.lower() for word in words_of(text) if word)
    if not names:
        raise ValueError(f"got {text!r}, expected names, separated by commas")
    return names


def _profile(_type: Any, tokens: Sequence[Any]) -> BatchProfile:  # noqa: ANN401
    return BatchProfile.parse(tokens[0].value)


def _whole(_type: Any, tokens: Sequence[Any]) -> int:  # noqa: ANN401
    (token,) = tokens
    try:
        return int(token.value)  # cyclopts itself would round 1.5
    except ValueError:
        where = "" if token.source == "cli" else f" in {token.source}"
        raise ValueError(f"got {token.value!r}{where}, expected a whole number") from None


def _share(_type: Any, tokens: Sequence[Any]) -> float:  # noqa: ANN401
    text = tokens[0].value.strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:  # refuses NaN too
        raise ValueError(f"got {text!r}, expected a share as 0.95 or 95%")
    return share


def jobs_of(jobs: int | None) -> int:
    """Give the number of processes that read clips: as wanted, or one for each core.

    Raises:
        UsageError: if it is less than 1, or more than can be started.
    """
    from exporter.machine.cores import usable_cores

    check_count("--jobs", jobs)
    return jobs or usable_cores() or 1


def check_lower_precision(precision: str) -> None:
    """Raise `UsageError` unless the precision is below float32."""
    if precision not in LOWER_PRECISIONS:
        expected = f"one of {', '.join(LOWER_PRECISIONS)}"
        raise UsageError("--precision", got=precision, expected=expected)


Flag = Annotated[bool, Parameter(negative="")]
Whole = Annotated[int, Parameter(converter=_whole, n_tokens=1)]
WholeOrNone = Annotated[int | None, Parameter(converter=_whole, n_tokens=1)]
Share = Annotated[float, Parameter(converter=_share, n_tokens=1)]
ShareOrNone = Annotated[float | None, Parameter(converter=_share, n_tokens=1)]
Json = Annotated[bool, Parameter(name="--json", negative="")]
Output = Annotated[Path | None, Parameter(alias="-o")]
Outputs = Annotated[list[str] | None, Parameter(alias="-o", consume_multiple=False, negative="")]
Paths = Annotated[list[Path] | None, Parameter(consume_multiple=False, negative="")]
Words = Annotated[list[str] | None, Parameter(consume_multiple=False, negative="")]
Resolution = Annotated[
    tuple[int, int] | None, Parameter(converter=_resolution, n_tokens=1, negative="")
]
JsonObject = Annotated[
    dict[str, Any] | None, Parameter(converter=_json_object, n_tokens=1, accepts_keys=False)
]
Batches = Annotated[
    BatchProfile | None, Parameter(converter=_profile, n_tokens=1, accepts_keys=False)
]
Targets = Annotated[tuple[str, ...], Parameter(converter=_targets, n_tokens=1, negative="")]

# The type on the command line for each type of a field of `ExportSpec`.
_FORMS: dict[Any, Any] = {
    int: Whole,
    int | None: WholeOrNone,
    bool: Flag,
    tuple[int, int] | None: Resolution,
    BatchProfile | None: Batches,
    Mapping[str, Any]: JsonObject,
    tuple[Path, ...]: Paths,
    tuple[str, ...]: Words,
}
_FORMS_BY_NAME = {
    "outputs": Targets,  # separated by commas
    "precision": str | None,  # a recipe may give it
    "runtimes": Targets,  # separated by commas
    "targets": Targets,
}


@dataclass_transform(kw_only_default=True, frozen_default=True)
def with_options_of_spec(after: Mapping[str, str]) -> Callable[[type[T]], type[T]]:
    """Make a dataclass of the options of `ExportSpec` and of those that a class adds.

    Args:
        after: Added option -> the option that it follows; the others come last.
    """

    def make(added: type[T]) -> type[T]:
        forms = get_type_hints(added, include_extras=True)
        order = list(OPTIONS)
        for name in forms:
            order.insert(order.index(after[name]) + 1 if name in after else len(order), name)
        for name in OPTIONS:
            forms[name], default = _form_of(name)
            setattr(added, name, default)
        added.__annotations__ = {name: forms[name] for name in order}
        return dataclass(frozen=True, kw_only=True)(added)

    return make


def _form_of(name: str) -> tuple[Any, object]:
    """Give the type and the default of an option of `ExportSpec`: None if the type allows it."""
    declared, kind = OPTIONS[name], get_type_hints(ExportSpec)[name]
    form = _FORMS_BY_NAME.get(name) or _FORMS.get(kind, kind)
    text = " ".join(declared.help.split())
    if form in (Paths, Words):
        text = f"{text.removesuffix('.')}; may be given several times."
    plain = get_args(form)[0] if hasattr(form, "__metadata__") else form
    default = None if type(None) in get_args(plain) else getattr(ExportSpec, name)
    return Annotated[form, Parameter(name=f"--{declared.flag}", help=text)], default
