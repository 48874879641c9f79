"""Test the evaluation of exports: counts, batches, bad clips, and going on after a kill."""

import json
import shutil
from typing import Any

import numpy as np
import pytest

from exporter.cli import main
from exporter.errors import OutputError, RuntimeFailure, UsageError
from exporter.files.manifest import MANIFEST
from exporter.inputs.dataset import Dataset, Labelled
from exporter.predict import Predictor
from exporter.predict.batches import Batches
from exporter.predict.evaluate import Subject, evaluate
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from model.config import ClipConfig
from model.preprocessing import Preprocessing

FIGURES = {"clips", "bad", "top1", "top5", "mean_class", "map", "mse", "interval", "per_class"}
CONTRACT = FIGURES | {"confusion", "runtime", "device", "precision"}
CONFIG = ClipConfig(2, 3, 16, 16, 8)
SUBJECT = Subject(CONFIG, Preprocessing.unit(3), "single-label", tuple("abcdefgh"))


class Fake:
    """A runtime whose first class of a clip is its first pixel; `fault` changes the logits."""

    device, precision, threads, transfers_included = "cpu", "fp32", 1, True

    def __init__(self, name="fake", fault=lambda logits: logits):
        self.name, self.fault = name, fault
        self.input_shapes, self.batches = {"video": (None, 1)}, []

    def run(self, inputs):
        shown = inputs["video"].reshape(len(inputs["video"]), -1)[:, 0].astype(int)
        self.batches.append(shown.tolist())
        return {"logits": self.fault(np.eye(8)[shown])}


@pytest.fixture
def counted(monkeypatch):
    """Make a dataset of clips with given first pixels and classes; 9 is a clip that is bad."""

    def read_source(source, _config, _preprocessing):
        if source == 9:
            raise ValueError("broken")
        return np.full((1, 1), source, np.float32), ""

    monkeypatch.setattr("exporter.predict.read.read_source", read_source)

    def make(shown, labels):
        pairs = zip(shown, labels, strict=True)
        return Dataset("counted", tuple(Labelled(pixel, (label,)) for pixel, label in pairs))

    return make


def run(models, dataset, most=4, **options):
    batches = [(model.name, Batches(model, 1, most)) for model in models]
    return evaluate(batches, SUBJECT, dataset, jobs=0, **options)


class TestCounts:
    @pytest.mark.parametrize("most", [1, 3, 4, 10])
    def test_accuracy_and_agreement(self, most, counted):
        dataset = counted([0, 1, 2, 3, 4, 5, 6, 7, 0, 1], [0, 1, 2, 3, 4, 5, 6, 0, 1, 2])
        off_by_one: Any = Fake("other", lambda logits: np.roll(logits, 1, axis=1))
        found = run([Fake(), off_by_one], dataset, most)
        same, other = found.judged
        assert (same.metrics.clips, same.metrics.top1, same.agreement) == (10, 0.7, 1.0)
        # This runtime answers one class higher than shown: 7 -> 0, 0 -> 1 and 1 -> 2 are right.
        assert (other.metrics.clips, other.metrics.top1, other.agreement) == (10, 0.3, 0.0)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_logits_that_are_not_finite_are_never_right(self, value, counted):
        broken = Fake("broken", lambda logits: np.full_like(logits, value))
        honest, found = run([Fake(), broken], counted([0] * 4, [0] * 4)).judged
        assert honest.metrics.top1 == 1.0
        assert (found.metrics.top1, found.agreement) == (0.0, 0.0)

    def test_bad_clips_have_a_reason_and_do_not_count(self, counted):
        found = run([Fake()], counted([0, 9, 1, 9, 2], [0, 0, 1, 0, 0]))
        assert found.judged[0].metrics.clips == 3
        assert found.judged[0].metrics.top1 == 2 / 3
        assert [clip.reason for clip in found.bad] == ["motion-9: ValueError: broken"] * 2
        assert found.bad_share == 2 / 5

    def test_the_wrong_answers_are_listed_with_the_most_frequent_first(self, counted):
        found = run([Fake()], counted([1, 1, 2, 0, 3], [0, 0, 0, 0, 3]))
        assert found.confusions(5) == [("a", "b", 2), ("a", "c", 1)]
        assert found.confusions(1) == [("a", "b", 2)]


def test_a_number_of_processes_is_needed(counted):
    jobs: Any = None
    with pytest.raises(UsageError, match="--jobs: got None, expected 0 to 512"):
        evaluate([("", Batches(Fake(), 8, 8))], SUBJECT, counted([0], [0]), jobs=jobs)


