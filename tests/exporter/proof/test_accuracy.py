"""Test accuracy: counts, intervals computed by hand, and refusals of datasets that do not fit."""

from typing import Any, cast

import av
import numpy as np
import pytest
import torch
from av.video.stream import VideoStream

from exporter.errors import TsformerError, UsageError
from exporter.inputs.dataset import MOTION, Dataset, open_dataset
from exporter.inputs.motion import MOTION_LABELS
from exporter.inputs.video import normalise
from exporter.proof.accuracy import evaluate, predict, summarize
from exporter.runners.eager import EagerRunner
from model import FastTimeSformer
from model.preprocessing import Preprocessing

evaluated: Any = evaluate  # these tests pass stand-ins
CLASSES = ("cat", "dog", "horse")


class Fake:
    """A runtime whose top-1 class of a clip is its first pixel; `fault` changes the logits."""

    device, precision, threads, transfers_included = "cpu", "fp32", 1, True

    def __init__(self, name="fake", classes=8, fault=lambda logits: logits) -> None:
        self.name, self.classes, self.fault = name, classes, fault
        self.input_shapes, self.batches = {"video": (None, 1)}, []

    def run(self, inputs):
        self.batches.append(len(inputs["video"]))
        places = inputs["video"].reshape(len(inputs["video"]), -1)[:, 0].astype(int)
        return {"logits": self.fault(np.eye(self.classes)[places])}


class Counted:
    """A dataset of clips with given first pixels and labels, in chunks of a given size."""

    name = "counted"

    def __init__(self, shown, labels, chunk):
        self.shown, self.labels, self.chunk, self.count = shown, labels, chunk, len(labels)

    def chunks(self):
        for start in range(0, self.count, self.chunk):
            part = slice(start, start + self.chunk)
            video = np.array(self.shown[part], np.float32).reshape(-1, 1, 1, 1, 1)
            yield video, np.array(self.labels[part])


def model_of(labels=CLASSES, classes=3, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FastTimeSformer(2, 3, 16, 16, classes, dim=16, dim_head=16, depth=1, **options)
    model.labels = labels
    return model.eval()


def write_clip(path, level=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = cast("VideoStream", container.add_stream("ffv1", rate=25))
        stream.height, stream.width, stream.pix_fmt = 32, 32, "bgr0"
        for i in range(3):
            image = np.full((32, 32, 3), level + i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def folder(tmp_path):
    """Write two cats, one dog and three horses; each class has its own gray level."""
    for level, (name, count) in enumerate((("cat", 2), ("dog", 1), ("horse", 3))):
        for i in range(count):
            write_clip(tmp_path / "data" / name / f"{i}.mkv", 20 + 80 * level)
    return tmp_path / "data"


# --- counting


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 10])
@pytest.mark.parametrize("chunk", [1, 3, 10])
def test_accuracy_and_agreement_are_counted_correctly(chunk, batch):
    shown = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    labels = [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]  # seven of ten are correct
    off_by_one = Fake("other", fault=lambda logits: np.roll(logits, 1, axis=1))
    same, other = evaluated([Fake(), off_by_one], Counted(shown, labels, chunk), batch)
    assert (same.clips, same.accuracy, same.agreement) == (10, 0.7, 1.0)
    # This runtime answers one class higher than shown: 7 -> 0, 0 -> 1 and 1 -> 2 are correct.
    assert (other.clips, other.accuracy, other.agreement) == (10, 0.3, 0.0)
    assert (same.runtime, same.device, same.precision) == ("fake", "cpu", "fp32")
    assert same.dataset == "counted"


def test_agreement_compares_with_the_first_runtime():
    shown, labels = [0, 1, 2, 3], [7, 7, 7, 7]

    def two_differ(logits):
        logits = logits.copy()
        logits[logits.argmax(1) < 2] = np.eye(8)[5]
        return logits

    first, second = evaluated([Fake(), Fake("b", fault=two_differ)], Counted(shown, labels, 4), 2)
    assert (first.accuracy, second.accuracy) == (0.0, 0.0)
    assert (first.agreement, second.agreement) == (1.0, 0.5)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_clips_that_pad_a_batch_are_not_counted(batch):
    runner: Any = Fake()
    video = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1, 1)
    np.testing.assert_array_equal(predict(runner, video, batch), np.arange(5))
    assert set(runner.batches) == {batch}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_never_correct(value):
    broken = Fake("broken", fault=lambda logits: np.full_like(logits, value))
    honest, found = evaluated([Fake(), broken], Counted([0] * 4, [0] * 4, 4), 2)
    assert honest.accuracy == 1.0
    assert found.accuracy == 0.0
    assert found.agreement == 0.0


