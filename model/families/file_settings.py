"""Read what a file tells beside its weights: `cfg`, `hyper_parameters`, `args`, `meta`.

Programs write their settings as a mapping, as YAML text (SlowFast) or as Python text (OpenMMLab).
A setting is taken by its name, wherever it is, if all its places agree.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from model.config import image_sides
from model.families.base import Told
from model.task import LOSSES, PROBLEM_TYPES, TaskName
from model.weights.file import WeightsFile
from model.weights.flatten import flatten

# Our name -> names of the setting, without regard to case.
_WHOLE_NUMBERS = {
    "frames": ("num_frames", "n_frames", "nframes", "frames", "seg_num"),
    "heads": ("num_heads", "n_heads", "heads", "num_attention_heads"),
    "dim_head": ("dim_head",),
    "num_classes": ("num_classes", "num_labels", "n_classes", "nb_classes"),
}
_SIZES = ("img_size", "image_size", "input_size", "train_crop_size")
_MEANS = {"mean": "std", "image_mean": "image_std", "pixel_mean": "pixel_std"}
_LABELS = (
    "labels", "class_names", "classes", "label_names", "id2label", "label2id", "idx2label",
    "class_to_idx", "idx_to_class",
)  # fmt: skip
_NORM_EPS = ("layer_norm_eps", "norm_eps")
# mmaction2 makes the norm after its last block by this, and the others with 1e-6 whatever it says.
_LAST_NORM = re.compile(r"(^|\.)backbone\.norm_cfg$")
_ACTIVATIONS = ("hidden_act",)
# Parts of a file that describe another model than the one of the clip.
_OTHER_MODEL = re.compile(
    r"(?i)(^|[._])(mvit|text|txt|lang|language|\w*bert|audio|decoder|teacher)([._]|$)"
)
_TASKS = ("problem_type", "loss_func", "type", "multi_class")  # `type` of mmaction2's loss
_TRAINING = re.compile(
    r"(?i)(^|\.)(optimizer\w*|lr_schedulers?|callbacks|loops|scheduler\w*)(\.|$)"
)
_NO_LITERAL = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError)
_LINE = re.compile(r"( *)(- )?(?:([\w.]+):)? *(.*?) *$")


class Settings:
    """The settings of a file, by the path of each.

    Args:
        weights: The file.
    """

    def __init__(self, weights: WeightsFile) -> None:
        with warnings.catch_warnings(action="ignore"):  # of Python, about texts that are none
            self.values = dict(_read_texts(weights.settings))

    def told(self) -> dict[str, Told]:
        """Return the configuration values that the settings tell."""
        told = {}
        for name, names in _WHOLE_NUMBERS.items():
            found = [entry for entry in self._find_own(names) if _is_size(entry.value)]
            told |= _unless_ambiguous(name, found)
        rates = [entry for entry in self._find_own(_NORM_EPS) if type(entry.value) is float]
        kinds = [entry for entry in self._find_own(_ACTIVATIONS) if isinstance(entry.value, str)]
        last = [entry for entry in self._find(("eps",)) if _is_of_last_norm(entry)]
        told |= _unless_ambiguous("last_norm_eps", last)
        told |= _unless_ambiguous("norm_eps", rates) | _unless_ambiguous("hidden_act", kinds)
        sides: list[Told] = []
        for entry in self._find_own(_SIZES):
            height, width = image_sides(entry.value)
            if _is_size(height) and _is_size(width):
                sides.append(Told((height, width), entry.where))
        for entry in _unless_ambiguous("size", sides).values():
            told["height"] = Told(entry.value[0], entry.where)
            told["width"] = Told(entry.value[1], entry.where)
        return told

    def preprocessing(self, channels: int) -> Told | None:
        """Return mean and deviation of the pixels, as parts of the largest value."""
        found = []
        for mean_name, std_name in _MEANS.items():
            for mean in self._find((mean_name,)):
                parent = mean.where.rpartition(".")[0]
                for std in self._find((std_name,)):
                    if std.where.rpartition(".")[0] == parent:
                        found += _scale(mean, std, channels)
        return next(iter(_unless_ambiguous("preprocessing", found).values()), None)

    def labels(self, classes: int) -> Told | None:
        """Return the names of the classes, if there is one for each class."""
        found = [
            Told(names, entry.where)
            for entry in self._find(_LABELS)
            if len(names := _names_of(entry.value)) == classes
        ]
        return next(iter(_unless_ambiguous("labels", found).values()), None)

    def other_labels(self) -> tuple[str, ...]:
        """Return a note on each list of class names, where none of them is taken."""
        return tuple(
            f"class names of {entry.where} not taken: its {len(entry.value)} entries are not one "
            "for each class, or other places differ"
            for entry in self._find(_LABELS)
            if isinstance(entry.value, (list, Mapping))
        )

    def task(self, classes: int) -> Told | None:
        """Return what the logits mean, by the loss of the training; None for one right class."""
        found = [
            Told(task, entry.where)
            for entry in self._find(_TASKS)
            if (task := _task_of(entry)) is not None
        ]
        told = _unless_ambiguous("task", found).get("task")
        return told if classes and told and told.value != "single-label" else None

    def number(self, names: tuple[str, ...]) -> Told | None:
        """Return the whole number with one of the names, if all its places agree."""
        found = [entry for entry in self._find(names) if _is_size(entry.value)]
        return next(iter(_unless_ambiguous("number", found).values()), None)

    def text(self, end: str) -> Told | None:
        """Return the text whose path ends like this, without regard to case."""
        for path, value in self.values.items():
            if isinstance(value, str) and f".{path.lower()}".endswith(f".{end}"):
                return Told(value, path)
        return None

    def value(self, name: str) -> object:
        """Return the value of a setting, whatever its type; None if its places do not agree."""
        found = _unless_ambiguous(name, self._find((name,)))
        return found[name].value if found else None

    def _find_own(self, names: tuple[str, ...]) -> list[Told]:
        """Find the settings with one of the names, except those of another model."""
        return [entry for entry in self._find(names) if not _OTHER_MODEL.search(entry.where)]

    def _find(self, names: tuple[str, ...]) -> list[Told]:
        """Find the settings with one of the names; entries of a mapping are collected."""
        found: dict[str, Any] = {}
        for path, value in self.values.items():
            parts = path.split(".")
            at = next((i for i, part in enumerate(parts) if part.lower() in names), len(parts))
            if at == len(parts) - 1:
                found[path] = value
            elif at < len(parts):  # the name of an entry may contain dots
                entries = found.setdefault(".".join(parts[: at + 1]), {})
                if isinstance(entries, dict):
                    entries[".".join(parts[at + 1 :])] = value
        return [Told(value, path, firm=True) for path, value in found.items()]


def _unless_ambiguous(name: str, found: list[Told]) -> dict[str, Told]:
    agree = found and all(entry.value == found[0].value for entry in found)
    return {name: found[0]} if agree else {}


def _task_of(entry: Told) -> TaskName | None:
    """Return the task that a problem type, a loss or mmaction2's `multi_class` stands for."""
    if entry.value is True:
        return "multi-label"
    name = str(entry.value)
    return PROBLEM_TYPES.get(name) or LOSSES.get(name.lower())


