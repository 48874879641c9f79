"""Test that the median and the bias of errors are judged, not only the worst."""

import numpy as np
import pytest

from exporter.proof.distribution import find_system, measure
from exporter.proof.judge import Reference, judge

INPUTS, CLASSES = 16, 7
RNG = np.random.default_rng(0)
TRUTH = RNG.standard_normal((INPUTS, CLASSES)) + 3 * np.eye(INPUTS, CLASSES)
NAMES = tuple(f"clip-{i}" for i in range(INPUTS))


def rounded(error, seed=1):
    noise = np.random.default_rng(seed).standard_normal(TRUTH.shape)
    sizes = np.linalg.norm(TRUTH, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1)[:, None]
    return TRUTH + error * sizes * noise


def judged(output, floor, precision="bf16"):
    reference = Reference(NAMES, TRUTH, floor, floor, fp32=TRUTH)
    return judge(reference, [output], runtime="x", device="cpu", precision=precision)


def test_scaled_outputs_have_a_bias_and_rounded_ones_have_none():
    scaled, noisy = measure(1.02 * TRUTH, TRUTH), measure(rounded(0.02), TRUTH)
    assert scaled.bias == pytest.approx(0.02)
    assert scaled.median == pytest.approx(noisy.median) == pytest.approx(0.02)
    assert noisy.spread == pytest.approx(0.02 / 4)
    assert abs(noisy.bias) < 2 * noisy.spread


def test_an_input_whose_truth_is_zero_does_not_count():
    truth = np.array([[0.0, 0.0], [3.0, 4.0]])
    found = measure(truth + np.array([[1.0, 0.0], [3.0, 4.0]]), truth)
    assert (found.median, found.bias) == (1.0, 1.0)
    assert measure(truth[:1], truth[:1]).spread == 0.0


def test_an_input_whose_values_nearly_cancel_counts_little():
    truth = np.array([[1.0], [1.1], [0.9], [1e-3]])  # of one class: every error lies along it
    noise = 1e-5 * np.array([[1.0], [-1.0], [1.0], [1.0]])  # 1e-2 of the last truth
    found = measure(truth + noise, truth)
    assert found.bias == pytest.approx(1e-5 * (1 / 1 - 1 / 1.1 + 1 / 0.9) / 3, rel=1e-2)
    assert found.median == pytest.approx(1e-5 * (1 / 1 + 1 / 0.9) / 2)
    scaled = measure(1.02 * truth, truth)
    assert scaled.bias == pytest.approx(0.02)


def test_logits_that_are_scaled_below_the_tolerance_fail():
    floor = rounded(0.02, seed=2)
    assert judged(rounded(0.02), floor).verdict == "pass"
    parity = judged(1.05 * rounded(0.02), floor)  # the tolerance of the worst is 0.08
    assert parity.verdict == "fail"
    assert parity.reason.startswith("all outputs are scaled by 1.0")
    assert parity.bias == pytest.approx(0.05, abs=0.01)


def test_an_error_on_most_inputs_fails_where_one_floor_is_large():
    floor = rounded(0.001, seed=2)
    floor[0] = rounded(0.05, seed=3)[0]
    output = rounded(0.02)
    parity = judged(output, floor)
    assert parity.rel_l2 < parity.tolerance == pytest.approx(0.2)
    assert parity.verdict == "fail"
    assert parity.reason == "the median error 2.0e-02 is above 1.6e-02"


@pytest.mark.parametrize(("error", "verdict"), [(0.035, "pass"), (0.045, "fail")])
def test_the_median_error_may_be_four_times_that_of_the_floor(error, verdict):
    floor = rounded(0.01, seed=2)
    floor[0] = rounded(0.1, seed=3)[0]
    parity = judged(rounded(error), floor)
    assert parity.rel_l2 < parity.tolerance
    assert parity.verdict == verdict
    assert ("the median error" in parity.reason) == (verdict == "fail")


@pytest.mark.parametrize("factor", [1.0, 1.9])
def test_rounding_that_is_somewhat_larger_than_the_floor_passes(factor):
    floor = rounded(0.02, seed=2)
    for seed in range(3, 13):
        assert judged(rounded(factor * 0.02, seed), floor).verdict == "pass", seed


def test_nothing_is_said_of_small_errors():
    small, none = measure(rounded(1e-7), TRUTH), measure(TRUTH, TRUTH)
    assert find_system(small, none, 4.0, 1e-6) == ""


def test_nan_of_the_model_itself_is_said_to_be_its_own():
    broken = TRUTH.copy()
    broken[3, 1] = np.nan
    reference = Reference(NAMES, TRUTH, broken, broken)
    parity = judge(reference, [broken], runtime="x", device="cpu", precision="fp32")
    assert parity.verdict == "fail"
    assert "it is the model's own" in parity.reason
    assert "NaN or Inf among the logits of eager PyTorch itself" in parity.reason
