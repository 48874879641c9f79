"""Test that the judge can fail: synthetic logits for every fault of an export."""

import numpy as np
import pytest

from exporter.proof.decide import ILL_CONDITIONED
from exporter.proof.distance import cosine, relative_spread, worst_error
from exporter.proof.judge import (
    FLOOR_FACTOR,
    PAIRED,
    TINY,
    Reference,
    judge,
    make_reference,
    relative_error,
    run_clips,
    validate,
    with_lower_floor,
)

INPUTS, CLASSES = 8, 5
NAMES = tuple(f"clip-{i}" for i in range(INPUTS))
FLOOR = 1e-6  # floor of the references here; well above TINY / FLOOR_FACTOR


def truth(inputs=INPUTS, classes=CLASSES):
    return np.random.default_rng(0).standard_normal((inputs, classes))


def reference(truth_=None, *, floor=FLOOR, **changes):
    """Make a reference; `floor` is a relative error or the rounded logits."""
    t = changes.pop("truth", truth() if truth_ is None else truth_)
    names = tuple(f"clip-{i}" for i in range(len(t)))
    rounded = t * (1 + floor) if isinstance(floor, float) else floor
    return Reference(names, t, rounded, changes.pop("batched", rounded))


def judged(ref, *runs, precision="fp32", **options):
    return judge(ref, runs, runtime="fake", device="cpu", precision=precision, **options)


# --- judge: tolerance


@pytest.mark.parametrize(("times", "verdict"), [(0.0, "pass"), (3.9, "pass"), (4.1, "fail")])
def test_the_error_may_be_four_times_the_floor(times, verdict):
    assert FLOOR_FACTOR == 4
    parity = judged(reference(), truth() * (1 + times * FLOOR))
    assert parity.verdict == verdict
    assert parity.tolerance == pytest.approx(4 * FLOOR, rel=1e-3)
    assert parity.rel_l2 == pytest.approx(times * FLOOR, rel=1e-3)


@pytest.mark.parametrize("precision", TINY)
def test_without_a_floor_a_tiny_error_is_allowed(precision):
    tiny = TINY[precision]
    ref = reference(floor=0.0)
    assert judged(ref, truth() * (1 + 0.9 * tiny), precision=precision).verdict == "pass"
    assert judged(ref, truth() * (1 + 1.1 * tiny), precision=precision).verdict == "fail"


def test_the_constants_are_those_of_the_design():
    assert TINY == {"fp64": 1e-9, "fp32": 1e-6, "fp16": 2e-3, "bf16": 1.6e-2, "int8": 1.6e-2}
    assert ILL_CONDITIONED == 1e-3


@pytest.mark.parametrize(("margin", "verdict"), [(1e-15, "pass"), (1e-7, "fail")])
def test_equal_classes_have_no_order_that_a_structure_could_miss(margin, verdict):
    """Its floor is 0, and a truth in float64 is rounded too."""
    t = truth()
    t[:, 0] = t[:, 1] = 3.0
    other = t.copy()
    t[:, 0] += margin
    other[:, 1] += margin
    ref = reference(t, floor=0.0)
    assert judged(ref, other, precision="fp64").verdict == verdict
    task = {"truth": t - t[:, :1], "floor": t - t[:, :1]}  # and logits of 0 no sign
    signs = Reference(NAMES, *task.values(), task["floor"], task="multi-label")
    assert judged(signs, task["truth"] - margin, precision="fp64").verdict == verdict


@pytest.mark.parametrize(("step", "verdict"), [(3e-8, "pass"), (3e-3, "fail")])
@pytest.mark.parametrize("task", ["single-label", "multi-label"])
def test_a_margin_and_an_error_of_short_logits_have_the_same_measure(task, step, verdict):
    """Logits that nearly cancel: their margin is large beside them, and small beside the floor."""
    t = np.random.default_rng(0).standard_normal((INPUTS, 2))
    middle = 0.007 if task == "single-label" else 0.0
    t[3] = middle + step / 2, middle - step / 2
    other = t.copy()
    other[3] = t[3, ::-1]
    ref = Reference(NAMES, t, t * (1 + 3e-7), t * (1 + 3e-7), task=task)
    assert judged(ref, other).verdict == verdict


