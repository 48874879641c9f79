"""An export -> the models of a Triton Inference Server repository.

    NAME_onnx/        config.pbtxt, labels.txt, tsformer.json, 1/model.onnx
    NAME_trt/         the same with 1/model.plan, where there is an engine that Triton can run
    NAME_preprocess/  with --ensemble: 1/model.py, uint8 frames -> the model's input
    NAME/             with --ensemble: frames -> NAME_preprocess -> NAME_trt or NAME_onnx -> logits

`plan` is pure: it says which models there are, what is left out and why. `deploy` writes them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import ManifestError, OutputError, ParityError, TritonError, UsageError
from exporter.manifest import read_manifest
from exporter.output import ENTRY_MARK, MANIFEST, StagedEntries
from exporter.triton_config import KINDS, LABELS, TYPES, Step, TritonModel, TritonTensor, render

FILES = {  # backend: the file of the export, and what Triton looks for
    "onnxruntime": ("model.onnx", "model.onnx"),
    "tensorrt": ("model.engine", "model.plan"),
}
SUFFIXES = ("_onnx", "_trt", "_preprocess", "")  # all the models that one NAME may have
# Microseconds; little beside the tens of milliseconds that a clip takes.
DEFAULT_QUEUE_DELAY = 2000
_LONGEST_QUEUE_DELAY = 10_000_000
_MOST_INSTANCES = 1000
# A name is a directory of the repository and a part of the server's URLs.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True)
class Serving:
    """How an export is to be served.

    Args:
        name: What the models' names begin with.
        queue_delay: Microseconds that a request waits for others to fill its batch.
        instances: Copies of each model that run side by side, on each device.
        device: Where ONNX Runtime computes, `cpu` or `cuda`; where the export ran unless given.
        ensemble: Add a model that takes uint8 frames.

    Raises:
        UsageError: if a value is not valid.
    """

    name: str
    queue_delay: int | None = None
    instances: int = 1
    device: str | None = None
    ensemble: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                "the name of a Triton model",
                got=repr(self.name),
                expected="at most 200 letters, digits, _, . and -, the first a letter, digit or _",
                remedy="give another with --name",
            )
        if self.queue_delay is not None and not 0 <= self.queue_delay <= _LONGEST_QUEUE_DELAY:
            limits = f"0 to {_LONGEST_QUEUE_DELAY} microseconds"
            raise UsageError("--queue-delay", got=self.queue_delay, expected=limits)
        if not 1 <= self.instances <= _MOST_INSTANCES:
            raise UsageError("--instances", got=self.instances, expected=f"1 to {_MOST_INSTANCES}")
        if self.device not in (None, *KINDS):
            raise UsageError("--device", got=self.device, expected=" or ".join(KINDS))


@dataclass(frozen=True)
class Deployment:
    """The models, those that are left out with the reason, and what else to know."""

    models: tuple[TritonModel, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]


def deploy(
    directory: Path, repository: Path, serving: Serving, *, force: bool = False
) -> Deployment:
    """Write the models of an export into a repository, beside those that are there.

    All of them appear or none. With `force`, what was written under the same name is replaced as a
    whole: a model that is not written any more goes, so that no old one is served beside the new.

    Args:
        directory: What `tsformer export` made, and proved.
        repository: The model repository; made where there is none.
        serving: How to serve it.
        force: Replace the models of the same name.

    Raises:
        NoExportError: if the directory is no export.
        ManifestError: if it is not whole, or was changed.
        ParityError: if it is not proven.
        UsageError: if it cannot be served as asked for.
        TritonError: if it holds nothing that Triton can run.
        OutputError: if the repository cannot be written, or has models of the same name.
    """
    manifest = read_manifest(directory)
    _require_proof(directory, manifest)
    if (repository / MANIFEST).exists():
        raise UsageError(f"{repository} is an export", expected="a model repository")
    try:
        report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
        deployment = plan(manifest, report, serving)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"{directory} cannot be understood: {error!r}"
        raise ManifestError(what, remedy="export it again") from error
    names = [model.name for model in deployment.models]
    family = [serving.name + suffix for suffix in SUFFIXES]
    with StagedEntries(repository, names, family=family, force=force) as staged:
        try:
            for model in deployment.models:
                _write(model, manifest, directory, staged.path / model.name)
        except OSError as error:
            raise OutputError(f"cannot write {repository}: {error.strerror}") from error
        staged.publish()
    return deployment


def _require_proof(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Serve what is proven, or what its user accepted when it was exported."""
    verdict = manifest.get("verdict")
    accepted = verdict == "ill-conditioned" and manifest["spec"].get("allow_ill_conditioned")
    if verdict != "pass" and not accepted:
        raise ParityError(
            f"{directory} is not proven, so it is not served",
            got=f"verdict {verdict}",
            expected="pass",
            remedy=f"see {directory / 'report.html'}",
        )


