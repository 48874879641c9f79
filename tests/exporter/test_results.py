"""Test what the rows of a report say together."""

import pytest

from exporter.results import Parity, passed_with_room


def row(verdict="pass", error=1.0, tolerance=4.0):
    return Parity("onnxruntime", "cpu", "fp16", verdict, rel_l2=error, tolerance=tolerance)


@pytest.mark.parametrize(
    ("rows", "room"),
    [
        ([row()], True),
        ([row(error=2.0)], True),
        ([row(error=2.1)], False),
        ([row(), row(error=3.9)], False),
        ([row(), row("not-run", None, None)], True),
        ([row("fail", error=0.1)], False),
        ([row("ill-conditioned", error=0.1)], False),
        ([row("fail", None, None)], False),
    ],
)
def test_a_pass_has_room_up_to_half_of_the_tolerance(rows, room):
    assert passed_with_room(rows) is room
