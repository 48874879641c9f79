"""Test scripts/export_time.py: the medians of the stages."""

import pytest


def test_stages_are_medians_and_their_sum_is_without_latency(script):
    export_time = script("export_time")
    rounds = [
        {"onnx": 4.0, "parity": 1.0, "latency": 90.0},
        {"onnx": 2.0, "parity": 5.0, "latency": 10.0, "ladder": 1.0},
        {"onnx": 3.0, "parity": 3.0, "latency": 10.0},
    ]
    assert export_time.summarise(rounds) == pytest.approx(
        {"onnx": 3.0, "parity": 3.0, "latency": 10.0, "ladder": 0.0, "all but latency": 6.0}
    )
