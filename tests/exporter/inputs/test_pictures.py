"""Test the fixed clips that look like pictures: what each one shows, at any size."""

import zlib

import numpy as np
import pytest

from exporter.inputs.pictures import picture_inputs

SHAPE = (4, 3, 33, 47)
CHECKSUM = 1891192763


def pictures(*shape):
    return {name: clip for name, _, clip in picture_inputs(*shape)}


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 1), (1, 3, 3, 3), (2, 4, 15, 10)])
def test_they_fit_every_model(shape):
    made = picture_inputs(*shape)
    assert len(made) == len({name for name, *_ in made}) == 8
    for name, _, clip in made:
        assert clip.shape == shape, name
        assert clip.dtype == np.float32, name
        assert clip.flags.c_contiguous, name
        assert clip.min() >= 0, name
        assert clip.max() <= 1, name


def test_the_values_are_the_same_on_every_machine():
    joined = np.concatenate([clip.ravel() for clip in pictures(2, 3, 16, 16).values()])
    assert zlib.crc32(joined.astype("<f4").tobytes()) == CHECKSUM


def test_black_and_white_are_the_ends_of_the_pixels():
    made = pictures(*SHAPE)
    assert not made["black"].any()
    assert (made["white"] == 1).all()
    assert set(np.unique(made["extremes"])) == {0, 1}


def test_only_one_clip_is_not_of_pixels():
    assert [name for name, pixels, _ in picture_inputs(*SHAPE) if not pixels] == ["unit"]


def test_one_frame_is_zero_where_others_vary():
    clip = pictures(*SHAPE)["unit"]
    assert not clip[-1].any()
    assert clip[:-1].std() > 0.2


def test_one_frame_is_black_and_one_the_mean_of_the_others():
    clip = pictures(*SHAPE)["odd-frames"]
    assert [bool(frame.any()) for frame in clip] == [True, True, False, True]
    np.testing.assert_allclose(clip[0], clip[1:].mean(0), rtol=1e-5)


def test_large_details_of_a_natural_picture_have_more_contrast():
    picture = pictures(1, 1, 64, 64)["natural"][0, 0]
    blurred = picture.reshape(8, 8, 8, 8).mean((1, 3))
    assert blurred.std() > 0.5 * picture.std()  # of noise 0.125


def test_every_corner_of_every_frame_has_its_own_pattern():
    clip = pictures(*SHAPE)["places"]
    corners = [
        clip[f, :, y, x].tobytes()
        for f in range(SHAPE[0])
        for y in (slice(0, 3), slice(-3, None))
        for x in (slice(0, 3), slice(-3, None))
    ]
    assert len(set(corners)) == 4 * SHAPE[0]


def test_every_patch_is_lit_differently_in_each_frame():
    clip = pictures(3, 1, 64, 48)["lit-in-turn"]
    patches = clip.reshape(3, 4, 16, 3, 16).swapaxes(2, 3).reshape(36, -1)
    assert len({patch.tobytes() for patch in patches}) == 36
