"""Test labelled clips: which class each gets, and refusals of datasets that do not fit."""

from dataclasses import replace

import numpy as np
import pytest

from exporter.errors import UsageError, VideoError
from exporter.inputs.class_names import place_classes
from exporter.inputs.clip_list import find_clip
from exporter.inputs.dataset import open_dataset, read_source
from exporter.inputs.motion import MOTION_LABELS, motion_clips
from exporter.inputs.video import normalise
from model.config import ClipConfig
from model.preprocessing import Preprocessing

CLASSES = ("cat", "dog", "horse")
CONFIG = ClipConfig(2, 3, 16, 16, 8)


def sizes(outputs):
    return replace(CONFIG, num_classes=outputs)


def open_(name, labels=CLASSES, task="single-label", outputs=None):
    return open_dataset(str(name), task, sizes(outputs or len(labels)), labels)


def refused(name, *arguments, **options):
    with pytest.raises(UsageError) as caught:
        open_(name, *arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "--eval" in message
    return message


@pytest.fixture
def folder(tmp_path):
    """Make two cats, one dog and three horses; only their names are read here."""
    for name, count in (("cat", 2), ("dog", 1), ("horse", 3)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / "data" / name / f"{i}.mkv").touch()
    return tmp_path / "data"


def targets(dataset):
    return [clip.target for clip in dataset.clips]


class TestTheBuiltInTask:
    def test_it_has_512_balanced_different_clips(self):
        dataset = open_("motion", MOTION_LABELS)
        how = Preprocessing((0.5,) * 3, (0.25,) * 3)
        video = np.concatenate([read_source(clip.source, CONFIG, how)[0] for clip in dataset.clips])
        assert len(video) == 512
        assert video.shape[1:] == (2, 3, 16, 16)
        assert video.dtype == np.float32
        assert -2 <= video.min() < -1
        assert video.max() <= 2
        assert len({clip.tobytes() for clip in video}) == 512
        labels = [int(label) for (label,) in targets(dataset)]
        np.testing.assert_array_equal(np.bincount(labels), [64] * 8)

    def test_its_clips_are_those_of_the_seeds_in_groups_of_64(self):
        clips, labels = motion_clips(64, 2, 16, 16, seed=20_001)
        got, _ = read_source(64 + 7, CONFIG, Preprocessing.unit(3))
        np.testing.assert_array_equal(got[0], clips[7])
        assert open_("motion", MOTION_LABELS).clips[64 + 7].target == (labels[7],)

    def test_it_accepts_eight_classes_without_names(self):
        assert len(open_("motion", None, outputs=8).clips) == 512

    @pytest.mark.parametrize(
        ("labels", "outputs", "task"),
        [
            (CLASSES, 3, "single-label"),
            (None, 3, "single-label"),
            (tuple(reversed(MOTION_LABELS)), 8, "single-label"),
            (tuple("abcdefgh"), 8, "single-label"),
            (MOTION_LABELS, 8, "multi-label"),
        ],
        ids=["three", "three nameless", "another order", "others", "multi-label"],
    )
    def test_it_refuses_a_model_with_other_classes(self, labels, outputs, task):
        with pytest.raises(UsageError, match="built-in task") as caught:
            open_dataset("motion", task, sizes(outputs), labels)
        assert "\n" not in str(caught.value)

    def test_it_refuses_a_model_of_one_frame(self):
        config = replace(CONFIG, frames=1)
        with pytest.raises(UsageError, match="frames of motion clips: got 1, expected"):
            open_dataset("motion", "single-label", config, MOTION_LABELS)

    def test_pixels_are_normalised_by_channel(self):
        clips = np.full((2, 1, 2, 3, 3), 0.5, np.float32)
        got = normalise(clips, Preprocessing((0.5, 0.25), (1.0, 0.5)))
        np.testing.assert_array_equal(got[:, :, 0], 0)
        np.testing.assert_array_equal(got[:, :, 1], 0.5)
        assert got.dtype == np.float32


class TestFolders:
    def test_names_are_matched_with_the_labels_of_the_model(self, folder):
        dataset = open_(folder, ("horse", "cow", "cat", "dog"))
        assert dataset.name == str(folder)
        assert targets(dataset) == [(2,), (2,), (3,), (0,), (0,), (0,)]
        assert dataset.clips[0].name == str(folder / "cat" / "0.mkv")

    def test_numbers_of_twelve_classes_are_indices_and_not_in_text_order(self, tmp_path):
        for place in range(12):
            (tmp_path / str(place)).mkdir()
            (tmp_path / str(place) / "a.mp4").touch()
        for labels in (None, tuple(f"LABEL_{i}" for i in range(12))):
            dataset = open_dataset(str(tmp_path), "single-label", sizes(12), labels)
            assert {clip.source.parent.name: clip.target for clip in dataset.clips} == {
                str(place): (place,) for place in range(12)
            }

    def test_numbers_with_zeros_before_them_are_indices(self):
        places = place_classes(["00", "01", "11"], None, 12, "--eval", "folder", whole=True)
        assert places == {"00": 0, "01": 1, "11": 11}

    def test_numbers_that_are_labels_too_must_agree(self):
        same = place_classes(["0", "2"], ("0", "1", "2"), 3, "--eval", "folder")
        assert same == {"0": 0, "2": 2}
        with pytest.raises(UsageError, match="two ways") as caught:
            place_classes(["0", "2"], ("2", "1", "0"), 3, "--eval", "folder")
        assert "index 0 (the class '2')" in str(caught.value)
        assert "the label '0' (index 2)" in str(caught.value)

    def test_numbers_that_are_labels_and_no_indices_are_labels(self):
        assert place_classes(["7", "30"], ("30", "7"), 2, "--eval", "folder") == {"7": 1, "30": 0}

    def test_an_underscore_stands_for_a_space(self):
        places = place_classes(["air_drumming"], ("x", "air drumming"), 2, "--eval", "folder")
        assert places == {"air_drumming": 1}
        with pytest.raises(UsageError, match="'a_b c' \\(index 0\\) or 'a b_c' \\(index 1\\)"):
            place_classes(["a_b_c"], ("a_b c", "a b_c"), 2, "--eval", "folder")

    def test_a_label_of_two_classes_is_refused(self):
        with pytest.raises(UsageError, match="'crane' can be read in two ways") as caught:
            place_classes(["b", "crane"], ("crane", "b", "crane"), 3, "--eval", "folder")
        assert str(caught.value).endswith("got 'crane' (index 0) or 'crane' (index 2)")
        assert place_classes(["b"], ("crane", "b", "crane"), 3, "--eval", "folder") == {"b": 1}

    def test_a_number_of_any_length_is_no_index(self):
        with pytest.raises(UsageError, match="do not fit the model: got 1 to inf, expected ind"):
            place_classes(["1", "9" * 5000], None, 2, "--eval", "folder", whole=True)
        places = place_classes(["0" * 5000 + "1"], None, 2, "--eval", "label")
        assert set(places.values()) == {1}

    def test_numbers_from_one_on_are_refused(self):
        names = [str(place) for place in range(1, 13)]
        with pytest.raises(UsageError, match="counted from 1"):
            place_classes(names, None, 12, "--eval", "folder", whole=True)

    def test_names_are_in_order_if_the_model_has_no_labels(self, folder):
        assert targets(open_(folder, None, outputs=3)) == [(0,), (0,), (1,), (2,), (2,), (2,)]

    def test_hidden_files_and_files_beside_the_folders_are_no_clips(self, folder):
        (folder / "README.txt").write_text("no class")
        (folder / "cat" / ".DS_Store").write_text("no clip")
        (folder / ".git").mkdir()
        assert len(open_(folder).clips) == 6

    def test_a_stray_file_is_a_clip_that_cannot_be_read(self, folder):
        (folder / "dog" / "notes.txt").write_text("no clip\n" * 100)
        stray = next(clip for clip in open_(folder).clips if clip.name.endswith("notes.txt"))
        with pytest.raises(VideoError, match=r"notes\.txt is not a video"):
            read_source(stray.source, CONFIG, Preprocessing.unit(3))

    def test_a_class_of_the_model_may_have_no_folder(self, folder):
        assert len(open_(folder, (*CLASSES, "cow")).clips) == 6

    def test_a_folder_named_motion_is_read_as_a_folder(self, folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folder.rename(tmp_path / "motion")
        assert len(open_("./motion").clips) == 6

    @pytest.mark.parametrize("wrong", ["hrose", "Dog", "cats"])
    def test_an_unknown_class_is_refused_with_the_nearest_name(self, folder, wrong):
        (folder / wrong).mkdir()
        nearest = {"hrose": "horse", "Dog": "dog", "cats": "cat"}[wrong]
        message = refused(folder)
        assert repr(wrong) in message
        assert f"did you mean {nearest!r}?" in message

    def test_an_unknown_class_without_a_near_name_is_refused(self, folder):
        (folder / "xyz").mkdir()
        assert "'xyz' is no class of the model" in refused(folder)

    def test_a_model_without_labels_needs_a_folder_for_each_class(self, folder):
        message = refused(folder, None, outputs=4)
        assert "got 3 folders" in message
        assert "expected 4" in message

    def test_a_folder_without_clips_is_refused(self, folder, tmp_path):
        assert "'nowhere'" in refused("nowhere")
        (tmp_path / "empty").mkdir()
        assert "no clips" in refused(tmp_path / "empty")
        (tmp_path / "empty" / "cat").mkdir()
        assert "no clips" in refused(tmp_path / "empty")

    def test_values_need_a_list(self, folder):
        assert "path value" in refused(folder, ("speed",), "regression")


class TestLists:
    def write(self, tmp_path, text, name="list.txt"):
        path = tmp_path / "data" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def test_three_kinds_of_path_find_their_clips(self, tmp_path, monkeypatch):
        (tmp_path / "data").mkdir()
        (tmp_path / "cwd").mkdir()
        monkeypatch.chdir(tmp_path / "cwd")
        for place in ("absolute.mp4", "data/beside.mp4", "cwd/here.mp4"):
            (tmp_path / place).touch()
        text = f"{tmp_path}/absolute.mp4,2\nbeside.mp4,0\nhere.mp4,1\n"
        dataset = open_(self.write(tmp_path, text, "list.csv"))
        assert [(clip.name, clip.target) for clip in dataset.clips] == [
            (f"{tmp_path}/absolute.mp4", (2,)),
            (f"{tmp_path}/data/beside.mp4", (0,)),
            ("here.mp4", (1,)),
        ]

    def test_a_csv_without_a_comma_has_spaces(self, tmp_path):
        """As test.csv of SlowFast and TimeSformer."""
        dataset = open_(self.write(tmp_path, "/clips/a.mp4 0\n/clips/b.mp4 2\n", "test.csv"))
        assert [(clip.name, clip.target) for clip in dataset.clips] == [
            ("/clips/a.mp4", (0,)),
            ("/clips/b.mp4", (2,)),
        ]

    def test_a_csv_with_a_comma_in_some_lines_has_commas(self, tmp_path):
        message = refused(self.write(tmp_path, "a b.mp4,0\nc d.mp4 2\n", "list.csv"))
        assert "list.csv:2 has no label: got 'c d.mp4 2'" in message

    def test_a_path_with_two_files_is_refused_with_both(self, tmp_path, monkeypatch):
        (tmp_path / "beside").mkdir()
        for place in ("beside/a.mp4", "a.mp4"):
            (tmp_path / place).touch()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError) as caught:
            find_clip("a.mp4", tmp_path / "beside", "--eval")
        assert f"{tmp_path}/beside/a.mp4" in str(caught.value)
        assert f"{tmp_path}/a.mp4 (in the current folder)" in str(caught.value)

    @pytest.mark.parametrize(
        "text",
        [
            "a.mp4 0\nb.mp4 2\n",
            "a.mp4 cat\nb.mp4 horse\n",
            "a.mp4\tcat\nb.mp4\thorse\n",
            "a.mp4;0\nb.mp4;2\n",
            "path,label\na.mp4,cat\nb.mp4,horse\n",
            '\ufeff"a.mp4",cat\n\n"b.mp4",horse',
            "# made by hand\na.mp4 0\nb.mp4 2",
        ],
    )
    def test_lines_are_a_path_and_a_label(self, tmp_path, text):
        dataset = open_(self.write(tmp_path, text))
        assert [clip.source.name for clip in dataset.clips] == ["a.mp4", "b.mp4"]
        assert targets(dataset) == [(0,), (2,)]

    def test_a_path_with_spaces_is_the_longest_that_exists(self, tmp_path):
        path = self.write(tmp_path, "my first clip.mp4 cat\nmissing.mp4 dog\n")
        (tmp_path / "data" / "my first clip.mp4").touch()
        dataset = open_(path)
        assert [clip.source.name for clip in dataset.clips] == ["my first clip.mp4", "missing.mp4"]

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("a.mp4 0 2\nb.mp4\n".replace("b.mp4\n", "b.mp4 1\n"), "list.txt"),
            ("a.mp4,0|2\nb.mp4,1\n", "list.csv"),
            ("a.mp4,horse,cat\nb.mp4,dog,\n", "list.csv"),
        ],
    )
    def test_several_labels_are_columns_or_parts_of_one(self, tmp_path, text, name):
        dataset = open_(self.write(tmp_path, text, name), task="multi-label")
        assert targets(dataset) == [(0, 2), (1,)]

    def test_a_clip_may_have_no_label_of_several(self, tmp_path):
        dataset = open_(self.write(tmp_path, "a.mp4,\nb.mp4,dog\n", "list.csv"), task="multi-label")
        assert targets(dataset) == [(), (1,)]

    def test_values_are_numbers(self, tmp_path):
        dataset = open_(
            self.write(tmp_path, "a.mp4 1.5 -2\nb.mp4 0 1e3\n"), ("x", "y"), "regression"
        )
        assert targets(dataset) == [(1.5, -2.0), (0.0, 1000.0)]
        message = refused(self.write(tmp_path, "a.mp4 fast 1\n"), ("x", "y"), "regression")
        assert "expected 2 numbers" in message

    @pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
    def test_a_value_is_finite(self, tmp_path, value):
        message = refused(self.write(tmp_path, f"a.mp4 1 {value}\n"), ("x", "y"), "regression")
        assert f"got 1 {value}, expected 2 numbers" in message

    @pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
    def test_a_line_ends_at_a_line_end_alone(self, tmp_path, separator):
        dataset = open_(self.write(tmp_path, f"a{separator}b.mp4,cat\n", "list.csv"))
        assert [clip.source.name for clip in dataset.clips] == [f"a{separator}b.mp4"]

    def test_a_line_may_be_longer_than_a_name(self, tmp_path):
        values = " ".join(["0.12345678"] * 40)
        path = self.write(tmp_path, f"a.mp4 {values}\n")
        (clip,) = open_(path, tuple(map(str, range(40))), "regression").clips
        assert (clip.source.name, clip.target) == ("a.mp4", (0.12345678,) * 40)

    def test_wrong_lines_are_named(self, tmp_path):
        assert "list.csv:1: got 'aaa" in refused(
            self.write(tmp_path, f"{'a' * 140_000},cat\n", "list.csv")
        )
        assert "list.txt:2 has no label" in refused(self.write(tmp_path, "a.mp4 cat\nb.mp4\n"))
        assert "must have one label" in refused(self.write(tmp_path, "a.mp4 cat dog\n"))
        assert "'dgo' is no class" in refused(self.write(tmp_path, "a.mp4 dgo\n"))
        assert "no clips" in refused(self.write(tmp_path, "\n"))
        message = refused(self.write(tmp_path, "a.mp4 cat\n"), None, outputs=3)
        assert "the model has no labels: got 'cat', expected an index, 0 to 2" in message

    @pytest.mark.parametrize("above", ["# my clips\n", "\n", " \n# a, b, c\n\n"])
    def test_the_names_of_the_columns_may_follow_comments(self, tmp_path, above):
        path = self.write(tmp_path, f"{above}path,label\na.mp4,0\nb.mp4,2\n", "list.csv")
        assert targets(open_(path)) == [(0,), (2,)]
        message = refused(self.write(tmp_path, "a.mp4,0\npath,label\n", "list.csv"))
        assert "some classes are numbers and others names" in message

    @pytest.mark.parametrize("head", ["label,path", "id,path,label", "label,youtube_id,time_start"])
    def test_a_first_line_that_names_other_columns_is_shown(self, tmp_path, head):
        message = refused(self.write(tmp_path, f"{head}\na.mp4,cat\n", "list.csv"))
        assert "the path of the clip first" in message

    def test_columns_beside_path_and_label_are_shown(self, tmp_path):
        message = refused(self.write(tmp_path, "path,label,split\na.mp4,cat,val\n", "list.csv"))
        assert "list.csv:2 must have one label: got cat, val; keep the columns" in message

    def test_numbers_beside_names_are_refused(self, tmp_path):
        message = refused(self.write(tmp_path, "a.mp4 1\nb.mp4 cat\n"))
        assert "some classes are numbers and others names: got '1' and 'cat'" in message

    def test_a_list_that_is_no_text_is_refused(self, tmp_path):
        (tmp_path / "list.bin").write_bytes(b"\xff\xfe\x00")
        assert "it is not UTF-8" in refused(tmp_path / "list.bin")