# --- the interval

FAKE: Any = Fake()


@pytest.mark.parametrize(
    ("correct", "clips", "low", "high"),
    [
        # (k + z^2/2) / (n + z^2) -+ z sqrt(k (n - k) / n + z^2/4) / (n + z^2) for z = 1.96
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (0, 10, 0.0, 0.2775),
        (0, 20, 0.0, 0.1611),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_the_interval_is_the_wilson_interval(correct, clips, low, high):
    found = summarize(FAKE, "x", clips, correct, clips)
    assert found.low == pytest.approx(low, abs=1e-4)
    assert found.high == pytest.approx(high, abs=1e-4)
    assert 0 <= found.low <= found.accuracy <= found.high <= 1
    assert found.accuracy == correct / clips


@pytest.mark.parametrize("clips", [1, 7, 64, 192, 512, 2048])
def test_the_interval_contains_an_accuracy_of_0_and_of_1(clips):
    none, all_ = summarize(FAKE, "x", clips, 0, 0), summarize(FAKE, "x", clips, clips, clips)
    assert (none.low, none.accuracy) == (0.0, 0.0)
    assert (all_.high, all_.accuracy) == (1.0, 1.0)


def test_more_clips_make_the_interval_narrower():
    few, many = (summarize(FAKE, "x", n, n // 2, n) for n in (10, 1000))
    assert many.high - many.low < (few.high - few.low) / 5


# --- the built-in task


def motion_model(**options):
    return model_of(MOTION_LABELS, 8, **options)


def test_the_built_in_task_has_512_balanced_normalised_clips():
    model = motion_model()
    model.preprocessing = Preprocessing((0.5,) * 3, (0.25,) * 3)
    dataset = open_dataset("motion", model)
    videos, labels = zip(*dataset.chunks(), strict=True)
    video, label = np.concatenate(videos), np.concatenate(labels)
    assert dataset.count == len(video) == len(label) == 512
    assert video.shape[1:] == (2, 3, 16, 16)
    assert video.dtype == np.float32
    assert video.min() >= -2
    assert video.max() <= 2
    assert video.min() < -1
    np.testing.assert_array_equal(np.bincount(label), [64] * 8)
    assert len({clip.tobytes() for clip in video}) == 512


@pytest.mark.parametrize("count", [1, 64, 70])
def test_a_dataset_gives_the_number_of_clips_in_count(count):
    dataset = Dataset(MOTION, count, motion_model())
    assert sum(len(labels) for _, labels in dataset.chunks()) == count


def test_pixels_are_normalised_by_channel():
    clips = np.full((2, 1, 2, 3, 3), 0.5, np.float32)
    got = normalise(clips, Preprocessing((0.5, 0.25), (1.0, 0.5)))
    np.testing.assert_array_equal(got[:, :, 0], 0)
    np.testing.assert_array_equal(got[:, :, 1], 0.5)
    assert got.dtype == np.float32


def test_the_built_in_task_accepts_eight_classes_without_names():
    assert open_dataset("motion", model_of(None, 8)).count == 512


@pytest.mark.parametrize(
    "model",
    [
        model_of(CLASSES, 3),
        model_of(None, 3),
        model_of(tuple(reversed(MOTION_LABELS)), 8),
        model_of(tuple("abcdefgh"), 8),
    ],
    ids=["three", "three nameless", "another order", "others"],
)
def test_the_built_in_task_refuses_a_model_with_other_classes(model):
    with pytest.raises(UsageError, match="built-in task") as caught:
        open_dataset("motion", model)
    assert "\n" not in str(caught.value)


# --- folders


def test_a_folder_maps_class_names_to_the_model_s_labels(folder):
    reordered = ("horse", "cow", "cat", "dog")
    dataset = open_dataset(str(folder), model_of(reordered, 4))
    assert (dataset.name, dataset.count) == (str(folder), 6)
    seen = [(float(video.mean()), int(label)) for video, (label,) in dataset.chunks()]
    levels = {label: mean for mean, label in seen}
    assert sorted(label for _, label in seen) == [0, 0, 0, 2, 2, 3]
    assert levels[2] < levels[3] < levels[0]  # cat, dog, horse


def test_clips_of_a_folder_have_the_model_s_shape_and_normalisation(folder):
    model = model_of()
    model.preprocessing = Preprocessing((1.0,) * 3, (0.5,) * 3)
    for video, labels in open_dataset(str(folder), model).chunks():
        assert video.shape == (len(labels), 2, 3, 16, 16)
        assert video.dtype == np.float32
        assert video.max() < 0


def test_folders_are_numbered_in_order_if_the_model_has_no_labels(folder):
    dataset = open_dataset(str(folder), model_of(None, 3))
    assert [label for _, label in dataset.files] == [0, 0, 1, 2, 2, 2]


def test_hidden_files_and_files_beside_the_folders_are_ignored(folder):
    (folder / "README.txt").write_text("no class")
    (folder / "cat" / ".DS_Store").write_text("no clip")
    (folder / "cat" / "more").mkdir()
    assert open_dataset(str(folder), model_of()).count == 6


def test_a_class_of_the_model_may_have_no_folder(folder):
    assert open_dataset(str(folder), model_of((*CLASSES, "cow"), 4)).count == 6


def test_a_batch_that_does_not_divide_the_clips_gives_the_same_result(folder):
    model = model_of()
    dataset = open_dataset(str(folder), model)
    with EagerRunner(model, {"video": (None, 2, 3, 16, 16)}) as runner:
        one, four = (evaluate([runner], dataset, batch)[0] for batch in (1, 4))
    assert one == four
    assert one.clips == 6
    assert one.accuracy * 6 == pytest.approx(round(one.accuracy * 6))


def test_a_folder_named_motion_is_read_as_a_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "motion")
    dataset = open_dataset("./motion", model_of())
    assert dataset.count == sum(len(labels) for _, labels in dataset.chunks()) == 6


def refused(name, model):
    with pytest.raises(UsageError) as caught:
        open_dataset(str(name), model)
    message = str(caught.value)
    assert "\n" not in message
    assert "--eval" in message
    return message


@pytest.mark.parametrize("wrong", ["hrose", "Dog", "cats"])
def test_an_unknown_class_is_refused_with_the_nearest_name(folder, wrong):
    (folder / wrong).mkdir()
    nearest = {"hrose": "horse", "Dog": "dog", "cats": "cat"}[wrong]
    message = refused(folder, model_of())
    assert repr(wrong) in message
    assert f"did you mean {nearest!r}?" in message


def test_an_unknown_class_without_a_near_name_is_refused(folder):
    (folder / "xyz").mkdir()
    assert "'xyz' is no class of the model" in refused(folder, model_of())


def test_a_model_without_labels_needs_a_folder_for_each_class(folder):
    message = refused(folder, model_of(None, 4))
    assert "got 3 folders" in message
    assert "expected 4" in message


def test_a_folder_without_clips_is_refused(folder, tmp_path):
    assert "'nowhere'" in refused("nowhere", model_of())
    (tmp_path / "file").touch()
    refused(tmp_path / "file", model_of())
    (tmp_path / "empty").mkdir()
    assert "no clips" in refused(tmp_path / "empty", model_of())
    (tmp_path / "empty" / "cat").mkdir()
    assert "no clips" in refused(tmp_path / "empty", model_of())


def test_a_file_that_is_not_a_clip_is_named_in_one_line(folder):
    (folder / "dog" / "notes.txt").write_text("no clip\n" * 100)
    with pytest.raises(TsformerError) as caught:
        list(open_dataset(str(folder), model_of()).chunks())
    assert "notes.txt" in str(caught.value)
    assert "\n" not in str(caught.value)
