"""What a system refuses -> one line: a full disk, a folder that went away, too little memory."""

from __future__ import annotations

import errno

from exporter.errors import GraphInputError, MachineError, OutputError, TsformerError, UsageError

# What the loader of libraries and the allocators of libraries say, in lower case.
_NO_MEMORY = (
    "cannot allocate memory",
    "can't allocate memory",
    "failed to map segment",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
)


def of_the_machine(error: Exception) -> Exception:
    """Name the cause of an error that the machine or the user made; else return it as it is."""
    if isinstance(error, TsformerError):
        return error
    if isinstance(error, ValueError) and "null byte" in str(error):
        return UsageError("a path holds a null character")
    if isinstance(error, RecursionError):
        return GraphInputError("an input is nested too deeply")
    if _lacks_memory(error):
        return MachineError(
            "there is not enough memory",
            got=str(error)[:200] or type(error).__name__,
            remedy="raise the limit of memory, end other programs, or choose a smaller model",
        )
    if not isinstance(error, OSError) or isinstance(error, ConnectionError):
        return error  # a broken pipe to a process of ours is a defect
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        return UsageError("a path is too long, or its links have no end")
    place = str(error.filename or "the output or the temporary folder")[:200]
    return OutputError(
        f"{place} cannot be used",
        got=error.strerror or type(error).__name__,
        remedy="check its space and permissions, or name other folders with --output and TMPDIR",
    )


def _lacks_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    said = str(error).lower()
    return isinstance(error, (ImportError, RuntimeError)) and any(w in said for w in _NO_MEMORY)