@pytest.mark.parametrize("place", range(INPUTS))
def test_one_wrong_input_at_any_place_fails(place):
    wrong = truth()
    wrong[place] *= 1 + 1e-4
    parity = judged(reference(), wrong)
    assert parity.verdict == "fail"
    assert f"clip-{place}" in parity.reason
    assert parity.rel_l2 == pytest.approx(1e-4, rel=1e-3)
    assert parity.per_input[place].rel_l2 == parity.rel_l2


@pytest.mark.parametrize(("times", "verdict"), [(3.9, "pass"), (4.1, "fail")])
def test_one_input_above_the_tolerance_fails_where_all_others_are_exact(times, verdict):
    wrong = truth()
    wrong[2] *= 1 + times * FLOOR
    parity = judged(reference(), wrong)
    assert parity.verdict == verdict
    assert parity.reason.startswith("clip-2: error 4.1e-06 above") == (verdict == "fail")


@pytest.mark.parametrize(("times", "verdict"), [(1.9, "pass"), (2.1, "fail")])
def test_two_runs_within_the_tolerance_may_differ_by_no_more_than_it(times, verdict):
    runs = [truth(), truth()]
    for run, sign in zip(runs, (1, -1), strict=True):
        run[2] *= 1 + sign * times * FLOOR
    parity = judged(reference(), *runs)
    assert parity.rel_l2 < parity.tolerance
    assert parity.verdict == verdict
    assert ("depend on the clips beside it" in parity.reason) == (verdict == "fail")


@pytest.mark.parametrize("place", range(3))
def test_one_wrong_run_fails(place):
    runs = [truth() for _ in range(3)]
    runs[place][2] *= 1 + 1e-4
    assert judged(reference(), *runs).verdict == "fail"


def test_swapped_clips_fail():
    assert judged(reference(), truth()[::-1]).verdict == "fail"


@pytest.mark.parametrize(
    ("output", "truth", "expected"),
    [([0, 0], [0, 0], 1.0), ([0, 0], [3, 4], 0.0), ([3, 4], [0, 0], 0.0), ([6, 8], [3, 4], 1.0)],
)
def test_a_row_of_zeros_is_at_a_right_angle_to_every_other_row(output, truth, expected):
    assert cosine(np.float32(output), np.float64(truth)) == pytest.approx(expected)


def test_a_parity_contains_the_worst_value_of_every_figure():
    wrong = truth()
    wrong[3] += [0.0, 0.25, 0.0, 0.0, 0.0]
    wrong[5] = -wrong[5]
    parity = judged(reference(), wrong)
    assert parity.inputs == len(parity.per_input) == INPUTS
    assert parity.rel_l2 == pytest.approx(2.0)
    assert parity.cosine == pytest.approx(-1.0)
    assert parity.max_abs == pytest.approx(max(0.25, 2 * np.abs(wrong[5]).max()))
    assert parity.top1_agreement <= 1 - 1 / INPUTS
    assert parity.floor_rel_l2 == pytest.approx(FLOOR, rel=1e-3)
    assert (parity.runtime, parity.device, parity.precision) == ("fake", "cpu", "fp32")


# --- judge: ill-conditioned models


@pytest.mark.parametrize("candidate", [1.0, 2.0, -1.0], ids=["exact", "double", "negative"])
def test_a_large_floor_is_ill_conditioned_for_any_candidate(candidate):
    parity = judged(reference(floor=1.1e-3), candidate * truth())
    assert parity.verdict == "ill-conditioned"
    assert "1.1e-03" in parity.reason


