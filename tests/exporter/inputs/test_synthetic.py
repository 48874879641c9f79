import zlib

import numpy as np
import pytest

from exporter.inputs.synthetic import CELL, CONTRAST, synthetic_inputs

SHAPE = (3, 2, 33, 47)
CHECKSUMS = {
    "constant": 1973901343,
    "constant-per-frame": 669635148,
    "checkerboard": 3902793962,
    "moving-gradient": 962995098,
}
NORMAL = [0.1257302165031433, -0.13210485875606537, 0.6404226422309875, 0.10490011423826218]


def test_there_are_eight_named_clips_of_the_requested_shape():
    clips = synthetic_inputs(*SHAPE)
    assert len(clips) == len({name for name, _ in clips}) == 8
    for name, clip in clips:
        assert clip.shape == SHAPE, name
        assert clip.dtype == np.float32, name
        assert clip.flags.c_contiguous, name
        assert clip.flags.writeable, name
        assert np.isfinite(clip).all(), name


def test_no_two_clips_are_equal():
    clips = [clip for _, clip in synthetic_inputs(*SHAPE)]
    for i, clip in enumerate(clips):
        assert all(np.abs(clip - other).max() > 0.1 for other in clips[:i])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first = dict(synthetic_inputs(*SHAPE, seed=7))
    again = dict(synthetic_inputs(*SHAPE, seed=7))
    other = dict(synthetic_inputs(*SHAPE, seed=8))
    for name, clip in first.items():
        assert clip.tobytes() == again[name].tobytes()
    for name in ("normal-0", "normal-1", "normal-2", "constant", "constant-per-frame"):
        assert not np.array_equal(first[name], other[name]), name


def test_two_calls_share_no_memory():
    name, clip = synthetic_inputs(*SHAPE)[0]
    clip[:] = 0
    assert dict(synthetic_inputs(*SHAPE))[name].any()


def test_the_values_are_the_same_on_every_machine():
    clips = dict(synthetic_inputs(2, 3, 16, 16))
    # These clips use uniform draws and arithmetic only, so their bytes are the same everywhere.
    # Normal draws use libm's logarithm, which may differ between machines.
    exact = ("constant", "constant-per-frame", "checkerboard", "moving-gradient")
    found = {name: zlib.crc32(clips[name].astype("<f4").tobytes()) for name in exact}
    assert found == CHECKSUMS
    np.testing.assert_allclose(clips["normal-0"].flat[:4], NORMAL, rtol=1e-6)


def test_the_random_clips_are_standard_normal():
    clips = dict(synthetic_inputs(5, 3, 64, 64))
    for name in ("normal-0", "normal-1", "normal-2"):
        assert abs(clips[name].mean()) < 0.02
        assert abs(clips[name].std() - 1) < 0.02


def test_constant_clips_have_one_value_per_clip_or_per_frame_and_channel():
    clips = dict(synthetic_inputs(*SHAPE))
    assert np.ptp(clips["constant"]) == 0
    assert clips["constant"].flat[0] != 0  # with zeros, errors of the projection would not show
    assert np.ptp(clips["constant-per-frame"], axis=(2, 3)).max() == 0
    assert len(np.unique(clips["constant-per-frame"])) == SHAPE[0] * SHAPE[1]


@pytest.mark.parametrize("patch", [14, 16, 32])
def test_neighbouring_patches_of_the_checkerboard_differ(patch):
    board = dict(synthetic_inputs(2, 1, 2 * patch, 2 * patch))["checkerboard"]
    assert set(np.unique(board)) == {-CONTRAST, CONTRAST}
    assert np.array_equal(board[0], -board[1])
    assert board[0, 0, 0, 0] == board[0, 0, CELL - 1, CELL - 1] == -board[0, 0, 0, CELL]
    left, right, below = (
        board[0, 0, :patch, :patch],
        board[0, 0, :patch, patch:],
        board[0, 0, patch:],
    )
    assert not np.array_equal(left, right)
    assert not np.array_equal(left, below[:, :patch])


def test_the_gradient_moves_and_differs_between_height_and_width():
    clip = dict(synthetic_inputs(4, 3, 32, 32))["moving-gradient"]
    assert clip.min() >= -2
    assert clip.max() <= 2
    for axis in range(4):
        assert np.abs(np.diff(clip, axis=axis)).max() > 0.05, f"constant along axis {axis}"
    assert np.abs(clip - clip.swapaxes(2, 3)).max() > 0.1


def test_the_square_crosses_the_whole_clip():
    clip = dict(synthetic_inputs(5, 3, 48, 64))["moving-square"]
    corners = [np.argwhere(frame[0] == 3.0) for frame in clip]
    assert corners[0].min(axis=0).tolist() == [0, 0]
    assert corners[-1].max(axis=0).tolist() == [47, 63]
    assert len({tuple(found.min(axis=0)) for found in corners}) == 5


def test_a_single_tiny_frame_is_allowed():
    for name, clip in synthetic_inputs(1, 1, 1, 1):
        assert clip.shape == (1, 1, 1, 1), name
        assert np.isfinite(clip).all(), name