class TestBatches:
    def test_a_fixed_batch_is_filled_with_different_clips_beside_bad_ones(self, counted):
        model = Fake()
        shown = [0, 1, 9, 2, 3, 4, 9, 5, 6, 7, 1]
        evaluate([("", Batches(model, 8, 8))], SUBJECT, counted(shown, [0] * len(shown)), jobs=0)
        assert model.batches == [[0, 1, 2, 3, 4, 5, 6, 7], [1] * 8]

    def test_views_of_a_clip_stay_together_over_batches(self):
        model: Any = Fake()
        clips = [np.full((views, 1), views, np.float32) for views in (3, 1, 2)]
        found = Batches(model, 1, 4).logits(clips)
        assert [len(rows) for rows in found] == [3, 1, 2]
        assert [rows.argmax(1).tolist() for rows in found] == [[3, 3, 3], [1], [2, 2]]
        assert model.batches == [[3, 3, 3, 1], [2, 2]]

    def test_no_clips_need_no_run(self):
        model: Any = Fake()
        assert Batches(model, 1, 4).logits([]) == []
        assert model.batches == []


class TestGoingOn:
    def test_answers_that_are_kept_are_not_computed_again(self, counted, tmp_path):
        dataset, kept = counted([0, 1, 9, 3], [0, 1, 2, 2]), tmp_path / "answers.jsonl"
        first = run([Fake()], dataset, kept=kept)
        lines = kept.read_bytes().splitlines(keepends=True)
        kept.write_bytes(b"".join(lines[:2]) + lines[2][:5])
        again = Fake()
        second = run([again], dataset, kept=kept)
        assert again.batches == [[3]]
        assert second.judged == first.judged
        assert second.bad == first.bad

    def test_a_runtime_that_fails_at_once_leaves_no_file(self, counted, tmp_path):
        class Failing(Fake):
            def run(self, inputs):
                raise RuntimeFailure("no kernel")

        with pytest.raises(RuntimeFailure, match="no kernel"):
            run([Failing()], counted([0, 1], [0, 1]), kept=tmp_path / "answers.jsonl")
        assert list(tmp_path.iterdir()) == []

    def test_answers_of_other_clips_are_refused(self, counted, tmp_path):
        run([Fake()], counted([0, 1], [0, 1]), kept=tmp_path / "answers.jsonl")
        with pytest.raises(OutputError, match="made with other clips"):
            run([Fake()], counted([0, 1], [0, 2]), kept=tmp_path / "answers.jsonl")


@pytest.fixture(scope="module")
def numbered(archive, tmp_path_factory):
    """Put ten clips into folders 0, 1, 10 and 11 of twelve classes, with a stray file."""
    folder = tmp_path_factory.mktemp("numbered")
    for place, clip in enumerate(sorted(archive.rglob("[0-9].mkv"))):
        to = folder / ("0", "1", "10", "11")[place % 4]
        to.mkdir(exist_ok=True)
        shutil.copy(clip, to)
    (folder / "10" / "Thumbs.db").write_text("no clip")
    return folder


def answers(directory, clips):
    with Predictor(directory) as predictor:
        return [found.classes for found in predictor.predict(clips)]


