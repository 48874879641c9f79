"""Decide which Triton models serve an export, and why others are left out (pure).

NAME_onnx/        config.pbtxt, labels.txt, tsformer.json, 1/model.onnx
NAME_trt/         the same with 1/model.plan, if there is an engine that Triton can run
NAME_preprocess/  with --ensemble: 1/model.py, uint8 frames -> the model's input
NAME/             with --ensemble: frames -> NAME_preprocess -> NAME_trt or NAME_onnx -> logits
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from exporter.errors import TritonError, UsageError
from exporter.files.machines import Machines, present_rows
from exporter.files.manifest import MODULE
from exporter.report.escape import without_control
from exporter.triton.config import KINDS, TYPES, Step, TritonModel, TritonTensor, render
from model.preprocessing import Preprocessing

FILES = {  # backend: name of the file in the export, and its name in the repository
    "onnxruntime": ("model.onnx", "model.onnx"),
    "tensorrt": ("model.engine", "model.plan"),
}
SUFFIXES = ("_onnx", "_trt", "_preprocess", "")  # NAME plus a suffix is the name of a model
# In microseconds. It is short compared with the tens of milliseconds of one clip.
DEFAULT_QUEUE_DELAY = 2000
_LONGEST_QUEUE_DELAY = 10_000_000
_MOST_INSTANCES = 1000
# A name becomes a directory of the repository and a part of the server's URLs.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True)
class Serving:
    """The options of serving an export.

    Args:
        name: Prefix of the models' names.
        queue_delay: Longest wait of a request for others that fill its batch, in microseconds.
        instances: Copies of each model that run side by side, on each device.
        device: Device of ONNX Runtime, `cpu` or `cuda`; by default `cuda` where it was proven.
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
    """The models, the models that are left out with the reason, and notes for the user."""

    models: tuple[TritonModel, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]


def plan(
    manifest: Mapping[str, Any],
    report: Mapping[str, Any],
    serving: Serving,
    machines: Machines = Machines(),  # noqa: B008  # frozen
) -> Deployment:
    """Decide which models serve an export.

    Args:
        manifest: The manifest.json of the export; its files are those that are there.
        report: The report.json of the export, which names the devices that ran it.
        serving: The options of serving.
        machines: What other machines recorded about these files.

    Raises:
        UsageError: if the options do not fit the export.
        TritonError: if Triton can run no file of the export.
    """
    shared = _shared(manifest, serving)
    ran = _ran(manifest, report, machines)
    device = serving.device or ("cuda" if ran["onnxruntime"].get("cuda") == "" else "cpu")
    absences = {
        "onnx": _onnx_absence(manifest, ran["onnxruntime"], device),
        "trt": _engine_absence(manifest, ran["tensorrt"], machines),
    }
    made = {
        "onnx": TritonModel(f"{serving.name}_onnx", "onnxruntime", device=device, **shared),
        "trt": TritonModel(f"{serving.name}_trt", "tensorrt", device="cuda", **shared),
    }
    left_out = {made[which].name: reason for which, reason in absences.items() if reason}
    models = [model for which, model in made.items() if not absences[which]]
    if not models:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise TritonError(f"Triton can serve no file of this export: {reasons}")
    notes = _notes(models, manifest, ran)
    if serving.ensemble:
        if manifest["model"]["family"] == MODULE:
            raise UsageError("--ensemble reads frames, and a module of your own takes no clips")
        how = Preprocessing.from_dict(manifest["preprocessing"])
        models += _ensemble(models[-1], how, serving)
    return Deployment(tuple(models), left_out, notes)


def _shared(manifest: Mapping[str, Any], serving: Serving) -> dict[str, Any]:
    """Make the fields that the models of both runtimes share."""
    profile = manifest["spec"].get("dynamic_batch")
    if profile is None and serving.queue_delay is not None:
        raise UsageError(
            "--queue-delay needs dynamic batching, and the batch of this export is fixed",
            remedy="omit it, or export with --dynamic-batch MIN:OPT:MAX",
        )
    delay = DEFAULT_QUEUE_DELAY if serving.queue_delay is None else serving.queue_delay
    sizes = sorted({profile["opt"], profile["max"]}) if profile else []
    return {
        "max_batch_size": profile["max"] if profile else 0,
        "inputs": _tensors(manifest["inputs"], first=1 if profile else 0),
        "outputs": _tensors(manifest["outputs"], first=1 if profile else 0),
        "instances": serving.instances,
        "preferred": tuple(sizes),
        "queue_delay": delay,
        # The first run of a batch size is slow: runtimes choose kernels and allocate memory then.
        "warm_up": tuple(sorted({1, *sizes})),
        "labels": _labels(manifest),
        "facts": _facts(manifest),
    }


