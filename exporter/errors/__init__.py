"""One error class for each stage. A message names the fault, got, expected and the remedy."""

from __future__ import annotations

from typing import ClassVar


def first_line(text: object) -> str:
    """Take the first line of a foreign message; of a long one, the first 200 characters."""
    return str(text).strip().partition("\n")[0][:200]


class TsformerError(Exception):
    """The base of all errors that a user can cause or fix.

    Args:
        what: The fault and its place, in one clause.
        got: The value found, if it helps the user.
        expected: A description of the valid values.
        remedy: The action that fixes the fault, as an imperative.
    """

    stage: ClassVar[str] = "tsformer"
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        facts = [
            f"{name} {value}"
            for name, value in (("got", got), ("expected", expected))
            if value is not None
        ]
        message = f"{what}: {', '.join(facts)}" if facts else what
        message = f"{message}; {remedy}" if remedy else message
        # A library's text may contain line breaks; the message has one line.
        super().__init__(" ".join(message.split()))


class MissingPackageError(TsformerError, ImportError):
    """A required package is not installed."""

    stage = "install"
    exit_code = 4


class ShadowedError(TsformerError, ImportError):
    """A file of the user hides a package of this project from `import`."""

    stage = "install"
    exit_code = 4


class UsageError(TsformerError):
    """An argument is not valid by itself or in combination with another."""

    stage = "usage"
    exit_code = 2


class OutputError(TsformerError):
    """The output directory cannot be used."""

    stage = "output"
    exit_code = 2


class MachineError(TsformerError):
    """The machine has too little of what the work needs."""

    stage = "machine"
    exit_code = 4


class CheckpointInputError(TsformerError):
    """A checkpoint could not be read, or does not contain the named model."""

    stage = "checkpoint"
    exit_code = 3


class HubError(TsformerError):
    """An export could not be uploaded to the Hugging Face hub."""

    stage = "hub"
    exit_code = 4


class VideoError(TsformerError):
    """A clip could not be read or is not a video."""

    stage = "video"
    exit_code = 3


class NoExportError(TsformerError):
    """A directory is not an export, or cannot be read."""

    stage = "manifest"
    exit_code = 3


class ManifestError(TsformerError):
    """A directory is an incomplete export, or was changed after the export and lost its proof."""

    stage = "manifest"
    exit_code = 5


class GraphInputError(TsformerError):
    """An input file is missing, cannot be read, or is neither a graph nor an engine."""

    stage = "input"
    exit_code = 3


class OnnxError(TsformerError):
    """The ONNX graph could not be exported, or the runtimes cannot run it."""

    stage = "onnx"
    exit_code = 4


class LintFailure(TsformerError):  # noqa: N818  # a finding, like a failed parity
    """A graph contains a construct that a runtime will refuse."""

    stage = "lint"
    exit_code = 4


class EngineError(TsformerError):
    """The TensorRT engine could not be built."""

    stage = "engine"
    exit_code = 4


class RuntimeFailure(TsformerError):  # noqa: N818  # Python has a RuntimeError
    """A runtime failed to run the model."""

    stage = "runtime"
    exit_code = 4


class DoctorError(TsformerError):
    """This machine lacks an ability that was required of it."""

    stage = "doctor"
    exit_code = 4


class LadderError(TsformerError):
    """A graph cannot be compared with its model module by module."""

    stage = "ladder"
    exit_code = 4


class LadderDivergence(TsformerError):  # noqa: N818  # a finding, like a failed parity
    """The error of a module in the graph is larger than rounding explains."""

    stage = "ladder"
    exit_code = 5


class TuneError(TsformerError):
    """No choice of modules meets the error budget."""

    stage = "tune-precision"
    exit_code = 5


class GridError(TsformerError):
    """The grid file of a sweep could not be read, or is not valid."""

    stage = "sweep"
    exit_code = 3


class SweepError(TsformerError):
    """Some cells of a sweep could not be exported."""

    stage = "sweep"
    exit_code = 4


class AdviceError(TsformerError):
    """No proven export meets the limits."""

    stage = "advise"
    exit_code = 5


class TritonError(TsformerError):
    """Triton can serve no file of an export."""

    stage = "triton"
    exit_code = 4


class ParityError(TsformerError):
    """The exported model is not proven to compute the same function."""

    stage = "parity"
    exit_code = 5
