"""One error class for each stage; every message says what, got, expected and what to do."""

from __future__ import annotations

from typing import ClassVar


class TsformerError(Exception):
    """Base of all errors that a user can cause or cure.

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


class MissingPackageError(TsformerError, ImportError):
    """A package that is needed is not installed."""

    stage = "install"
    exit_code = 4


class ShadowedError(TsformerError, ImportError):
    """A file of the user's is imported instead of a package of this project."""

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
    """A checkpoint could not be read, or does not hold the model that was named."""

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
    """A directory is not a complete export, or was changed after it: it is no longer proven."""

    stage = "manifest"
    exit_code = 5


class GraphInputError(TsformerError):
    """A file to look at is missing, cannot be read, or is neither a graph nor an engine."""

    stage = "input"
    exit_code = 3


class OnnxError(TsformerError):
    """The ONNX graph could not be made, or the runtimes cannot run it."""

    stage = "onnx"
    exit_code = 4


class LintFailure(TsformerError):  # noqa: N818  # a finding, like a failed parity
    """A graph contains what a runtime will refuse."""

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
    """Triton can serve nothing of an export."""

    stage = "triton"
    exit_code = 4


class ParityError(TsformerError):
    """The exported model is not proven to compute the same function."""

    stage = "parity"
    exit_code = 5