def _labels(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels by which Triton ranks outputs; values are not ranked, so they have none."""
    if manifest.get("task") == "regression":
        return ()
    return tuple(without_control(" ".join(label.split())) for label in manifest["labels"] or ())


def _facts(manifest: Mapping[str, Any]) -> str:
    """Give what a client needs to know, as JSON; nothing where the model takes no clips."""
    if manifest["model"]["family"] == MODULE:
        return ""
    how = Preprocessing.from_dict(manifest["preprocessing"])
    task = manifest.get("task", "single-label")
    return json.dumps({"preprocessing": asdict(how), "task": task})


def _tensors(described: Sequence[Mapping[str, Any]], *, first: int) -> tuple[TritonTensor, ...]:
    """Convert the tensors of the graph, with their axes from `first` on."""
    if not all(_NAME.fullmatch(entry["name"]) for entry in described):
        raise ValueError("Triton does not accept the name of a tensor")
    return tuple(
        TritonTensor(entry["name"], TYPES[entry["dtype"]], tuple(map(int, entry["shape"][first:])))
        for entry in described
    )


def _ran(
    manifest: Mapping[str, Any], report: Mapping[str, Any], machines: Machines
) -> dict[str, dict[str, str]]:
    """For each runtime and device: the reason why it did not run there, or "" if it ran."""
    found: dict[str, dict[str, str]] = {"onnxruntime": {}, "tensorrt": {}}
    for row in present_rows(report, manifest, "parity"):
        if row["runtime"] in found:
            reason = row["reason"] or "no reason was given"
            failed = row["verdict"] == "not-run"
            found[row["runtime"]][row["device"]] = " ".join(reason.split()) if failed else ""
    accepted = ("pass", manifest.get("verdict"))  # of the export: see `deploy`
    for runtime, (file, _) in FILES.items():
        rows = [(name, row) for name, row in machines.judged(file) if row.runtime == runtime]
        for name, row in sorted(rows, key=lambda each: each[1].verdict not in accepted):
            device = row.device.partition(":")[0]  # a failure comes last, and stays
            found[runtime][device] = (
                "" if row.verdict in accepted else f"it failed its proof on {name}"
            )
    return found


def _onnx_absence(manifest: Mapping[str, Any], ran: Mapping[str, str], device: str) -> str:
    """Return the reason why the graph cannot be served on a device, or ""."""
    if FILES["onnxruntime"][0] not in manifest["files"]:
        return "the graph is not in the directory"
    if not ran.get(device):
        return ""
    hint = "; --device cuda serves it on a GPU" if device == "cpu" and not ran.get("cuda") else ""
    return f"{ran[device][:160]}{hint}"


def _engine_absence(manifest: Mapping[str, Any], ran: Mapping[str, str], machines: Machines) -> str:
    """Return the reason why Triton cannot serve the engine, or ""."""
    engine, profile = manifest["engine"], manifest["spec"].get("dynamic_batch")
    flavour = engine.get("flavour")
    if flavour is None:
        return f"no engine was built: {engine.get('reason') or 'no reason was given'}"
    if flavour != "tensorrt":
        return (
            f"Triton's tensorrt backend runs engines of TensorRT, not of {flavour}: export with "
            "--engine tensorrt on the GPU that will run it, or build it there (tsformer build)"
        )
    if FILES["tensorrt"][0] not in manifest["files"]:
        return "the engine is not in the export"
    judged = machines.judged(FILES["tensorrt"][0])
    accepted = ("pass", manifest.get("verdict"))
    if wrong := [name for name, row in judged if row.verdict not in accepted]:
        return f"the engine failed its proof on {', '.join(wrong)}"
    if "" not in ran.values():
        return (
            "the engine was not executed, so it is not proven: run tsformer build or verify "
            "--record on the GPU that will run it"
        )
    if profile and profile["min"] > 1:
        return (
            f"the engine takes no batch below {profile['min']}, but a client may send one clip: "
            "export with --dynamic-batch 1:OPT:MAX"
        )
    return ""


def _notes(
    models: Sequence[TritonModel], manifest: Mapping[str, Any], ran: Mapping[str, Mapping[str, str]]
) -> tuple[str, ...]:
    """Make the notes for the person who starts the server."""
    notes = []
    for model in models:
        if model.backend == "tensorrt":
            version = manifest["engine"]["version"]
            notes.append(
                f"{model.name} needs a server with the version that built it, TensorRT {version}"
            )
        elif model.device not in ran["onnxruntime"]:
            where = f"{model.name} is not proven on {model.device}"
            notes.append(f"{where}: run tsformer verify on the machine that will serve it")
    if manifest["verdict"] != "pass":
        notes.append("the model is ill-conditioned; the user accepted that at export")
    if not models[0].preferred:
        notes.append(
            "the batch is fixed, so the server forms no batches; export with "
            "--dynamic-batch MIN:OPT:MAX to form them"
        )
    return tuple(notes)


def _ensemble(
    target: TritonModel, preprocessing: Preprocessing, serving: Serving
) -> list[TritonModel]:
    """Make a model that scales uint8 frames, and an ensemble that passes them to `target`."""
    video, *others = target.inputs
    if video.type != "TYPE_FP32":
        raise UsageError("--ensemble needs a float32 graph, but this graph takes pixels itself")
    *before, f, c, h, w = video.dims
    frames = TritonTensor("frames", "TYPE_UINT8", (*before, f, h, w, c))
    size = target.max_batch_size
    scaling = {"mean": list(preprocessing.mean), "std": list(preprocessing.std)}
    preprocess = TritonModel(
        f"{serving.name}_preprocess",
        "python",
        size,
        (frames,),
        (video,),
        instances=serving.instances,
        program=render("preprocess.py.jinja", **scaling),
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
