import math

import pytest

from exporter.report.axes import log_limits, log_values, round_values


def test_limits_enclose_the_positive_values():
    low, high = log_limits([2e-7, 0.0, None, math.inf, math.nan, 3e-5])
    assert 0 < low < 2e-7
    assert 3e-5 < high < math.inf


@pytest.mark.parametrize("values", [[], [None, 0.0, math.nan], [math.inf]])
def test_limits_of_nothing_are_still_limits(values):
    low, high = log_limits(values)
    assert 0 < low < high


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (1e-7, 1e-4, 6, [1e-7, 1e-6, 1e-5, 1e-4]),
        (1e-9, 1e-1, 4, [1e-9, 1e-6, 1e-3]),
        (3.0, 30.0, 6, [5.0, 10.0, 20.0]),
        (0.6, 180.0, 6, [1.0, 10.0, 100.0]),
        (40.0, 45.0, 4, [40.0, 42.0, 44.0]),
    ],
)
def test_logarithmic_ticks_are_round(low, high, most, ticks):
    assert log_values(low, high, most) == pytest.approx(ticks)


@pytest.mark.parametrize("span", [1.001, 1.3, 3.0, 25.0, 1e3, 1e9])
@pytest.mark.parametrize("low", [3.7e-9, 0.42, 8100.0])
def test_there_are_some_ticks_and_not_too_many(low, span):
    ticks = log_values(low, low * span, 6)
    assert 1 <= len(ticks) <= 6
    assert all(low <= tick <= low * span * (1 + 1e-9) for tick in ticks)


@pytest.mark.parametrize("high", [0.003, 1.0, 84.2, 1343.1, 99999.0])
def test_linear_ticks_start_at_zero_and_reach_most_of_the_way(high):
    ticks = round_values(0.0, high, 7)
    assert ticks[0] == 0
    assert high * 0.6 <= ticks[-1] <= high
    assert 3 <= len(ticks) <= 7


def test_no_span_has_one_tick():
    assert round_values(2.0, 2.0, 5) == [2.0]
