import numpy as np
import pytest

from exporter.errors import VideoError
from exporter.inputs.clips import Inputs, gather_calibration, gather_inputs, proof_clips
from exporter.inputs.motion import motion_clips
from exporter.inputs.pictures import picture_inputs
from exporter.inputs.synthetic import synthetic_inputs
from model.config import FastTimeSformerConfig
from model.preprocessing import Preprocessing

CONFIG = FastTimeSformerConfig(3, 3, 32, 48, 2)
PLAIN = Preprocessing.unit(3)


def test_without_clips_the_inputs_are_the_synthetic_set():
    inputs = gather_inputs([], CONFIG, PLAIN)
    noise = synthetic_inputs(3, 3, 32, 48)
    pictures = [(name, clip) for name, _, clip in picture_inputs(3, 3, 32, 48)]
    expected = noise + pictures  # a unit preprocessing changes no pixel
    assert inputs.names == tuple(name for name, _ in expected)
    assert set(inputs.notes) == {"synthetic", "synthetic picture"}
    assert inputs.arrays["video"].shape == (16, 3, 3, 32, 48)
    assert inputs.arrays["video"].dtype == np.float32
    for clip, (_, wanted) in zip(inputs.arrays["video"], expected, strict=True):
        np.testing.assert_array_equal(clip, wanted)


def test_clips_chosen_by_name_have_the_values_of_the_whole_set():
    whole = {name: clip for name, _, clip in proof_clips(CONFIG, PLAIN)}
    names = ["unit", "normal-2", "no such clip"]
    some = {name: clip for name, _, clip in proof_clips(CONFIG, PLAIN, names)}
    assert set(some) == {"unit", "normal-2"}
    for name, clip in some.items():
        np.testing.assert_array_equal(clip, whole[name])


def test_real_clips_come_first_and_on_clip_gets_their_names(real_clips):
    told = []
    paths = [real_clips["carphone"], real_clips["bikes"]]
    inputs = gather_inputs(paths, CONFIG, PLAIN, on_clip=told.append)
    assert told == [path.name for path in paths]
    assert inputs.names[:2] == ("carphone_pristine.mp4", "bikes.mp4")
    assert len(inputs.names) == len(inputs.notes) == len(inputs.arrays["video"]) == 18
    assert all("resized and cropped to 32x48" in note for note in inputs.notes[:2])
    real = inputs.arrays["video"][:2]
    assert real.min() >= 0
    assert real.max() <= 1
    assert real.std() > 0.05
    assert not np.array_equal(real[0], real[1])


def test_real_clips_are_normalised_with_the_mean_and_std_of_the_model(real_clips):
    half = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    plain = gather_inputs([real_clips["bikes"]], CONFIG, PLAIN).arrays["video"]
    other = gather_inputs([real_clips["bikes"]], CONFIG, half).arrays["video"]
    np.testing.assert_allclose(other[0], (plain[0] - 0.5) / 0.25, atol=1e-5)
    np.testing.assert_array_equal(other[1:9], plain[1:9])  # the noise does not change
    np.testing.assert_allclose(other[9:11, 0, 0, 0, 0], [-2, 2])  # black and white


def test_a_model_of_one_channel_gets_gray_clips(real_clips):
    config = FastTimeSformerConfig(3, 1, 32, 48, 2)
    inputs = gather_inputs([real_clips["bikes"]], config, Preprocessing.unit(1))
    assert inputs.arrays["video"].shape == (17, 3, 1, 32, 48)


def test_an_unreadable_clip_raises_an_error_that_names_it(tmp_path):
    with pytest.raises(VideoError, match=r"none\.mp4"):
        gather_inputs([tmp_path / "none.mp4"], CONFIG, PLAIN)


@pytest.mark.parametrize(("size", "expected"), [(1, [0]), (3, [0, 1, 2]), (5, [0, 1, 2, 0, 1])])
def test_a_batch_repeats_from_the_first_clip_when_there_are_too_few(size, expected):
    clips = np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1, 1)
    masks = np.array([[True], [False], [True]])
    batch = Inputs(("a", "b", "c"), ("", "", ""), {"video": clips, "mask": masks}).batch(size)
    assert batch["video"].ravel().tolist() == expected
    assert batch["mask"].ravel().tolist() == [[True, False, True][i] for i in expected]
    assert batch["video"].flags.c_contiguous


def test_masks_keep_at_least_one_frame_and_all_frames_of_the_first_clip():
    inputs = gather_inputs([], CONFIG, PLAIN, mask=True)
    masks = inputs.arrays["mask"]
    assert masks.shape == (16, 3)
    assert masks.dtype == bool
    assert masks.any(axis=1).all()
    assert masks[0].all()
    assert not masks.all()
    assert inputs.shapes == {"video": (None, 3, 3, 32, 48), "mask": (None, 3)}


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 24, 8), (3, 15, 10), (2, 3, 3)])
def test_models_of_clips_too_small_for_the_motion_task_are_calibrated_on_cut_clips(
    frames, height, width
):
    config = FastTimeSformerConfig(frames, 3, height, width, 2, patch_size=1)
    video = gather_calibration((), config, PLAIN).arrays["video"]
    assert video.shape[1:] == (frames, 3, height, width)
    drawn, _ = motion_clips(1, max(frames, 2), max(height, 16), max(width, 16), seed=1)
    np.testing.assert_array_equal(video[0], drawn[0, :frames, :, :height, :width])


def test_calibration_has_the_kinds_of_the_proof_and_other_noise():
    config = FastTimeSformerConfig(2, 3, 32, 32, 2)
    proof, calibration = gather_inputs((), config, PLAIN), gather_calibration((), config, PLAIN)
    assert {"normal-0", "normal-1"} <= {*proof.names} & {*calibration.names}
    for name in ("normal-0", "normal-1"):
        ours, theirs = (inputs.chosen(name).arrays["video"] for inputs in (proof, calibration))
        assert np.abs(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]) < 0.1
