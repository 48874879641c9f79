"""The frames of a clip are those of the published data loaders.

The functions `facebookresearch`, `something_something`, `mmaction2` and `frozen_in_time` compute
what those programs compute, in the floats of torch and numpy. The code under test computes in exact
fractions.
"""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch

from exporter.inputs.sampling import clip_indices
from model.config import ConfigError
from model.preprocessing import Preprocessing
from model.sampling import Sampling, Views

FRAMES, RATES = (1, 8, 16, 96), (1, 4, 32)
KINETICS = Sampling.parse("dense:1@30:window:start:clamp")
MMACTION2 = Sampling.parse("dense:1:steps:centre:loop")


def facebookresearch(count, frames, rate, clip=0, clips=1, fps=30.0):
    window = rate * frames / 30 * fps
    start = max(count - window, 0) * clip / clips
    places = torch.linspace(start, start + window - 1, frames)
    return tuple(torch.clamp(places, 0, count - 1).long().tolist())


def something_something(count, frames):
    segment = float(count - 1) / frames
    ends = [int(np.round(segment * i)) for i in range(frames + 1)]
    return tuple((a + b) // 2 for a, b in pairwise(ends))


def mmaction2(count, frames, rate):
    offset = max(count - ((frames - 1) * rate + 1), 0) // 2
    return tuple(np.mod(offset + np.arange(frames) * rate, count).tolist())


def frozen_in_time(count, frames):
    """It takes fewer frames of a file that has fewer: not compared."""
    edges = np.linspace(0, count, frames + 1).astype(int).tolist()
    return tuple((first + after - 1) // 2 for first, after in pairwise(edges))


def counts(frames, rate):
    """Every 7th count, and all counts where the window just fits into the file."""
    edge = frames * rate
    near = range(max(edge - 3, 1), min(edge + 4, 2001))
    return sorted({*range(1, 2001, 7), *near, 1999, 2000})


@pytest.mark.parametrize("frames", FRAMES)
class TestPublishedFormulas:
    @pytest.mark.parametrize("rate", RATES)
    @pytest.mark.parametrize("clips", [1, 3])
    def test_dense_window_is_kinetics_of_facebookresearch(self, frames, rate, clips):
        sampling = Sampling.parse(f"dense:{rate}@30", KINETICS)
        for count in counts(frames, rate):
            found = clip_indices(sampling, count, frames, clips, 30)
            assert found == tuple(
                facebookresearch(count, frames, rate, clip, clips) for clip in range(clips)
            ), count

    @pytest.mark.parametrize("fps", [15, 60])
    def test_dense_window_follows_the_frames_per_second_of_the_file(self, frames, fps):
        for count in range(1, 600, 13):
            found = clip_indices(Sampling.parse("dense:4@30", KINETICS), count, frames, 1, fps)
            assert found == (facebookresearch(count, frames, 4, fps=fps),)

    @pytest.mark.parametrize("rate", RATES)
    def test_dense_steps_is_the_test_pipeline_of_mmaction2(self, frames, rate):
        sampling = Sampling.parse(f"dense:{rate}", MMACTION2)
        for count in range(1, 2001):
            assert clip_indices(sampling, count, frames) == (mmaction2(count, frames, rate),)

    def test_uniform_middles_is_something_something(self, frames):
        for count in range(1, 2001):
            found = clip_indices(Sampling(rule="middles"), count, frames)
            assert found == (something_something(count, frames),)

    def test_uniform_medians_are_those_of_frozen_in_time(self, frames):
        for count in range(frames, 2001):
            found = clip_indices(Sampling(rule="medians"), count, frames)
            assert found == (frozen_in_time(count, frames),)

    def test_uniform_medians_of_a_short_file_are_frames_of_the_file(self, frames):
        for count in range(1, frames):
            (found,) = clip_indices(Sampling(rule="medians"), count, frames)
            assert set(found) == set(range(count))
            assert sorted(found) == list(found)

    def test_uniform_centres_are_the_middles_of_equal_segments(self, frames):
        for count in range(1, 2001):
            expected = tuple((2 * i + 1) * count // (2 * frames) for i in range(frames))
            assert clip_indices(Sampling(), count, frames) == (expected,)


@pytest.mark.slow
@pytest.mark.parametrize("frames", FRAMES)
def test_dense_window_is_kinetics_for_every_count_of_frames(frames):
    for rate in RATES:
        sampling = Sampling.parse(f"dense:{rate}@30", KINETICS)
        for count in range(1, 2001):
            expected = (facebookresearch(count, frames, rate),)
            assert clip_indices(sampling, count, frames, 1, 30) == expected


class TestWindow:
    @pytest.mark.parametrize(("place", "first"), [("start", 0), ("centre", 45), ("end", 90)])
    def test_the_window_lies_where_it_is_asked_to(self, place, first):
        sampling = Sampling.parse(f"dense:3:{place}")  # a window of 10 frames of 100
        assert clip_indices(sampling, 100, 4) == ((first, first + 3, first + 6, first + 9),)

    @pytest.mark.parametrize(
        ("past", "expected"), [("clamp", (0, 2, 4, 4)), ("loop", (0, 2, 4, 1))]
    )
    def test_past_the_end_frames_repeat_as_asked(self, past, expected):
        assert clip_indices(Sampling.parse(f"dense:2:{past}"), 5, 4) == (expected,)

    def test_three_clips_reach_from_the_start_to_the_end(self):
        starts = [clip[0] for clip in clip_indices(Sampling.parse("dense:3"), 100, 4, 3)]
        assert starts == [0, 45, 90]

    def test_three_uniform_clips_take_other_frames_of_the_same_segments(self):
        assert clip_indices(Sampling(), 12, 2, 3) == ((1, 7), (3, 9), (5, 11))
        medians = Sampling(rule="medians")
        assert clip_indices(medians, 14, 2, 3) == ((1, 8), (3, 10), (5, 12))

    @pytest.mark.parametrize("fps", [15, Fraction(30000, 1001), 60, 120])
    def test_steps_are_the_same_time_apart_at_every_rate_of_the_file(self, fps):
        (found,) = clip_indices(Sampling.parse("dense:4@30:start"), 2000, 8, 1, fps)
        times = np.array(found) / float(fps)
        assert np.abs(times - np.arange(8) * 4 / 30).max() <= 0.5 / float(fps) + 1e-9


class TestText:
    @pytest.mark.parametrize(
        "sampling",
        [
            Sampling(),
            Sampling(rule="middles"),
            Sampling("dense", rate=32, fps=30.0),
            Sampling("dense", "window", 4, 29.97, "start", "loop"),
            Sampling("dense", rate=2, fps=30000 / 1001),
            Sampling("dense", rate=1, fps=1e-5),
        ],
    )
    def test_the_text_of_a_sampling_gives_it_again(self, sampling):
        assert Sampling.parse(str(sampling)) == sampling

    @pytest.mark.parametrize("views", [Views(), Views(3, 1), Views(1, 3, "probabilities")])
    def test_the_text_of_views_gives_them_again(self, views):
        assert Views.parse(str(views)) == views

    def test_what_a_text_leaves_open_is_that_of_the_family(self):
        assert Sampling.parse("dense:32@30", KINETICS) == Sampling(
            "dense", "window", 32, 30.0, "start", "clamp"
        )
        assert Sampling.parse("dense:32", MMACTION2).past_end == "loop"
        assert Sampling.parse("uniform", MMACTION2) == Sampling()

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("dens:32@30", "did you mean 'dense'"),
            ("dense", "dense:32@30"),
            ("dense:x", "dense:32@30"),
            ("dense:0", "at least 1"),
            pytest.param(f"dense:{'9' * 5000}", "dense:32@30", id="long"),
            ("dense:4@0", "above 0"),
            ("dense:4:middle", "sampling: got 'middle' in 'dense:4:middle'"),
            ("uniform:window", "sampling: got 'window' in 'uniform:window'"),
        ],
    )
    def test_a_wrong_sampling_is_an_error_that_says_what_is_expected(self, text, part):
        with pytest.raises(ConfigError, match=part.replace("(", r"\(")):
            Sampling.parse(text)

    @pytest.mark.parametrize(
        "text",
        [
            "3",
            "0x1",
            "1x2",
            "axb",
            "1x3:votes",
            "101x1",
            pytest.param("9" * 5000 + "x1", id="long"),
        ],
    )
    def test_wrong_views_are_an_error(self, text):
        with pytest.raises(ConfigError, match="views"):
            Views.parse(text)


class TestSpacing:
    @pytest.mark.parametrize(
        ("text", "frames", "seconds"),
        [
            ("dense:32@30", 8, 32 / 30),
            ("dense:32@30:window", 8, 255 / 7 / 30),
            ("dense:4@15", 5, 4 / 15),
            ("dense:32", 8, None),
            ("uniform", 8, None),
        ],
    )
    def test_seconds_between_frames_follow_from_rate_and_frames_per_second(
        self, text, frames, seconds
    ):
        assert Sampling.parse(text).spacing(frames) == seconds

    def test_another_sampling_does_not_change_what_the_training_had(self):
        trained = Preprocessing(sampling=Sampling.parse("dense:32@30"), spacing=1.5)
        assert trained.changed({"sampling": "dense:1@30"}).training_spacing(8) == 1.5


class TestDescription:
    def test_a_description_of_an_older_version_reads_as_its_own_rule(self):
        old = {
            "mean": [0.5],
            "std": [0.25],
            "short_side": 40,
            "sampling": "uniform segment centres",
        }
        found = Preprocessing.from_dict(old)
        assert found == Preprocessing((0.5,), (0.25,), 40)
        assert found.sampling is None
        assert found.sampled == Sampling()

    @pytest.mark.parametrize("text", ["dense:16@30", " Dense:16@30"])
    def test_what_a_text_leaves_open_is_that_of_the_present_sampling(self, text):
        steps = Preprocessing(sampling=Sampling.parse("dense:32@30:steps:centre:loop"))
        assert str(steps.changed({"sampling": text}).sampling) == "dense:16@30:steps:centre:loop"

    @pytest.mark.parametrize(
        ("entries", "part"),
        [
            ({"sampling": {"kin": "dense"}}, "entry of sampling"),
            ({"sampling": 4}, "expected a text or a table"),
            ({"views": None}, "expected a text or a table"),
            ({"embedded": True}, "entry of clip"),
            ({"mean": 0.5}, "expected a list"),
            ({"interpolation": "nearest"}, "interpolation"),
            ({"stretch": 1}, "expected true or false"),
        ],
    )
    def test_a_wrong_entry_of_a_clip_table_is_an_error(self, entries, part):
        with pytest.raises(ConfigError, match=part):
            Preprocessing().changed(entries)

    def test_an_assumed_sampling_is_said_and_a_told_one_is_named(self):
        assert "assumed" in Preprocessing().sentences[0]
        told = Preprocessing(sampling=Sampling.parse("dense:32@30"))
        assert "dense:32@30" in told.sentences[0]
        assert "assumed" not in " ".join(told.sentences)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"mean": 0.5}, "mean must be numbers: got 0.5"),
        ({"std": None}, "std must be numbers: got None"),
        ({"sampling": "uniform"}, "sampling: got 'uniform', expected a Sampling"),
        ({"views": (1, 3)}, r"views: got \(1, 3\), expected Views"),
    ],
)
def test_a_preprocessing_of_other_types_is_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        Preprocessing(**wrong)
