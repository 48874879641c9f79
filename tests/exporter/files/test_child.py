"""Test what is said of a process that ended."""

import pytest

from exporter.files.child import describe_end


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0, "ended without an answer (exit code 0)"),
        (3, "ended without an answer (exit code 3)"),
        (-11, "was killed by SIGSEGV"),
        (-40, "was killed by signal 40"),  # a real-time signal
    ],
)
def test_an_end_is_described_by_its_code(code, said):
    assert describe_end(code) == said
