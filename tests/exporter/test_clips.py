import numpy as np
import pytest

from exporter.clips import Inputs, gather_inputs
from exporter.errors import VideoError
from exporter.inputs import synthetic_inputs
from model.config import FastTimeSformerConfig, Preprocessing

CONFIG = FastTimeSformerConfig(3, 3, 32, 48, 2)
PLAIN = Preprocessing.unit(3)


def test_without_clips_there_is_the_synthetic_set():
    inputs = gather_inputs([], CONFIG, PLAIN)
    expected = synthetic_inputs(3, 3, 32, 48)
    assert inputs.names == tuple(name for name, _ in expected)
    assert set(inputs.notes) == {"synthetic"}
    assert inputs.clips.shape == (8, 3, 3, 32, 48)
    assert inputs.clips.dtype == np.float32
    for clip, (_, wanted) in zip(inputs.clips, expected, strict=True):
        np.testing.assert_array_equal(clip, wanted)


def test_real_clips_come_first_and_are_told_of(real_clips):
    told = []
    paths = [real_clips["carphone"], real_clips["bikes"]]
    inputs = gather_inputs(paths, CONFIG, PLAIN, told.append)
    assert told == [path.name for path in paths]
    assert inputs.names[:2] == ("carphone_pristine.mp4", "bikes.mp4")
    assert len(inputs.names) == len(inputs.notes) == len(inputs.clips) == 10
    assert all("resized and cropped to 32x48" in note for note in inputs.notes[:2])
    real = inputs.clips[:2]
    assert real.min() >= 0
    assert real.max() <= 1
    assert real.std() > 0.05
    assert not np.array_equal(real[0], real[1])


def test_clips_are_normalised_as_the_model_asks(real_clips):
    half = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    (plain, other) = (gather_inputs([real_clips["bikes"]], CONFIG, p).clips for p in (PLAIN, half))
    np.testing.assert_allclose(other[0], (plain[0] - 0.5) / 0.25, atol=1e-5)
    np.testing.assert_array_equal(other[1:], plain[1:])  # the synthetic ones are as they are


def test_a_model_of_one_channel_gets_gray_clips(real_clips):
    config = FastTimeSformerConfig(3, 1, 32, 48, 2)
    inputs = gather_inputs([real_clips["bikes"]], config, Preprocessing.unit(1))
    assert inputs.clips.shape == (9, 3, 1, 32, 48)


def test_a_clip_that_cannot_be_read_ends_it(tmp_path):
    with pytest.raises(VideoError, match=r"none\.mp4"):
        gather_inputs([tmp_path / "none.mp4"], CONFIG, PLAIN)


@pytest.mark.parametrize(("size", "expected"), [(1, [0]), (3, [0, 1, 2]), (5, [0, 1, 2, 0, 1])])
def test_a_batch_starts_again_where_clips_run_out(size, expected):
    clips = np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1, 1)
    batch = Inputs(("a", "b", "c"), ("", "", ""), clips).batch(size)
    assert batch.ravel().tolist() == expected
    assert batch.flags.c_contiguous