def test_a_floor_just_below_the_limit_is_judged():
    assert judged(reference(floor=0.9e-3), truth()).verdict == "pass"
    assert judged(reference(floor=0.9e-3), truth() * 1.1).verdict == "fail"


@pytest.mark.parametrize("place", [0, INPUTS - 1])
def test_one_ill_conditioned_input_makes_the_parity_ill_conditioned(place):
    rounded = truth() * (1 + FLOOR)
    rounded[place] *= 1.01
    assert judged(reference(floor=rounded), truth()).verdict == "ill-conditioned"


# --- judge: NaN and Inf


@pytest.mark.parametrize("place", [0, 3, INPUTS - 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["candidate", "second run", "truth", "floor", "batched"])
def test_nan_or_inf_at_any_place_fails(where, value, place):
    broken = truth() * (1 + FLOOR)
    broken[place, 1] = value
    changed = {where: broken} if where in ("truth", "floor", "batched") else {}
    runs = {"candidate": [broken], "second run": [truth(), broken]}.get(where, [truth()])
    with np.errstate(invalid="ignore"):
        parity = judged(reference(**changed), *runs)
    assert parity.verdict == "fail"
    assert "NaN or Inf" in parity.reason


def test_one_nan_input_makes_all_figures_nan():
    broken = truth()
    broken[4] = np.nan
    parity = judged(reference(), broken)
    assert np.isnan(parity.rel_l2)
    assert np.isnan(parity.max_abs)
    assert np.isnan(parity.cosine)


def test_a_nan_truth_and_an_equal_nan_candidate_fail():
    broken = np.full((INPUTS, CLASSES), np.nan)
    assert judged(reference(broken), broken).verdict == "fail"


# --- judge: comparing nothing


def test_comparing_nothing_fails():
    nothing = np.empty((0, CLASSES))
    parity = judged(Reference((), nothing, nothing, nothing), nothing)
    assert parity.verdict == "fail"
    assert parity.inputs == 0
    assert "compared 0 inputs" in parity.reason


def test_too_few_inputs_fail():
    t = truth(INPUTS - 1)
    parity = judged(reference(t), t)
    assert parity.verdict == "fail"
    assert parity.reason == "compared 7 inputs, needs at least 8"
    assert judged(reference(t), t, min_inputs=7).verdict == "pass"


def test_a_runtime_without_runs_is_an_error():
    with pytest.raises(ValueError, match=r".+"):
        judged(reference())


@pytest.mark.parametrize("shape", [(INPUTS, 1), (INPUTS, CLASSES + 1), (INPUTS - 1, CLASSES)])
def test_logits_of_another_shape_are_never_compared(shape):
    with pytest.raises(ValueError, match="logits differ in shape"):
        judged(reference(np.ones((INPUTS, CLASSES))), np.ones(shape))


@pytest.mark.parametrize("short", range(3))
def test_the_parts_of_a_reference_must_have_one_shape(short):
    parts = [truth(INPUTS - (part == short)) for part in range(3)]
    with pytest.raises(ValueError, match="differ in shape"):
        Reference(NAMES, *parts)


# --- judge: top-1 and top-5


def two_close_classes(distance):
    """Make logits whose first two classes differ by `distance` x the norm, in every row."""
    t = np.array([3.0, 3.0, -1.0, 0.5, 0.0])
    t[0] += distance * np.linalg.norm(t)
    return np.outer(np.arange(1.0, INPUTS + 1), t)  # rows differ in scale only


def flipped(t, row=2):
    """Swap the first two classes of one row."""
    other = t.copy()
    other[row, :2] = other[row, 1::-1]
    return other


def test_another_top_1_passes_only_within_the_floor():
    within, outside = two_close_classes(0.9 * FLOOR), two_close_classes(1.1 * FLOOR)
    forgiven = judged(reference(within), flipped(within))
    assert forgiven.verdict == "pass"
    assert forgiven.top1_agreement == 1 - 1 / INPUTS
    refused = judged(reference(outside), flipped(outside))
    assert refused.rel_l2 < refused.tolerance  # the error alone passes
    assert refused.verdict == "fail"
    assert refused.reason == "top-1 differs on clip-2"


def test_another_top_1_in_one_run_fails():
    t = two_close_classes(1.1 * FLOOR)
    assert judged(reference(t), t, flipped(t)).verdict == "fail"


def test_top_5_is_compared_as_a_set():
    t = np.tile(np.arange(10.0, 0.0, -1.0), (INPUTS, 1))
    moved = t.copy()
    moved[:, 4], moved[:, 5] = t[:, 5], t[:, 4]
    assert judged(reference(t), moved).top5_agreement == pytest.approx(4 / 5)
    assert judged(reference(t), t).top5_agreement == 1.0


def test_a_model_of_one_class_is_judged_by_its_error_alone():
    t = truth(classes=1)
    assert judged(reference(t), t).verdict == "pass"
    assert judged(reference(t), t * (1 + 1e-4)).verdict == "fail"


def test_an_input_with_zero_truth_requires_zeros():
    t = truth()
    t[3] = 0.0
    assert judged(reference(t), t).verdict == "pass"
    almost = t.copy()
    almost[3, 0] = 1e-12
    assert judged(reference(t), almost).verdict == "fail"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_logits_that_do_not_depend_on_the_input_fail(value):
    t = np.full((INPUTS, CLASSES), value)
    parity = judged(reference(t), t)
    assert parity.verdict == "fail"
    assert "do not depend on the input" in parity.reason


@pytest.mark.parametrize(("spread", "verdict"), [(1e-5, "pass"), (1e-6, "fail")])
def test_logits_must_spread_by_more_than_the_tolerance(spread, verdict):
    t = np.ones((INPUTS, CLASSES))
    t[0] += spread
    parity = judged(reference(t), t)
    assert parity.tolerance == pytest.approx(4e-6, rel=1e-3)
    assert parity.verdict == verdict


# --- relative_error


def test_the_spread_of_logits_is_their_distance_from_the_mean():
    assert relative_spread(np.array([[1.0], [3.0]])) == pytest.approx(1.0)
    assert relative_spread(np.array([[3.0], [1.0]])) == pytest.approx(1.0)


def test_the_relative_error_is_the_distance_over_the_norm_of_the_truth():
    assert relative_error(np.array([3.0, 5.0]), np.array([3.0, 4.0])) == pytest.approx(0.2)
    assert relative_error(np.zeros(2), np.array([3.0, 4.0])) == 1.0
    assert relative_error(np.zeros(2), np.zeros(2)) == 0.0
    assert relative_error(np.array([1e-30, 0.0]), np.zeros(2)) == np.inf
    assert np.isnan(relative_error(np.array([np.nan, 1.0]), np.zeros(2)))
    assert np.isnan(relative_error(np.array([np.nan, 1.0]), np.ones(2)))


def test_the_relative_error_is_computed_in_float64():
    t = np.array([1.0 + 1e-12, 1.0])
    assert relative_error(t.astype(np.float32), t) == pytest.approx(7.1e-13, rel=1e-2)
    large = np.full(4, 1e30, np.float32)  # its square overflows float32
    assert relative_error(large, large.astype(np.float64)) == 0.0


# --- validate: clips in one batch


class Linear:
    """A runtime that computes `W x`; `fault` changes the logits of a batch."""

    name, device, precision, threads, transfers_included = "fake", "cpu", "fp32", 1, True

    def __init__(self, fault=lambda logits: logits):
        self.fault, self.seen = fault, []

    def run(self, inputs):
        video = inputs["video"]
        assert video.flags.c_contiguous
        self.seen.append([int(clip.flat[0]) for clip in video])
        x = video.reshape(len(video), -1).astype(np.float64)
        weights = np.random.default_rng(1).standard_normal((x.shape[1], CLASSES))
        return {"logits": self.fault(x @ weights)}


def clips(count=INPUTS):
    """Make noise clips, `video` `(n, f, c, h, w)`; the first pixel of a clip is its index."""
    made = np.random.default_rng(2).standard_normal((count, 2, 1, 2, 2))
    made[:, 0, 0, 0, 0] = np.arange(count)
    return {"video": made}


def validated(runner, batches, count=INPUTS):
    names = [f"clip-{i}" for i in range(count)]
    ref = make_reference(Linear(), Linear(), names, clips(count))
    return validate(runner, ref, clips(count), batches)[0]


@pytest.mark.parametrize("batches", [[1], [2], [3], [5], [8], [16], [1, 2, 3, 20]])
def test_a_correct_runtime_passes_at_every_batch(batches):
    parity = validated(Linear(), batches)
    assert parity.verdict == "pass"
    assert parity.rel_l2 == pytest.approx(0, abs=1e-12)
    assert parity.inputs == INPUTS


def coupled(logits):
    return logits + 1e-3 * logits.mean(axis=0)


def of_the_neighbour(logits):
    return logits + 1e-3 * np.roll(logits, 1, axis=0) * (len(logits) > 1)


def test_a_runtime_that_couples_clips_of_a_batch_fails():
    assert (
        validated(Linear(of_the_neighbour), [1]).verdict == "pass"
    )  # a batch of 1 has no neighbours
    for fault in (coupled, of_the_neighbour):
        parity = validated(Linear(fault), [1, 2])
        assert parity.verdict == "fail"
        assert parity.batch_invariance_rel_l2 > 1e-4


def test_a_model_that_couples_clips_fails():
    names = [f"clip-{i}" for i in range(INPUTS)]
    ref = make_reference(Linear(), Linear(of_the_neighbour), names, clips())
    (parity,) = validate(Linear(), ref, clips(), [1])
    assert parity.verdict == "fail"
    assert "beside it" in parity.reason


def test_rows_in_the_wrong_order_fail():
    parity = validated(Linear(lambda logits: logits[::-1]), [2])
    assert parity.verdict == "fail"


@pytest.mark.parametrize("batch", [2, 3, 8, 16, 20])
def test_a_single_wrong_row_of_a_batch_fails(batch):
    for row in range(batch):

        def one_wrong(logits, row=row):
            logits[row] *= 1.01
            return logits

        assert validated(Linear(one_wrong), [batch]).verdict == "fail", f"row {row} of {batch}"


def test_one_wrong_batch_size_fails():
    def only_at_three(logits):
        return logits * (1.01 if len(logits) == 3 else 1.0)

    assert validated(Linear(only_at_three), [1, 2]).verdict == "pass"
    assert validated(Linear(only_at_three), [1, 2, 3]).verdict == "fail"


def test_every_clip_is_run_in_both_orders_beside_others_and_four_twice_alone():
    runner = Linear()
    validated(runner, [1, 3])
    one, three = runner.seen[: INPUTS + PAIRED], runner.seen[INPUTS + PAIRED :]
    assert one == [[i] for i in (*range(INPUTS), 3, 2, 1, 0)]
    assert three == [[0, 1, 2], [3, 4, 5], [6, 7, 0], [7, 6, 5], [4, 3, 2], [1, 0, 7]]


def test_a_parity_names_its_runtime():
    runner = Linear()
    runner.name, runner.device, runner.precision = "other", "cuda:0", "fp16"
    parity = validated(runner, [1])
    assert (parity.runtime, parity.device, parity.precision) == ("other", "cuda:0", "fp16")
    assert parity.tolerance == TINY["fp16"]


# --- run_clips


@pytest.mark.parametrize("batch", [1, 2, 3, 8, 11])
def test_logits_have_the_order_of_the_clips(batch):
    alone = run_clips(Linear(), clips(), 1)
    np.testing.assert_allclose(run_clips(Linear(), clips(), batch), alone, rtol=1e-12)


def test_the_last_batch_is_padded_with_the_first_clips():
    runner = Linear()
    run_clips(runner, clips(4), 3)
    assert runner.seen == [[0, 1, 2], [3, 0, 1]]


def test_the_floor_runs_clips_alone_and_four_in_pairs():
    floor = Linear()
    make_reference(Linear(), floor, NAMES, clips())
    assert floor.seen == [[i] for i in range(INPUTS)] + [[0, 1], [2, 3]]


def test_a_reference_of_lower_precision_still_tells_the_float32_floor():
    whole = make_reference(Linear(), Linear(lambda y: y * (1 + 1e-6)), NAMES, clips())
    lower = Linear(lambda y: y * (1 + 5e-3))  # above the limit of float32
    reference = with_lower_floor(whole, lower, clips())
    assert worst_error(reference.floor, reference.truth) == pytest.approx(5e-3)
    assert worst_error(reference.fp32, reference.truth) == pytest.approx(1e-6)
    assert validate(lower, reference, clips(), [1])[0].verdict == "pass"


# --- judge: answers by what the logits mean


def with_task(task, changed):
    """Judge logits of which one is moved by a relative distance, far below the tolerance."""
    t = np.tile(np.linspace(-1, 1, CLASSES), (INPUTS, 1)) + 0.01 * truth()
    t[3, 2] = changed[0] * np.linalg.norm(t[3])
    run = t.copy()
    run[3, 2] = changed[1] * np.linalg.norm(t[3])
    rounded = t * (1 + FLOOR)
    return judged(Reference(NAMES, t, rounded, rounded, task=task), run)


def test_a_label_that_changes_its_sign_fails_where_rounding_cannot_change_it():
    parity = with_task("multi-label", (1.5 * FLOOR, -1.5 * FLOOR))
    assert parity.rel_l2 < parity.tolerance
    assert parity.verdict == "fail"
    assert parity.reason == "the sign of a logit differs on clip-3"
    assert parity.sign_agreement == pytest.approx(1 - 1 / (INPUTS * CLASSES))
    assert parity.top1_agreement is None


def test_a_label_within_rounding_may_change_its_sign():
    parity = with_task("multi-label", (0.4 * FLOOR, -0.4 * FLOOR))
    assert parity.verdict == "pass"
    assert parity.sign_agreement < 1


@pytest.mark.parametrize("task", ["single-label", "regression"])
def test_signs_say_nothing_about_classes_and_values(task):
    parity = with_task(task, (1.5 * FLOOR, -1.5 * FLOOR))
    assert parity.verdict == "pass"
    assert parity.sign_agreement is None


def test_values_have_no_top_1_class():
    t = np.ones((INPUTS, 2)) + 0.01 * truth(classes=2)
    t[:, 1] = t[:, 0] * (1 + 1.5 * FLOOR)
    swapped = t[:, ::-1].copy()
    rounded = t * (1 + FLOOR)
    by_class = judged(Reference(NAMES, t, rounded, rounded), swapped)
    by_value = judged(Reference(NAMES, t, rounded, rounded, task="regression"), swapped)
    assert (by_class.verdict, by_value.verdict) == ("fail", "pass")
    assert by_class.reason.startswith("top-1 differs")
    assert by_value.top1_agreement is None


def test_values_that_nearly_cancel_are_judged_by_half_the_median_length():
    t = np.array([[3.0, 4.0], [4.0, 3.0], [0.03, -0.04]])
    y = t + np.array([[0.0, 0.0], [0.0, 0.0], [0.005, 0.0]])
    assert worst_error(y, t) == pytest.approx(0.005 / 2.5)
    assert worst_error(y[2:], t[2:]) == pytest.approx(0.005 / 0.05)  # nothing longer beside it