def plan(manifest: Mapping[str, Any], report: Mapping[str, Any], serving: Serving) -> Deployment:
    """Say which models serve an export.

    Args:
        manifest: Its manifest.json.
        report: Its report.json, which says where it was run.
        serving: How to serve it.

    Raises:
        UsageError: if it cannot be served as asked for.
        TritonError: if it holds nothing that Triton can run.
    """
    shared = _shared(manifest, serving)
    ran = _ran(report)
    device = serving.device or ("cuda" if ran["onnxruntime"].get("cuda") == "" else "cpu")
    absences = {
        "onnx": _onnx_absence(ran["onnxruntime"], device),
        "trt": _engine_absence(manifest, ran["tensorrt"]),
    }
    made = {
        "onnx": TritonModel(f"{serving.name}_onnx", "onnxruntime", kind=KINDS[device], **shared),
        "trt": TritonModel(f"{serving.name}_trt", "tensorrt", kind=KINDS["cuda"], **shared),
    }
    left_out = {made[which].name: reason for which, reason in absences.items() if reason}
    models = [model for which, model in made.items() if not absences[which]]
    if not models:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise TritonError(f"nothing here can be served: {reasons}")
    notes = _notes(models, manifest, ran)
    if serving.ensemble:
        models += _ensemble(models[-1], manifest, serving)
    return Deployment(tuple(models), left_out, notes)


def _shared(manifest: Mapping[str, Any], serving: Serving) -> dict[str, Any]:
    """What the models of both runtimes have in common."""
    profile = manifest["spec"].get("dynamic_batch")
    if profile is None and serving.queue_delay is not None:
        raise UsageError(
            "--queue-delay is for forming batches, and the batch of this export is fixed",
            remedy="leave it away, or export with --dynamic-batch MIN:OPT:MAX",
        )
    delay = DEFAULT_QUEUE_DELAY if serving.queue_delay is None else serving.queue_delay
    sizes = sorted({profile["opt"], profile["max"]}) if profile else []
    facts = {key: manifest["preprocessing"][key] for key in ("mean", "std", "short_side")}
    return {
        "max_batch_size": profile["max"] if profile else 0,
        "inputs": _tensors(manifest["inputs"], first=1 if profile else 0),
        "outputs": _tensors(manifest["outputs"], first=1 if profile else 0),
        "instances": serving.instances,
        "preferred": tuple(sizes),
        "queue_delay": delay,
        # The first run of a size is slow: runtimes choose their kernels and take memory then.
        "warm_up": tuple(sorted({1, *sizes})),
        "labels": tuple(" ".join(label.split()) for label in manifest["labels"] or ()),
        "facts": json.dumps({"preprocessing": facts}),
    }


def _tensors(described: Sequence[Mapping[str, Any]], *, first: int) -> tuple[TritonTensor, ...]:
    """The tensors of the graph with their axes from `first` on."""
    return tuple(
        TritonTensor(entry["name"], TYPES[entry["dtype"]], tuple(map(int, entry["shape"][first:])))
        for entry in described
    )


