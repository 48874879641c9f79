"""One error class per stage of the line; every message says what, got, expected, what to do."""

from __future__ import annotations

from typing import ClassVar

INSTALL = "pip install 'tsformer[cpu]' (or [gpu])"  # all that exports need


class TsformerError(Exception):
    """Base of all errors a user can cause or mend.

    Args:
        what: What went wrong and where, in one clause.
        got: What was found, if that helps.
        expected: What would have been right.
        remedy: What to do about it, as an imperative.
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
        super().__init__(" ".join(message.split()))  # one line, whatever a library put into it


class MissingPackageError(TsformerError):
    """A package that this command needs is not installed."""

    stage = "install"
    exit_code = 4


class UsageError(TsformerError):
    """An argument is not valid, alone or together with another."""

    stage = "usage"
    exit_code = 2


class OutputError(TsformerError):
    """The output directory cannot be used."""

    stage = "output"
    exit_code = 2


class CheckpointInputError(TsformerError):
    """A checkpoint could not be read, or is not the model it is said to be."""

    stage = "checkpoint"
    exit_code = 3


class VideoError(TsformerError):
    """A clip could not be read or is not a video."""

    stage = "video"
    exit_code = 3


class NoExportError(TsformerError):
    """A directory is not an export, or cannot be read."""

    stage = "manifest"
    exit_code = 3


class ManifestError(TsformerError):
    """A directory is no whole export, or was changed since: nothing in it is proven any more."""

    stage = "manifest"
    exit_code = 5


class GraphInputError(TsformerError):
    """A file to look at is missing, cannot be read, or is neither a graph nor an engine."""

    stage = "input"
    exit_code = 3


class OnnxError(TsformerError):
    """The ONNX graph could not be made, or is not fit for the runtimes."""

    stage = "onnx"
    exit_code = 4


class LintFailure(TsformerError):  # noqa: N818  # a finding, like a failed parity
    """A graph holds what a runtime will refuse."""

    stage = "lint"
    exit_code = 4


class EngineError(TsformerError):
    """The TensorRT engine could not be built."""

    stage = "engine"
    exit_code = 4


class RuntimeFailure(TsformerError):  # noqa: N818  # "RuntimeError" is Python's
    """A runtime that should run the model could not."""

    stage = "runtime"
    exit_code = 4


class LadderError(TsformerError):
    """A graph cannot be compared with its model module by module."""

    stage = "ladder"
    exit_code = 4


class LadderDivergence(TsformerError):  # noqa: N818  # a finding, like a failed parity
    """A module of the graph is further from the truth than rounding explains."""

    stage = "ladder"
    exit_code = 5


class TuneError(TsformerError):
    """No choice of modules meets the error budget."""

    stage = "tune-precision"
    exit_code = 5


class GridError(TsformerError):
    """The file of a sweep could not be read, or is not valid."""

    stage = "sweep"
    exit_code = 3


class SweepError(TsformerError):
    """Cells of a sweep could not be exported."""

    stage = "sweep"
    exit_code = 4


class AdviceError(TsformerError):
    """No proven export meets the limits."""

    stage = "advise"
    exit_code = 5


class TritonError(TsformerError):
    """Nothing of an export can be served by Triton."""

    stage = "triton"
    exit_code = 4


class ParityError(TsformerError):
    """The exported model is not proven to be the same function."""

    stage = "parity"
    exit_code = 5
