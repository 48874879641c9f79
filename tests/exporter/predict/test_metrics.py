"""Test the figures of accuracy against values computed by hand."""

import math

import numpy as np
import pytest

from exporter.predict.answers import scores_of, sigmoid, softmax
from exporter.predict.metrics import Metrics, agreement, average_precision, measure, wilson

LABELS = ("cat", "dog", "horse", "cow", "pig", "hen")


@pytest.mark.parametrize(
    ("correct", "clips", "low", "high"),
    [
        # (k + z^2/2) / (n + z^2) -+ z sqrt(k (n - k) / n + z^2/4) / (n + z^2) for z = 1.96
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (0, 10, 0.0, 0.2775),
        (0, 20, 0.0, 0.1611),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_the_interval_is_the_wilson_interval(correct, clips, low, high):
    got_low, got_high = wilson(correct, clips)
    assert got_low == pytest.approx(low, abs=1e-4)
    assert got_high == pytest.approx(high, abs=1e-4)
    assert 0 <= got_low <= correct / clips <= got_high <= 1


@pytest.mark.parametrize("clips", [1, 7, 64, 192, 512, 2048])
def test_the_interval_contains_an_accuracy_of_0_and_of_1(clips):
    assert wilson(0, clips)[0] == 0.0
    assert wilson(clips, clips)[1] == 1.0


class TestOneRightClass:
    targets = ((0,), (0,), (0,), (1,), (2,))
    answers = ((0, 1), (1, 0), (0, 2), (1, 0), (5, 4, 3, 1, 2))

    def test_counts(self):
        got = measure("single-label", LABELS, self.targets, self.answers)
        assert (got.clips, got.top1, got.top5) == (5, 3 / 5, 1.0)
        assert got.mean_class == pytest.approx((2 / 3 + 1 + 0) / 3)  # classes without clips: none
        assert got.interval == wilson(3, 5)
        assert got.confusion == (
            (2, 1, 0, 0, 0, 0),
            (0, 1, 0, 0, 0, 0),
            (0, 0, 0, 0, 0, 1),
            *((0,) * 6,) * 3,
        )
        assert [row.clips for row in got.per_class] == [3, 1, 1, 0, 0, 0]
        assert got.per_class[0].accuracy == 2 / 3
        assert got.per_class[3].accuracy is None
        assert (got.map, got.mse, got.r2) == (None, None, None)
        assert got.main == ("top-1", 0.6)

    def test_an_answer_that_is_not_finite_is_never_right(self):
        got = measure("single-label", LABELS, [(0,), (1,)], [(-1,), (1,)])
        assert (got.top1, got.top5) == (0.5, 0.5)
        assert np.sum(got.confusion) == 1

    def test_top_5_of_five_classes_says_nothing(self):
        assert measure("single-label", LABELS[:5], [(0,)], [(0,)]).top5 is None

    def test_no_clips_give_no_figures(self):
        assert measure("single-label", LABELS, [], []) == Metrics(0)

    def test_agreement_compares_first_classes(self):
        assert agreement("single-label", self.answers, [*self.answers[:4], (4, 5)]) == 0.8
        assert agreement("single-label", [], []) is None


class TestIndependentLabels:
    def test_average_precision_is_the_sum_over_the_gains_of_recall(self):
        truth = np.array([True, False, True, False, True])
        scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
        # Positives at ranks 1, 3 and 5: (1/1 + 2/3 + 3/5) / 3.
        assert average_precision(truth, scores) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
        assert average_precision(truth, -scores) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)

    def test_equal_scores_count_together_in_any_order(self):
        truth = np.array([True, False, False, True])
        for order in ([0, 1, 2, 3], [1, 2, 3, 0], [3, 1, 0, 2]):
            assert average_precision(truth[order], np.full(4, 0.5)) == pytest.approx(0.5)

    def test_a_label_that_no_clip_has_has_none(self):
        assert average_precision(np.array([False, False]), np.array([0.1, 0.2])) is None

    def test_map_is_the_mean_over_the_labels_that_clips_have(self):
        answers = [[0.9, 0.1, 0.3], [0.2, 0.8, 0.3], [0.4, 0.7, 0.1]]
        got = measure("multi-label", LABELS[:3], [(0,), (0, 1), ()], answers)
        first = (1 + 2 / 3) / 2  # ranks 1 and 3
        assert got.per_class[0].ap == pytest.approx(first)
        assert (got.per_class[1].ap, got.per_class[2].ap) == (1.0, None)
        assert got.map == pytest.approx((first + 1) / 2)
        assert (got.top1, got.interval, got.confusion) == (None, None, None)
        assert got.main == ("mAP", got.map)

    def test_agreement_compares_labels_at_the_threshold(self):
        assert agreement("multi-label", [[0.6, 0.4], [0.5, 0.1]], [[0.9, 0.6], [0.7, 0.2]]) == 0.75


class TestValues:
    def test_mse_and_r2(self):
        got = measure("regression", ["speed"], [(1,), (2,), (3,)], [[1.0], [2.0], [5.0]])
        assert got.mse == pytest.approx(4 / 3)
        assert got.r2 == pytest.approx(1 - (4 / 3) / (2 / 3))
        assert got.main == ("R2", got.r2)
        assert agreement("regression", [[1.0]], [[1.0]]) is None

    def test_values_without_spread_have_no_r2(self):
        got = measure("regression", ["speed"], [(2,), (2,)], [[1.0], [2.0]])
        assert (got.mse, got.r2) == (0.5, None)


def test_scores_follow_the_task():
    logits = np.array([[0.0, math.log(3), -800.0]], np.float32)
    np.testing.assert_allclose(scores_of(logits, "single-label"), [0.25, 0.75, 0], atol=1e-7)
    np.testing.assert_allclose(scores_of(logits, "multi-label"), [0.5, 0.75, 0], atol=1e-7)
    np.testing.assert_array_equal(scores_of(logits, "regression"), logits[0].astype(np.float64))
    assert softmax(np.array([[5.0]])) == 1  # of one output: why it is never a class
    assert sigmoid(np.array([-1000.0, 1000.0])).tolist() == [0.0, 1.0]


def test_scores_of_views_are_averaged():
    logits = np.array([[0.0, math.log(3)], [0.0, 0.0]])
    mean = 1 / (1 + math.sqrt(3))  # the softmax of the mean logits
    np.testing.assert_allclose(scores_of(logits, "single-label"), [mean, 1 - mean])
    average = scores_of(logits, "single-label", "probabilities")
    np.testing.assert_allclose(average, [0.375, 0.625])
