"""Test that what the machine refuses is named, and a defect is left as it is."""

import errno

import pytest

from exporter.errors import (
    GraphInputError,
    MachineError,
    OutputError,
    TsformerError,
    UsageError,
)
from exporter.errors.machine import of_the_machine


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError, "No space left"),
        (OSError(errno.EACCES, "Permission denied", "/out/x"), OutputError, "/out/x cannot be"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), UsageError, "too long"),
        (ValueError("embedded null byte"), UsageError, "null character"),
        (RecursionError("maximum depth"), GraphInputError, "nested too deeply"),
        (MemoryError(), MachineError, "not enough memory: got MemoryError"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MachineError, "raise the limit"),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            MachineError,
            "libtorch_cpu.so",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 99 bytes"),
            MachineError,
            "99 bytes",
        ),
    ],
)
def test_a_refusal_of_the_machine_is_named_in_one_line(error, kind, words):
    found = of_the_machine(error)
    assert type(found) is kind
    assert words in str(found)
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes do not fit"),
        ImportError("no module named memory"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        UsageError("not enough memory, says a user's file"),
    ],
)
def test_another_error_is_left_as_it_is(error):
    assert of_the_machine(error) is error


def test_no_memory_ends_with_the_exit_code_of_a_failed_build():
    assert issubclass(MachineError, TsformerError)
    assert (MachineError.stage, MachineError.exit_code) == ("machine", 4)
