import numpy as np
import pytest

from exporter.inputs.clips import Inputs, Taken
from exporter.inputs.video import as_input
from exporter.run.sheets import MOST_CLIPS, MOST_FRAMES, MOST_SIDE, as_shown, make_sheets
from model.preprocessing import Preprocessing

RNG = np.random.default_rng(0)


def pixels(frames=3, height=8, width=12, channels=3):
    return RNG.integers(0, 256, (frames, height, width, channels), np.uint8)


def as_video(shown, how):
    scaled = np.moveaxis(shown, -1, 1).astype(np.float32) / np.float32(255)
    return as_input(scaled[:, ::-1] if how.channel_order == "bgr" else scaled, how)


@pytest.mark.parametrize(
    "how",
    [
        Preprocessing(),
        Preprocessing((0.45, 0.4, 0.35), (0.225, 0.25, 0.2)),
        Preprocessing(embedded=True),
        Preprocessing(channel_order="bgr"),
    ],
)
def test_a_sheet_shows_the_pixels_before_the_preprocessing(how):
    shown = pixels()
    np.testing.assert_array_equal(as_shown(as_video(shown, how), how), shown)


def test_one_channel_is_shown_as_gray():
    shown = pixels(channels=1)
    how = Preprocessing.unit(1)
    np.testing.assert_array_equal(as_shown(as_video(shown, how), how), np.repeat(shown, 3, -1))


def test_a_sheet_has_the_number_and_the_time_of_each_frame():
    video = as_video(pixels(), Preprocessing())
    taken = (Taken((4, 9, 14), (0.16, 0.36, 0.56)),)
    inputs = Inputs(("a.mp4", "normal-0"), ("", ""), {"video": np.stack([video, video])}, taken)
    (sheet,) = make_sheets(inputs, Preprocessing())
    assert (sheet.clip, sheet.frames) == ("a.mp4", 3)
    assert sheet.captions == ("0.16 s, frame 4", "0.36 s, frame 9", "0.56 s, frame 14")


def test_a_page_stays_small():
    video = as_video(pixels(96, 200, 300), Preprocessing())
    taken = (Taken(tuple(range(96)), ()),) * (MOST_CLIPS + 2)
    names = ("a",) * len(taken)
    array = np.broadcast_to(video, (len(taken), *video.shape))
    sheets = make_sheets(Inputs(names, names, {"video": array}, taken), Preprocessing())
    assert len(sheets) == MOST_CLIPS
    assert {len(sheet.pixels) for sheet in sheets} == {MOST_FRAMES}
    assert max(side for p in sheets[0].pixels for side in p.shape) <= MOST_SIDE
    assert sheets[0].captions[0] == "frame 0"
    assert sheets[0].captions[-1] == "frame 95"
