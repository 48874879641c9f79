"""The axes of plots: limits around the values, and a few round ticks by matplotlib's locators."""

import math

import pytest

from exporter.report.drawing import NARROW, WIDE, Canvas, Frame, plot, scientific

FRAMES = (Frame(WIDE, 200), Frame(NARROW, 200))


def painted(paint, frame=FRAMES[0]):
    """What `paint` gives of a canvas."""
    found = []
    plot("a", "An axis.", lambda canvas: found.append(paint(canvas)), (frame,))
    return found[0]


def limits(values, side="x"):
    def paint(canvas: Canvas):
        low = canvas.log_scale(side, values)
        ends = canvas.axes.get_xlim() if side == "x" else canvas.axes.get_ylim()
        assert ends[0] == low
        return ends

    return painted(paint)


def ticks(low, high, most, *, log=False, side="x", **more):
    """The places that are marked, and what is written there."""

    def paint(canvas: Canvas):
        if log:
            canvas.log_scale(side, [low, high], room=1.0)
        else:
            canvas.axes.set(**{f"{side}lim": (low, high)})
        canvas.round_ticks(side, most, "{:g}".format, **more)
        axis = canvas.axes.xaxis if side == "x" else canvas.axes.yaxis
        return list(axis.get_ticklocs()), [label.get_text() for label in axis.get_ticklabels()]

    return painted(paint)


@pytest.mark.parametrize("side", ["x", "y"])
def test_limits_enclose_the_positive_values(side):
    low, high = limits([2e-7, 0.0, None, math.inf, math.nan, 3e-5], side)
    assert 0 < low < 2e-7
    assert 3e-5 < high < math.inf


@pytest.mark.slow
@pytest.mark.parametrize("values", [[], [None, 0.0, math.nan], [math.inf]])
def test_limits_of_nothing_are_still_limits(values):
    low, high = limits(values)
    assert 0 < low < high


@pytest.mark.slow
@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (1e-7, 1e-4, 6, [1e-7, 1e-6, 1e-5, 1e-4]),
        (1e-9, 1e-1, 4, [1e-8, 1e-6, 1e-4, 1e-2]),
        (3.0, 30.0, 6, [5.0, 10.0, 20.0]),
        (0.6, 180.0, 6, [1.0, 10.0, 100.0]),
        (40.0, 45.0, 4, [40.0, 42.0, 44.0]),
    ],
)
def test_logarithmic_ticks_are_round(low, high, most, expected, side):
    assert ticks(low, high, most, log=True, side=side)[0] == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("span", [1.001, 1.3, 3.0, 25.0, 1e3, 1e9])
@pytest.mark.parametrize("low", [3.7e-9, 0.42, 8100.0])
@pytest.mark.parametrize("most", [4, 6, 7])
def test_there_are_some_ticks_and_not_too_many(low, span, most):
    places, _ = ticks(low, low * span, most, log=True)
    assert 1 <= len(places) <= most
    assert all(low * (1 - 1e-9) <= tick <= low * span * (1 + 1e-9) for tick in places)


@pytest.mark.parametrize("high", [0.003, 1.0, 84.2, 1343.1, 99999.0])
def test_linear_ticks_start_at_zero_and_reach_most_of_the_way(high):
    places, _ = ticks(0.0, high, 7)
    assert places[0] == 0
    assert high * 0.6 <= places[-1] <= high
    assert 3 <= len(places) <= 7


def test_linear_ticks_are_as_many_as_there_may_be():
    assert ticks(0.0, 1248.0, 7)[0] == [0, 200, 400, 600, 800, 1000, 1200]
    assert ticks(0.0, 1200.0, 6)[0] == [0, 500, 1000]


def test_ticks_stay_within_the_values_that_there_can_be():
    places, said = ticks(0.999, 1.002, 6, side="y", within=(0.999, 1.0))
    assert places[-1] == 1.0
    assert min(places) >= 0.999
    assert len(set(said)) == len(places) > 1


def test_the_last_tick_has_the_unit():
    _, said = ticks(0.0, 84.2, 7, unit="ms")
    assert said == ["0", "20", "40", "60", "80 ms"]


@pytest.mark.parametrize(
    ("tick", "written"),
    [(1e-7, "1e-07"), (1.5e-7, "1.5e-07"), (0.1, "1e-01"), (2e5, "2e+05"), (3 * 1e-9, "3e-09")],
)
def test_a_tick_is_written_as_it_is(tick, written):
    assert scientific(tick) == written
