"""The model card of an export: README.md, made from its manifest, its report and its machines.

People edit the card on the hub, so it is not among the files whose hashes the manifest holds. It is
written anew while it has the line `MARK`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.errors import ManifestError
from exporter.files.machines import Machines, present_rows, rows_of
from exporter.files.manifest import read_manifest
from exporter.files.place import whole_file
from exporter.files.text import read_json
from exporter.predict.card import Card
from exporter.report.pages import write_page
from exporter.report.words import EXPLANATION, engine_line, headline
from exporter.results import Parity, Report, is_eager_pass

MODEL_CARD = "README.md"
MARK = "<!-- Written by tsformer. Without this line push leaves your text as it is. -->"
_SHOWN_CLASSES = 50
_DOWNLOAD = "snapshot_download"
_TASKS = {
    "single-label": "One class is right: the softmax of the logits are the scores",
    "multi-label": "Labels are independent: the sigmoid of each logit is its score",
    "regression": "The logits are values, and no scores of classes",
}


def write_model_card(
    directory: Path, repository: str | None = None, revision: str | None = None
) -> bool:
    """Write README.md of an export, unless it is text of the user; return whether it was written.

    Args:
        directory: An export.
        repository: The repository of the hub that the card belongs to, if it is known.
        revision: Its branch, unless that is main.

    Raises:
        NoExportError: if the directory is not an export.
        ManifestError: if the manifest or the report is missing or damaged.
        OutputError: if the card cannot be written.
    """
    manifest = read_manifest(directory, unchanged=False, needs=("report.json",))
    path = directory / MODEL_CARD
    try:
        if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
            return False
        report = read_json(directory / "report.json")
        card = Card.of(directory, manifest)
        facts = _facts(manifest, report, card, _place(repository, revision))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"{directory} cannot be understood: {error!r}"
        raise ManifestError(what, remedy="export it again") from error
    with whole_file(path) as partial:
        write_page(partial, "model_card.md.jinja", mark=MARK, **facts)
    return True


def _facts(
    manifest: Mapping[str, Any], report: Mapping[str, Any], card: Card, place: str
) -> dict[str, Any]:
    """Collect what the card shows; the template escapes it."""
    spec, engine = manifest["spec"], manifest["engine"]
    parity = rows_of(Parity, present_rows(report, manifest, "parity"))
    shown = Report(spec, manifest["environment"], (), parity, (), engine)
    commit = spec.get("checkpoint_commit")
    task = [_TASKS[card.task]] if card.takes_clips and card.has_logits else []
    return {
        "base_model": str(spec["checkpoint"]).removesuffix(f"@{commit}") if commit else "",
        "classifies": bool(task) and card.task != "regression",
        "title": _title(manifest, card),
        "verdict": card.verdict,
        "headline": headline(shown),
        "tensors": [("input", each) for each in manifest["inputs"]]
        + [("output", each) for each in manifest["outputs"]],
        "facts": [*task, *map(str, spec.get("notes") or ())],
        "clip": _clip(manifest, card) if card.takes_clips else [],
        "labels": card.labels if card.named else (),
        "shown": _SHOWN_CLASSES,
        "rows": list(_rows(parity, manifest["environment"], card.machines)),
        "explanation": EXPLANATION,
        "lines": [engine_line(shown), *card.machines.notes],
        "extra": ",hub" if _DOWNLOAD in place else "",
        "program": _program(manifest, card, place),
    }


def _title(manifest: Mapping[str, Any], card: Card) -> str:
    family = manifest["model"]["family"]
    if not card.takes_clips:
        return f"A {family} in {card.precision}"
    size = card.config
    return f"{family}: {size.frames} frames of {size.height} x {size.width}, {card.precision}"


def _clip(manifest: Mapping[str, Any], card: Card) -> list[str]:
    """Say how a file becomes the input, in sentences."""
    how = card.preprocessing
    order = manifest["preprocessing"]["layout"]
    scale = f"channels in the order {order}, (pixel / 255 - mean) / std"
    where = " inside the graph" if how.embedded else ""
    return [*how.sentences, f"{scale}{where}, mean {list(how.mean)}, std {list(how.std)}"]


def _rows(
    parity: Sequence[Parity], environment: Mapping[str, Any], machines: Machines
) -> Iterator[tuple[str, Parity]]:
    """Yield the judged rows of the export and of other machines, each with its machine."""
    here = " and ".join(filter(None, (environment.get("cpu"), environment.get("gpu"))))
    yield from ((f"export: {here}", row) for row in parity if not is_eager_pass(row))
    for machine in machines.found:
        yield from ((machine.name, row) for row in machine.parity if not is_eager_pass(row))


def _place(repository: str | None, revision: str | None) -> str:
    """Give the Python that names the directory of the export, or downloads it."""
    if repository is None:
        return '"DIRECTORY"'
    names = json.dumps(repository) + (f", revision={json.dumps(revision)}" if revision else "")
    return f"{_DOWNLOAD}({names})"


def _program(manifest: Mapping[str, Any], card: Card, place: str) -> str:
    """Write the lines of Python that run the export; foreign names are strings of JSON in them."""
    first = [f"from huggingface_hub import {_DOWNLOAD}"] if _DOWNLOAD in place else []
    if not card.takes_clips:
        shapes = {each["name"]: (each["shape"], each["dtype"]) for each in manifest["inputs"]}
        given = ", ".join(
            f"{json.dumps(name)}: np.zeros({[n if isinstance(n, int) else 1 for n in shape]}, "
            f"{json.dumps(kind)})"
            for name, (shape, kind) in shapes.items()
        )
        imports = ["import numpy as np", "from onnxruntime import InferenceSession"]
        session = f'InferenceSession({place} + "/model.onnx")'
        return "\n".join([*first, *imports, f"print({session}.run(None, {{{given}}}))"])
    first.append("from exporter.predict import Predictor")
    answer = 'next(predictor.predict(["clip.mp4"]))'
    if not card.has_logits:
        first.append("from exporter.predict.features import describe")
        name = json.dumps(next(iter(card.outputs)))
        answer = f'next(describe(predictor, ["clip.mp4"])).outputs[{name}]'
    return "\n".join([*first, f"with Predictor({place}) as predictor:", f"    print({answer})"])
