"""A model of a Triton repository, and its config.pbtxt."""

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
    """An input or output as Triton names it; `dims` leave out the batch if that is dynamic."""

    name: str
    type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One model of an ensemble, and its tensors; the ensemble uses the same names for them."""

    model: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class TritonModel:
    """One model of the repository, as its config.pbtxt describes it.

    Args:
        name: Its directory, and its name for clients.
        backend: What runs it: `onnxruntime`, `tensorrt` or `python`; `ensemble` runs its `steps`.
        max_batch_size: The largest batch; 0 where it is fixed, and then part of `dims`.
        inputs: The tensors that clients send.
        outputs: The tensors that clients receive.
        device: Where its instances run: `cpu`, or `cuda` for every GPU.
        instances: Copies that run there.
        preferred: Sizes of the batches that the server forms from waiting requests; empty if it
            forms no batches.
        queue_delay: Microseconds that a request waits for others.
        warm_up: Sizes of the batches that run once before the model is ready.
        steps: The models of an ensemble.
        labels: Names of the classes; empty if not known.
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
