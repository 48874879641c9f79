"""Names of classes -> places of logits: by number, or by the labels of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exporter.errors import UsageError
from model.config import nearest


def place_classes(
    names: Sequence[str],
    labels: Sequence[str] | None,
    outputs: int,
    option: str,
    what: str,
    *,
    whole: bool = False,
) -> dict[str, int]:
    """Map each class to the index of its logit.

    A number is an index, and any other name is matched with the labels of the model, where `_` and
    a space are the same. Names that can be read in both ways must give the same indices. A model
    without labels takes names that are no numbers in their order, if they are all its classes.

    Args:
        names: The classes of a dataset, each once.
        labels: The labels of the model, if known.
        outputs: The number of logits.
        option: What names the dataset in messages.
        what: What holds the name of a class in the dataset, in messages.
        whole: Take the order of names where there are no labels.

    Raises:
        UsageError: if a name is no class of the model, or its two readings differ.
    """
    numbers = _by_number(names, outputs)
    by_name = _by_label(names, labels or (), option)
    if numbers and len(by_name) == len(names) and numbers != by_name:
        name = next(name for name in names if numbers[name] != by_name[name])
        assert labels is not None
        raise UsageError(
            f"{option}: {what} {name} can be read in two ways",
            got=f"index {numbers[name]} (the class {labels[numbers[name]]!r}), or the label "
            f"{name!r} (index {by_name[name]})",
            remedy="give a list with lines `path index`, or rename them",
        )
    if len(by_name) == len(names):
        return by_name
    if numbers:
        return numbers
    if all(name.isdecimal() for name in names):
        raise UsageError(
            f"{option}: {what}s are numbers that do not fit the model",
            got=f"{min(map(float, names)):.15g} to {max(map(float, names)):.15g}",
            expected=f"indices 0 to {outputs - 1}{_counted_from_one(names, outputs)}",
        )
    if labels is None:
        return _in_order(names, outputs, option, what, whole=whole)
    _refuse_unknown(names, by_name, labels, option)
    raise AssertionError("a name is unknown")


def _by_number(names: Sequence[str], outputs: int) -> dict[str, int]:
    """Read all names as indices; empty if one is none."""
    # float takes any number of digits, and int not.
    fits = all(name.isdecimal() and float(name) < outputs for name in names)
    return {name: int(float(name)) for name in names} if fits else {}


def _by_label(names: Sequence[str], labels: Sequence[str], option: str) -> dict[str, int]:
    """Match names with labels: exactly, else without a difference of `_` and a space."""
    exact: dict[str, list[int]] = {}
    alike: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        exact.setdefault(label, []).append(place)
        alike.setdefault(_plain(label), []).append(place)
    found = {}
    for name in names:
        places = exact.get(name) or alike.get(_plain(name), [])
        if len(places) > 1:
            both = " or ".join(f"{labels[place]!r} (index {place})" for place in places)
            raise UsageError(f"{option}: {name!r} can be read in two ways", got=both)
        if places:
            found[name] = places[0]
    return found


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _counted_from_one(names: Sequence[str], outputs: int) -> str:
    numbers = sorted({float(name) for name in names})
    if numbers[0] == 1 and numbers[-1] == outputs:
        return f"; counted from 1 they would be 1 to {outputs}: rename them from 0 on"
    return ""


def _in_order(
    names: Sequence[str], outputs: int, option: str, what: str, *, whole: bool
) -> dict[str, int]:
    if not whole:
        name = next(name for name in names if not name.isdecimal())
        expected = f"an index, 0 to {outputs - 1}"
        raise UsageError(f"{option}: the model has no labels", got=repr(name), expected=expected)
    if len(names) != outputs:
        raise UsageError(
            f"{option}: the model has no labels, so each of its classes needs a {what}",
            got=f"{len(names)} {what}s",
            expected=outputs,
            remedy="or number them from 0 on",
        )
    return {name: place for place, name in enumerate(names)}


def _refuse_unknown(
    names: Sequence[str], known: Mapping[str, int], labels: Sequence[str], option: str
) -> None:
    name = next(name for name in names if name not in known)
    if name.isdecimal() and not all(other.isdecimal() for other in names):
        other = next(other for other in names if not other.isdecimal())
        raise UsageError(
            f"{option}: some classes are numbers and others names",
            got=f"{name!r} and {other!r}",
            remedy="give numbers alone, or names alone",
        )
    closest = nearest(name, labels)
    raise UsageError(
        f"{option}: {name!r} is no class of the model",
        remedy=f"did you mean {closest!r}?" if closest else None,
    )
