"""What a model of a Triton repository is, and its config.pbtxt."""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

LABELS = "labels.txt"
KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}


@dataclass(frozen=True)
class TritonTensor:
    """An input or output as Triton names it; `dims` are without the batch where that is free."""

    name: str
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One model of an ensemble, and its tensors, which the ensemble calls by the same names."""

    model: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class TritonModel:
    """One model of the repository, as its config.pbtxt tells the server.

    Args:
        name: Its directory, and what clients call it.
        backend: What runs it: `onnxruntime`, `tensorrt` or `python`; `ensemble` runs its `steps`.
        max_batch_size: The largest batch; 0 where it is fixed, and then part of `dims`.
        inputs: What clients send.
        outputs: What they get.
        device: Where its instances run: `cpu`, or `cuda` for every GPU.
        instances: How many run there.
        preferred: Batches that the server forms of waiting requests; none where it forms none.
        queue_delay: Microseconds that a request waits for others.
        warm_up: Batches run once before the model is called ready.
        steps: The models of an ensemble.
        labels: Names of the classes; empty where they are not known.
        facts: JSON for clients: how a clip becomes the input.
        program: The model.py that the python backend runs.
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
        autoescape=False,  # neither form is HTML: `quoted` escapes for both
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = _quoted
    return environment.get_template(template).render(values)


def _quoted(text: str) -> str:
    """A string of protobuf's text format, for printable ASCII."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
