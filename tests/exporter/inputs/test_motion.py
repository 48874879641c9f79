import re
import subprocess
import sys

import numpy as np
import pytest

from exporter.errors import UsageError
from exporter.inputs.motion import DIRECTIONS, MOTION_LABELS, SPEEDS, motion_clips

SIZE = {"frames": 5, "height": 32, "width": 32}
CHANCE = 1 / len(MOTION_LABELS)


def least_squares_accuracy(features, labels):
    """Fit a linear classifier on the first three quarters; return its accuracy on the last."""
    features = np.concatenate((features, np.ones((len(features), 1))), axis=1)
    cut = 3 * len(labels) // 4
    weights = np.linalg.lstsq(features[:cut], np.eye(len(MOTION_LABELS))[labels[:cut]], rcond=None)
    return np.mean((features[cut:] @ weights[0]).argmax(1) == labels[cut:])


def best_shift(first, second):
    """Return the rows and columns by which the shapes move from the first frame to the second.

    Both frames are `(c, h, w)`.
    """
    spectra = [np.fft.fft2(frame) for frame in (first, second)]
    product = (spectra[1] * spectra[0].conj()).sum(0)
    for rows in (slice(3), slice(-2, None)):  # the still background has at most two waves a side
        for columns in (slice(3), slice(-2, None)):
            product[rows, columns] = 0
    match = np.fft.ifft2(product).real
    places = np.array(np.unravel_index(match.argmax(), match.shape))
    half = np.array(match.shape) // 2
    return (places + half) % match.shape - half


@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 47), (16, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_clips_are_pixels_of_the_requested_size(height, width, channels):
    clips, labels = motion_clips(16, 3, height, width, seed=1, channels=channels)

    assert clips.shape == (16, 3, channels, height, width)
    assert clips.dtype == np.float32
    assert clips.min() >= 0
    assert clips.max() <= 1
    assert clips.std(axis=(-2, -1)).min() > 0.02  # every frame shows something
    assert labels.dtype == np.int64


def test_labels_cycle_through_every_direction_at_every_speed():
    _, labels = motion_clips(20, 2, 16, 16, seed=0)

    assert len(set(MOTION_LABELS)) == 8
    assert MOTION_LABELS[:3] == ("left slow", "left fast", "right slow")
    assert labels.tolist() == [i % 8 for i in range(20)]


def test_the_same_seed_gives_the_same_clips_and_another_seed_others():
    first, again = (motion_clips(8, **SIZE, seed=3)[0] for _ in range(2))
    other, _ = motion_clips(8, **SIZE, seed=4)

    assert np.array_equal(first, again)
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_clip_does_not_depend_on_count():
    few, _ = motion_clips(3, **SIZE, seed=5)
    many, _ = motion_clips(11, **SIZE, seed=5)

    assert np.array_equal(few, many[:3])
    assert len(np.unique(many[:, 0, 0, 0, 0])) > 1


@pytest.mark.parametrize(("height", "width"), [(64, 64), (60, 100)])
def test_shapes_move_with_the_velocity_of_their_label(height, width):
    clips, labels = motion_clips(64, 5, height, width, seed=6)
    right = 0
    for clip, label in zip(clips, labels, strict=True):
        way, speed = MOTION_LABELS[label].split()
        expected = np.array(DIRECTIONS[way]) * 4 * SPEEDS[speed] * (height, width)
        right += np.abs(best_shift(clip[0], clip[4]) - expected).max() <= 1.5

    assert right / len(labels) > 0.9


@pytest.mark.slow
def test_a_single_frame_does_not_tell_the_label_but_two_do():
    clips, labels = motion_clips(1600, 2, 16, 16, seed=7, channels=1)
    pooled = clips.reshape(len(clips), 2, 8, 2, 8, 2).mean((3, 5)).reshape(len(clips), 2, -1)
    products = [  # products of each pixel of the first frame with its neighbours in the second
        (clips[:, 0] * np.roll(clips[:, 1], shift, axes)).mean((1, 2, 3))
        for axes in (-2, -1)
        for shift in (-2, -1, 1, 2)
    ]

    for frame in (0, 1):
        features = np.concatenate((pooled[:, frame], pooled[:, frame] ** 2), axis=1)
        assert abs(least_squares_accuracy(features, labels) - CHANCE) < 0.06
    assert least_squares_accuracy(np.stack(products, axis=1), labels) > 2 * CHANCE


def test_the_statistics_of_a_frame_do_not_depend_on_the_label():
    clips, labels = motion_clips(1600, 3, 16, 16, seed=8, channels=1)
    means = clips.mean((2, 3, 4))  # n f
    for frame in means.T:
        groups = np.array([frame[labels == label] for label in range(len(MOTION_LABELS))])
        standard_error = groups.std() / np.sqrt(groups.shape[1])
        assert np.abs(groups.mean(1) - groups.mean()).max() < 4 * standard_error


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count of motion clips: got 0, expected a whole number of at least 1"),
        ({"frames": 1}, "frames of motion clips: got 1, expected a whole number of at least 2"),
        ({"height": 8}, "height of motion clips: got 8"),
        ({"width": 32.0}, "width of motion clips: got 32.0"),
        ({"channels": 0}, "channels of motion clips: got 0"),
        ({"seed": -1}, "seed of motion clips: got -1, expected a whole number of at least 0"),
        ({"count": True}, "count of motion clips: got True"),
        ({"seed": "1"}, "seed of motion clips: got '1'"),
    ],
)
def test_a_wrong_argument_is_refused_with_the_expected_range(wrong, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        motion_clips(**{"count": 1, **SIZE, "seed": 0, **wrong})


def test_making_motion_clips_does_not_import_torch():
    code = "import sys, exporter.inputs.motion; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