def _ran(report: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """By runtime and device: why it was not run there, or "" where it was."""
    found: dict[str, dict[str, str]] = {"onnxruntime": {}, "tensorrt": {}}
    for row in report["parity"]:
        if row["runtime"] in found:
            reason = row["reason"] or "no reason was given"
            failed = row["verdict"] == "not-run"
            found[row["runtime"]][row["device"]] = " ".join(reason.split()) if failed else ""
    return found


def _onnx_absence(ran: Mapping[str, str], device: str) -> str:
    """Why the graph cannot be served on a device, or ""."""
    if not ran.get(device):
        return ""
    hint = "; --device cuda serves it on a GPU" if device == "cpu" and not ran.get("cuda") else ""
    return f"{ran[device][:160]}{hint}"


def _engine_absence(manifest: Mapping[str, Any], ran: Mapping[str, str]) -> str:
    """Why Triton cannot serve the engine, or ""."""
    engine, profile = manifest["engine"], manifest["spec"].get("dynamic_batch")
    flavour = engine.get("flavour")
    if flavour is None:
        return f"no engine was built: {engine.get('reason') or 'no reason was given'}"
    if flavour != "tensorrt":
        return (
            f"Triton's tensorrt backend runs engines of TensorRT, not of {flavour}: export with "
            "--engine tensorrt on the GPU it is for"
        )
    if "" not in ran.values():
        return "its engine was not executed, so it is not proven: export it on the GPU it is for"
    if profile and profile["min"] > 1:
        return (
            f"its engine takes no batch below {profile['min']}, and a client may send one clip: "
            "export with --dynamic-batch 1:OPT:MAX"
        )
    return ""


def _notes(
    models: Sequence[TritonModel], manifest: Mapping[str, Any], ran: Mapping[str, Mapping[str, str]]
) -> tuple[str, ...]:
    """What who starts the server must know."""
    notes = []
    for model in models:
        if model.backend == "tensorrt":
            version = manifest["engine"]["version"]
            notes.append(f"{model.name} needs a server with TensorRT {version}, which built it")
        elif not (ran["onnxruntime"].keys() & {"cpu" if model.kind == KINDS["cpu"] else "cuda"}):
            notes.append(f"{model.name} is not proven on a GPU: run tsformer verify there")
    if manifest["verdict"] != "pass":
        notes.append("the model is ill-conditioned, which was accepted when it was exported")
    if not models[0].preferred:
        notes.append(
            "the batch is fixed, so the server forms no batches: for that, export with "
            "--dynamic-batch MIN:OPT:MAX"
        )
    return tuple(notes)


def _ensemble(
    target: TritonModel, manifest: Mapping[str, Any], serving: Serving
) -> list[TritonModel]:
    """A model that scales uint8 frames, and one that feeds its result to `target`."""
    video, *others = target.inputs
    if video.type != "TYPE_FP32":
        raise UsageError("--ensemble is for graphs of float32, and this one takes pixels itself")
    *before, f, c, h, w = video.dims
    frames = TritonTensor("frames", "TYPE_UINT8", (*before, f, h, w, c))
    size = target.max_batch_size
    preprocess = TritonModel(
        f"{serving.name}_preprocess",
        "python",
        size,
        (frames,),
        (video,),
        instances=serving.instances,
    )
    steps = (
        Step(preprocess.name, ("frames",), (video.name,)),
        Step(target.name, _names(target.inputs), _names(target.outputs)),
    )
    whole = TritonModel(
        serving.name,
        "ensemble",
        size,
        (frames, *others),
        target.outputs,
        steps=steps,
        labels=target.labels,
    )
    return [preprocess, whole]


def _names(tensors: Sequence[TritonTensor]) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in tensors)


def _write(model: TritonModel, manifest: Mapping[str, Any], directory: Path, place: Path) -> None:
    """Fill the directory of one model; the manifest of its export goes with it."""
    version = place / "1"
    version.mkdir(parents=True)
    (place / "config.pbtxt").write_text(model.config, encoding="ascii")
    shutil.copyfile(directory / MANIFEST, place / ENTRY_MARK)
    if model.labels:
        lines = "".join(f"{label}\n" for label in model.labels)
        (place / LABELS).write_text(lines, encoding="utf-8", errors="backslashreplace")
    if model.backend in FILES:
        theirs, ours = FILES[model.backend]
        shutil.copyfile(directory / theirs, version / ours)
    elif model.backend == "python":
        scaling = {key: list(map(float, manifest["preprocessing"][key])) for key in ("mean", "std")}
        text = render("triton_preprocess.py.jinja", **scaling)
        (version / "model.py").write_text(text, encoding="ascii")
