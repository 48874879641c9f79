"""A list of clips with their labels: CSV, or text with a clip and its labels on each line."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from exporter.errors import UsageError
from exporter.files.text import require_regular
from exporter.inputs.class_names import place_classes
from model.task import TaskName

# What the first line that is no comment calls its columns, if it is no clip.
_HEADS = ("path", "clip", "video", "file", "filename", "video_path", "filepath", "video_name")
_LABEL_HEADS = ("label", "labels", "class", "class_name", "category")
Target = tuple[float, ...]


def read_clip_list(
    path: Path, task: TaskName, outputs: int, labels: Sequence[str] | None, option: str
) -> list[tuple[Path, Target]]:
    """Read the clips of a list, and the target of each.

    A line is `clip label`, separated by a comma, a semicolon, a tab or spaces. A label is an index
    or a name. Several labels are several columns, or one with `|` between them. Values are numbers.
    A path is absolute, or relative to the folder of the list, or to the current folder.

    Raises:
        UsageError: if the list cannot be read, a line is not complete, or a label is no class.
    """
    rows = list(_rows(path, option))
    if not rows:
        raise UsageError(f"{option}: no clips in {path}", expected="lines `path label`")
    clips = [find_clip(clip, path.parent, option) for _, clip, _ in rows]
    if task == "regression":
        targets = [_values(words, outputs, f"{path}:{number}", option) for number, _, words in rows]
        return list(zip(clips, targets, strict=True))
    for number, _, words in rows:
        if task == "single-label" and len(words) != 1:
            where = f"{option}: {path}:{number} must have one label"
            remedy = "keep the columns of path and label; several labels need --task multi-label"
            raise UsageError(where, got=", ".join(words)[:80] or "none", remedy=remedy)
    names = list(dict.fromkeys(word for _, _, words in rows for word in words))
    places = place_classes(names, labels, outputs, option, "label")
    targets = [tuple(sorted({places[word] for word in words})) for _, _, words in rows]
    return list(zip(clips, targets, strict=True))


def listed_clips(path: Path) -> list[Path]:
    """Return the clips of a list alone. Raises `UsageError` as `read_clip_list` does."""
    return [find_clip(clip, path.parent, "clips") for _, clip, _ in _rows(path, "clips")]


def find_clip(written: str, folder: Path, option: str) -> Path:
    """Return the path of a clip of a list: absolute, or relative to its folder or to the current.

    Raises:
        UsageError: if two different files have this path.
    """
    path = Path(written)
    if path.is_absolute():
        return path
    found = [place for place in (folder / path, path) if _is_there(place)]
    if len(found) == 2 and not found[0].samefile(found[1]):
        raise UsageError(
            f"{option}: the clip {written} can be read in two ways",
            got=f"{found[0].resolve()} (beside the list), or {found[1].resolve()} (in the current "
            "folder)",
            remedy="write absolute paths",
        )
    return found[0] if found else folder / path


def _rows(path: Path, option: str) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the number of a line, its clip, and its labels."""
    try:
        require_regular(path)
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() cuts names too
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"{option}: {path} cannot be read: {reason}") from error
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    used = [(number, line) for number, line in numbered if not line.lstrip().startswith("#")]
    separator = _separator(path, [line for _, line in used])
    for place, (number, line) in enumerate(used):
        if separator:
            columns = _split_cells(line, separator, f"{option}: {path}:{number}")
        else:
            columns = _split_at_spaces(line, path.parent)
        if place == 0 and _is_head(columns, f"{option}: {path}"):
            continue
        words = [word.strip() for column in columns[1:] for word in column.split("|")]
        words = [word for word in words if word]
        if not columns[0] or len(columns) < 2:
            raise UsageError(f"{option}: {path}:{number} has no label", got=repr(line[:80]))
        yield number, columns[0], words


def _is_head(columns: Sequence[str], where: str) -> bool:
    """Whether a line names the columns; raise `UsageError` if the first one is not the clip."""
    names = [column.lower() for column in columns]
    if names[0] in _HEADS:
        return True
    both = any(name in _HEADS for name in names) and any(name in _LABEL_HEADS for name in names)
    if both or names[0] in _LABEL_HEADS:
        expected = "the path of the clip first, then its label"
        raise UsageError(f"{where}: its columns", got=", ".join(columns)[:80], expected=expected)
    return False


def _separator(path: Path, used: Sequence[str]) -> str:
    """Find what separates columns: the first of tab, semicolon, comma in every line, or spaces.

    SlowFast and TimeSformer name their lists `test.csv`, and separate the columns by a space.
    """
    for separator in "\t;,":
        if used and all(separator in line for line in used):
            return separator
    return "," if path.suffix.lower() == ".csv" and any("," in line for line in used) else ""


def _split_cells(line: str, separator: str, where: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator))]
    except csv.Error as error:  # a cell of more than 131,072 characters
        raise UsageError(where, got=repr(line[:80]), expected="a line of CSV") from error


def _split_at_spaces(line: str, folder: Path) -> list[str]:
    """Split `path label label`; a path may hold spaces, so the longest one that exists is taken."""
    words = line.split()
    for count in range(len(words) - 1, 0, -1):
        clip = " ".join(words[:count])
        if count > 1 and (_is_there(folder / clip) or _is_there(Path(clip))):
            return [clip, *words[count:]]
    return words


def _is_there(path: Path) -> bool:
    """Whether a path exists; words of a line can be longer than a path can be."""
    try:
        return path.exists()
    except OSError:
        return False


def _values(words: Sequence[str], outputs: int, where: str, option: str) -> Target:
    try:
        values = tuple(map(float, words))
    except ValueError:
        values = ()
    if len(values) != outputs or not all(map(math.isfinite, values)):
        expected = f"{outputs} number{'s' if outputs > 1 else ''}"
        raise UsageError(f"{option}: {where}", got=" ".join(words)[:80], expected=expected)
    return values


def one_or_more(given: str | Path | Iterable[str | Path]) -> Iterable[str | Path]:
    """Take one path for a list of one: as an iterable, a text would be a path for each letter.

    Raises:
        UsageError: if it is neither a path nor an iterable.
    """
    if isinstance(given, (str, Path)):
        return (given,)
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise UsageError("clips", got=repr(given), expected="a path, or several")
    return given