class TestTheCommand:
    def test_numbered_folders_are_indices(self, flexible, numbered, capsys):
        code = main(["evaluate", str(flexible), str(numbered), "--json", "--max-bad", "0.1"])
        found = json.loads(capsys.readouterr().out)
        assert code == 0
        assert set(found) >= CONTRACT
        clips = sorted(numbered.rglob("*.mkv"))
        right = [
            best[0].index == int(clip.parent.name)
            for clip, best in zip(clips, answers(flexible, clips), strict=True)
        ]
        assert (found["clips"], found["bad"]) == (10, 1)
        assert found["top1"] == np.mean(right)
        assert [row["clips"] for row in found["per_class"] if row["clips"]] == [3, 3, 2, 2]
        assert [row["index"] for row in found["per_class"] if row["clips"]] == [0, 1, 10, 11]
        assert np.sum(found["confusion"]) == 10
        assert (found["map"], found["mse"]) == (None, None)
        assert (found["runtime"], found["device"], found["precision"]) == (
            "onnxruntime",
            "cpu",
            "fp32",
        )
        assert found["bad_clips"][0]["clip"].endswith("Thumbs.db")

    def test_too_many_bad_clips_fail_after_the_figures(self, flexible, numbered, capsys):
        code = main(["evaluate", str(flexible), str(numbered), "--jobs", "1"])
        said = capsys.readouterr()
        assert code == 3
        assert "10 clips of" in said.out
        assert said.err.startswith("tsformer: video: 1 clips are bad, the first: ")
        assert "got 9.09 %, expected at most 5 % (--max-bad)" in said.err

    def test_a_list_of_several_labels_gives_map(self, flexible, archive, tmp_path, capsys):
        directory = with_task(flexible, tmp_path, "multi-label")
        clips = sorted(archive.rglob("[0-9].mkv"))
        scores = np.zeros((len(clips), 12))
        for row, best in zip(scores, answers_of_all(directory, clips), strict=True):
            for entry in best:
                row[entry.index] = entry.score
        # The labels of a clip are its three best ones, so each label is ranked by its own score.
        truth = np.argsort(-scores, axis=1)[:, :3]
        lines = [
            f"{clip},{'|'.join(map(str, best))}" for clip, best in zip(clips, truth, strict=True)
        ]
        (tmp_path / "list.csv").write_text("\n".join(lines))
        assert main(["evaluate", str(directory), str(tmp_path / "list.csv"), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["clips"] == 10
        expected = [by_hand(scores[:, j], (truth == j).any(1)) for j in range(12)]
        got = [row["ap"] for row in found["per_class"]]
        assert [value is None for value in got] == [value is None for value in expected]
        assert [v for v in got if v is not None] == pytest.approx(
            [v for v in expected if v is not None]
        )
        assert found["map"] == pytest.approx(np.mean([v for v in expected if v is not None]))
        assert (found["top1"], found["confusion"]) == (None, None)

    def test_a_list_of_values_gives_mse_and_r2(self, flexible, archive, tmp_path, capsys):
        directory = with_task(flexible, tmp_path, "regression")
        clips = sorted(archive.rglob("[0-9].mkv"))
        values = np.array([[e.score for e in best] for best in answers(directory, clips)])
        truth = np.round(values, 2)
        truth[0, 0] += 1
        lines = [
            f"{clip} {' '.join(map(str, row))}" for clip, row in zip(clips, truth, strict=True)
        ]
        (tmp_path / "list.txt").write_text("\n".join(lines))
        assert main(["evaluate", str(directory), str(tmp_path / "list.txt"), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        errors = ((values - truth) ** 2).mean(0)
        assert found["mse"] == pytest.approx(errors.mean(), rel=1e-4)
        assert found["r2"] == pytest.approx(np.mean(1 - errors / truth.var(0)), rel=1e-4)
        assert found["interval"] is None

    def test_a_runtime_that_gives_nan_is_named_beside_the_clip(
        self, flexible, archive, tmp_path, capsys, monkeypatch
    ):
        directory = with_task(flexible, tmp_path, "regression")
        first = min(archive.rglob("[0-9].mkv"))
        (tmp_path / "list.txt").write_text(f"{first} {' '.join(['0'] * 12)}")
        nan = np.full((1, 12), np.nan, np.float32)
        monkeypatch.setattr(OnnxRuntimeRunner, "run", lambda *_: {"logits": nan})
        given = ["evaluate", str(directory), str(tmp_path / "list.txt"), "--device", "cpu"]
        main([*given, "--max-bad", "100%", "--json"])
        (bad,) = json.loads(capsys.readouterr().out)["bad_clips"]
        assert bad["reason"] == "NaN or Inf among the logits of onnxruntime (cpu, fp32)"

    def test_another_export_is_compared_on_the_same_clips(
        self, flexible, numbered, tmp_path, capsys
    ):
        copy = shutil.copytree(flexible, tmp_path / "copy")
        given = ["evaluate", str(flexible), str(numbered), "--against", str(copy)]
        given += ["-o", str(tmp_path / "out"), "--max-bad", "50%", "--jobs", "1"]
        assert main([*given, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        (other,) = found["others"]
        assert other["agreement"] == 1.0
        assert other["top1"] == found["top1"]
        kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        assert kept == found
        page = (tmp_path / "out" / "evaluation.html").read_text()
        assert "Confusion matrix" in page
        assert "Thumbs.db" in page
        assert main(given) == 0  # from the answers that are kept
        assert "Agrees" in capsys.readouterr().out

    def test_an_export_with_other_clips_is_refused(self, flexible, exported, numbered, capsys):
        given = ["evaluate", str(flexible), str(numbered)]
        assert main([*given, "--against", str(exported().directory)]) == 2
        assert "has another config" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("data", "options", "said"),
        [
            ("nowhere", [], "usage: DATA: got 'nowhere'"),
            ("motion", [], "usage: DATA motion needs a model trained on the built-in task"),
            ("motion", ["--max-bad", "x"], "usage: Invalid value for --max-bad: got 'x'"),
            ("motion", ["--max-bad", "101%"], "usage: Invalid value for --max-bad: got '101%'"),
            ("motion", ["--jobs", "0"], "usage: --jobs: got 0"),
            ("motion", ["--device", "cpu,gpu"], "usage: --device: got gpu"),
            ("motion", ["--device", " cpu , gpu"], "usage: --device: got gpu"),
        ],
    )
    def test_a_wrong_argument_is_one_line(self, data, options, said, flexible, capsys):
        assert main(["evaluate", str(flexible), data, *options]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"tsformer: {said}")
        assert err.count("\n") == 1


def with_task(directory, tmp_path, task):
    """Copy an export, and change what its logits mean."""
    copy = shutil.copytree(directory, tmp_path / task)
    path = copy / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task": task}))
    return copy


def answers_of_all(directory, clips):
    with Predictor(directory) as predictor:
        return [found.classes for found in predictor.predict(clips, 12)]


def by_hand(scores, truth):
    """Compute average precision clip by clip, for scores that differ; None without a positive."""
    if not truth.any():
        return None
    ranked = truth[np.argsort(-scores)]
    precisions = [ranked[: i + 1].mean() for i in range(len(ranked)) if ranked[i]]
    return float(np.mean(precisions))