def _is_of_last_norm(entry: Told) -> bool:
    own = _LAST_NORM.search(entry.where.rpartition(".")[0])
    return bool(own) and type(entry.value) is float


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0


def _scale(mean: Told, std: Told, channels: int) -> list[Told]:
    values = [mean.value, std.value]
    for side in values:
        numbers = isinstance(side, list) and len(side) == channels
        if not numbers or not all(type(value) in (int, float) for value in side):
            return []
    # A mean or a deviation above 2 is one of pixels up to 255.
    unit = 255.0 if max(map(abs, values[0] + values[1])) > 2 else 1.0
    scaled = {
        name: [value / unit for value in side]
        for name, side in zip(("mean", "std"), values, strict=True)
    }
    if not all(value > 0 for value in scaled["std"]):
        return []
    return [Told(scaled, f"{mean.where} and {std.where}")]


def _names_of(value: object) -> list[str]:
    """Return class names from a list, from `{number: name}` or from `{name: number}`."""
    if isinstance(value, list):
        return [str(name) for name in value]
    if not isinstance(value, Mapping):
        return []
    pairs = dict(value)
    if all(type(number) is int for number in pairs.values()):
        pairs = {number: name for name, number in pairs.items()}
    try:
        numbered = {int(number): str(name) for number, name in pairs.items()}
    except ValueError:
        return []
    if sorted(numbered) != list(range(len(pairs))):
        return []
    return [numbered[number] for number in range(len(pairs))]


def _read_texts(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for path, value in settings.items():
        if _TRAINING.search(path):
            continue
        if isinstance(value, str) and value.lstrip().startswith("{"):
            with contextlib.suppress(ValueError, RecursionError):
                for inner, entry in flatten(json.loads(value)).settings.items():
                    yield f"{path}.{inner}", entry
                continue
        if not isinstance(value, str) or "\n" not in value:
            yield path, value
            continue
        yield from _read_python(path, value) or _read_yaml(path, value)


def _read_python(path: str, text: str) -> list[tuple[str, Any]]:
    """Read the literals of assignments and keywords of Python text, which is never run."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except _NO_LITERAL:
        return []
    found = []
    inside: dict[int, str] = {}  # the names around an expression
    for number, node in enumerate(nodes):
        around = inside.get(id(node), "")
        where = f"{path}.{number}{around if _LAST_NORM.search(around) else ''}"
        pairs: list[tuple[object, ast.expr | None]] = []
        if isinstance(node, ast.Call):
            pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            pairs = [(node.targets[0].id, node.value)]
        elif isinstance(node, ast.Dict):
            keys = (key.value if isinstance(key, ast.Constant) else None for key in node.keys)
            pairs = list(zip(keys, node.values, strict=True))
        for name, expression in pairs:
            inside[id(expression)] = f"{around}.{name}"
            with contextlib.suppress(*_NO_LITERAL):
                value = ast.literal_eval(expression) if name and expression else None
                value = list(value) if isinstance(value, tuple) else value
                found.append((f"{where}.{name}", value))
    return found


def _read_yaml(path: str, text: str) -> Iterator[tuple[str, Any]]:
    """Read the scalars and lists of plain YAML, as SlowFast writes it."""
    parents: list[tuple[int, str]] = []
    lists: dict[str, list[Any]] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        indent, dash, name, rest = len(match[1]), match[2], match[3], match[4]
        while parents and parents[-1][0] >= indent + bool(dash):
            parents.pop()
        where = ".".join([path, *(parent for _, parent in parents)])
        if dash and not name:
            lists.setdefault(where, []).append(_scalar(rest))
        elif name and rest:
            yield f"{where}.{name}", _scalar(rest)
        elif name:
            parents.append((indent, name))
    yield from lists.items()


def _scalar(text: str) -> Any:  # noqa: ANN401
    try:
        return ast.literal_eval(text)
    except _NO_LITERAL:
        return text
