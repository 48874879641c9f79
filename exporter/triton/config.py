"""A model of a Triton repository, and its config.pbtxt."""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

LABELS = "labels.txt"
KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "float64": "TYPE_FP64",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}


@dataclass(frozen=True)
class TritonTensor:
    """An input or output in Triton's terms; `dims` omit the batch if the batch is dynamic."""

    name: str
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One model of an ensemble, and its tensors; the ensemble uses the same tensor names."""

    model: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class TritonModel:
    """One model of the repository, as its config.pbtxt describes it.

    Args:
        name: Its directory, and its name for clients.
        backend: The backend: `onnxruntime`, `tensorrt` or `python`; `ensemble` runs its `steps`.
        max_batch_size: The largest batch; 0 if the batch is fixed, and then `dims` include it.
        inputs: The tensors that clients send.
        outputs: The tensors that clients receive.
        device: The device of its instances: `cpu`, or `cuda` for every GPU.
        instances: Number of copies on each device.
        preferred: Sizes of the batches that the server forms from waiting requests; empty if it
            forms no batches.
        queue_delay: Longest wait of a request for other requests, in microseconds.
        warm_up: Sizes of the batches that run once before the model is ready.
        steps: The models of an ensemble.
        labels: Names of the classes; empty if not known.
        facts: JSON for clients: the preprocessing that turns a clip into the input.
        program: The text of model.py for the python backend.
    """

    name: str
    backend: str
    max_batch_size: int
    inputs: tuple[TritonTensor, ...]
    outputs: tuple[TritonTensor, ...]
    device: str = "cpu"
    instances: int = 1
    preferred: tuple[int, ...] = ()
    queue_delay: int = 0
    warm_up: tuple[int, ...] = ()
    steps: tuple[Step, ...] = ()
    labels: tuple[str, ...] = ()
    facts: str = ""
    program: str = ""

    @property
    def config(self) -> str:
        """The text of config.pbtxt."""
        return render("config.pbtxt.jinja", model=self, kind=KINDS[self.device], labels_file=LABELS)


def render(template: str, **values: object) -> str:
    """Fill a template of this package."""
    environment = Environment(
        loader=PackageLoader("exporter.triton"),
        autoescape=False,  # no template is HTML; the filter `quoted` escapes strings
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = _quoted
    return environment.get_template(template).render(values)


def _quoted(text: str) -> str:
    """Quote printable ASCII as a string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
