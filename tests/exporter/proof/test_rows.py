"""Test the rows by which outputs are judged: nothing is lost where an output is folded."""

import numpy as np
import pytest

from exporter.errors import RuntimeFailure
from exporter.proof.judge import make_reference, relative_error, validate
from exporter.proof.rows import (
    MOST_VALUES,
    around,
    columns,
    fold,
    in_batches,
    join_outputs,
    run_batches,
)
from exporter.runners.base import Closing

RANDOM = np.random.default_rng(0)
LARGE = RANDOM.normal(size=(2, 5, MOST_VALUES // 2 + 3))
NAMES = tuple(f"input-{i}" for i in range(8))


def test_a_small_output_is_laid_out_as_it_is():
    small = RANDOM.normal(size=(3, 4, 5)).astype(np.float32)
    assert np.array_equal(fold(small), small.reshape(3, 20))


def test_a_fold_keeps_the_relative_distance():
    other = LARGE + 1e-3 * RANDOM.normal(size=LARGE.shape)
    for i in range(2):
        truth = relative_error(other[i], LARGE[i])
        assert relative_error(fold(other)[i], fold(LARGE)[i]) == pytest.approx(truth, rel=0.03)


def test_a_fold_is_linear_and_keeps_the_type():
    assert fold(LARGE).shape == (2, MOST_VALUES)
    np.testing.assert_allclose(fold(2 * LARGE - 1), 2 * fold(LARGE) - fold(np.ones_like(LARGE)))
    assert fold(LARGE.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("place", [0, MOST_VALUES + 1, -1])
def test_every_value_counts_in_a_fold(place):
    changed = LARGE.copy()
    changed[0].reshape(-1)[place] += 10.0
    assert np.abs(fold(changed) - fold(LARGE)).max() == pytest.approx(10.0)
    for wrong in (np.nan, np.inf):
        changed[0].reshape(-1)[place] = wrong
        assert not np.isfinite(fold(changed)[0]).all()
        assert np.isfinite(fold(changed)[1]).all()


def test_rows_hold_the_outputs_in_the_wanted_order():
    outputs = {"tokens": np.ones((2, 3, 2)), "logits": np.zeros((2, 4))}
    rows = join_outputs(outputs, ("logits", "tokens"))
    assert columns((("logits", 4), ("tokens", 6))) == {
        "logits": slice(0, 4),
        "tokens": slice(4, 10),
    }
    assert np.array_equal(rows, np.array([[0.0] * 4 + [1.0] * 6] * 2))


@pytest.mark.parametrize(
    ("start", "size", "expected"),
    [(0, 2, [4, 0]), (2, 1, [2]), (2, 3, [2, 4, 0]), (5, 2, [2, 4]), (1, 7, [0, 2, 4, 0, 2, 4, 0])],
)
def test_the_first_clip_follows_the_last(start, size, expected):
    assert around([4, 0, 2], start, size) == expected


def test_clips_from_the_start_fill_up_the_last_batch():
    assert list(in_batches([4, 0, 2], 2)) == [[4, 0], [2, 4]]
    assert list(in_batches([], 2)) == []


class Two(Closing):
    """A runner with two outputs; `change` spoils one of them."""

    name, device, precision = "two", "cpu", "fp32"

    def __init__(self, dtype, change=None):
        self.dtype, self.change = dtype, change or (lambda outputs: outputs)

    def run(self, inputs):
        video = inputs["video"].astype(self.dtype)
        outputs = {"logits": video[:, :5], "tokens": video[:, 5:].reshape(len(video), 5, 3) * 100}
        return self.change(outputs)


CLIPS = {"video": RANDOM.normal(size=(8, 20)).astype(np.float32)}


def judged(change):
    reference = make_reference(Two(np.float64), Two(np.float32), NAMES, CLIPS, ("logits", "tokens"))
    return validate(Two(np.float32, change), reference, CLIPS, [1, 2])


def test_each_output_has_a_row_of_its_own():
    rows = judged(None)
    assert [(row.output, row.verdict) for row in rows] == [("logits", "pass"), ("tokens", "pass")]
    assert [row.top1_agreement for row in rows] == [1.0, None]


def test_a_wrong_output_fails_alone():
    # Beside tokens a hundred times as large, an error of the logits must not pass.
    for name, other in (("logits", "tokens"), ("tokens", "logits")):
        rows = judged(lambda outputs, name=name: outputs | {name: outputs[name] * 1.00001})
        verdicts = {row.output: row.verdict for row in rows}
        assert verdicts == {name: "fail", other: "pass"}


def test_an_output_that_depends_on_its_neighbours_fails():
    def mix(outputs):
        return outputs | {"tokens": outputs["tokens"] + 1e-4 * outputs["tokens"].mean(0)}

    logits, tokens = judged(mix)
    assert (logits.verdict, tokens.verdict) == ("pass", "fail")


def test_nan_in_an_output_fails_by_its_name():
    def spoil(outputs):
        tokens = outputs["tokens"].copy()
        tokens[0, 0, 0] = np.nan
        return outputs | {"tokens": tokens}

    assert [row.reason for row in judged(spoil)] == ["", "NaN or Inf among the tokens"]


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_runtime_that_gives_another_number_of_clips_fails(rows):
    class Other(Closing):
        name, device, precision, threads = "other", "cpu", "fp32", 1
        transfers_included = True

        @property
        def input_shapes(self):
            return {"video": (None, 4)}

        def run(self, inputs):
            return {"logits": np.ones((rows, 5))}

    with pytest.raises(RuntimeFailure, match="another number of clips"):
        run_batches(Other(), {"video": np.ones((2, 4))}, [[0, 1]])
