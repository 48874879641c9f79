"""Test `tsformer predict`: output, warnings and refusals."""

import json
import shutil

import numpy as np
import pytest

from exporter.cli import main
from exporter.files.manifest import MANIFEST
from exporter.predict import Predictor


@pytest.fixture
def directory(exported, tmp_path):
    """Make a copy of an export that a test may change."""
    return shutil.copytree(exported().directory, tmp_path / "copy")


@pytest.fixture(scope="module")
def clip(real_clips):
    return real_clips["carphone"]


def run(capsys, *arguments):
    code = main(["predict", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def change(directory, **entries):
    path = directory / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_the_table_has_labels_and_scores_best_first(directory, clip, capsys, monkeypatch):
    change(directory, labels=["walking", "running"])
    monkeypatch.chdir(clip.parent)
    code, out, err = run(capsys, directory, clip.name)
    assert (code, err) == (0, "")
    assert clip.name in out
    with Predictor(directory) as predictor:
        (prediction,) = predictor.predict([clip])
    rows = [line.split()[-2:] for line in out.splitlines() if line.strip()[-1:].isdigit()]
    assert rows == [[entry.label, f"{entry.score:.4f}"] for entry in prediction.classes]
    assert "onnxruntime (cpu, fp32)" in out
    assert max(map(len, out.splitlines())) <= 80


def test_json_has_every_prediction(directory, clip, capsys):
    code, out, err = run(capsys, directory, clip, clip, "--top", "1", "--json", "--threads", "1")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["runtime"] == "onnxruntime"
    assert found["verdict"] == "pass"
    assert [entry["clip"] for entry in found["predictions"]] == [str(clip)] * 2
    first, second = (entry["classes"] for entry in found["predictions"])
    assert first == second
    assert set(first[0]) == {"index", "label", "score"}
    assert 0.5 <= first[0]["score"] <= 1  # the higher score of two classes


def test_control_characters_in_labels_and_paths_are_not_printed(directory, clip, capsys, tmp_path):
    change(directory, labels=["\x1b[31mred\u202e", "[bold]plain[/bold]"])
    hostile = tmp_path / "\x1b[2Jclip\udcff.mp4"
    shutil.copy(clip, hostile)
    code, out, _ = run(capsys, directory, hostile)
    assert code == 0
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "[bold]plain[/bold]" in out
    code, out, _ = run(capsys, directory, hostile, "--json")
    assert json.loads(out)["predictions"][0]["clip"] == str(hostile)


@pytest.mark.parametrize("verdict", ["fail", "ill-conditioned", "not-run"])
def test_an_unproven_export_predicts_with_a_warning(verdict, directory, clip, capsys):
    change(directory, verdict=verdict)
    code, out, err = run(capsys, directory, clip)
    assert code == 0
    assert "Score" in out
    assert err.startswith("tsformer: warning: ")
    assert f"not proven ({verdict})" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{dir}"], 2, "usage: no clip is given"),
        (["{dir}", "{clip}", "--top", "0"], 2, "usage: --top: got 0, expected 1 to 2"),
        (["{dir}", "{clip}", "--top", "3"], 2, "usage: --top: got 3, expected 1 to 2"),
        (["{dir}", "{clip}", "--top", "x"], 2, "usage: "),
        (["{dir}", "{clip}", "--threads", "0"], 2, "usage: --threads: got 0"),
        (["{dir}", "{clip}", "--device", "engine"], 2, "usage: {dir} has no engine"),
        (["{dir}", "{clip}", "--device", "gpu"], 2, "usage: --device: got gpu, expected one of"),
        (["{dir}", "nowhere.mp4"], 3, "video: nowhere.mp4 cannot be read"),
        (["{dir}", "{dir}/report.json", "x"], 3, "video: {dir}/report.json is not a video"),
        (["{dir}/nowhere", "{clip}"], 3, "manifest: {dir}/nowhere is not an export"),
        (["{clip}", "{clip}"], 3, "manifest: {clip} is not an export"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, code, said, directory, clip, capsys):
    def fill(text):
        return text.format(dir=directory, clip=clip)

    got, out, err = run(capsys, *map(fill, arguments))
    assert (got, out) == (code, "")
    assert err.startswith(f"tsformer: {fill(said)}")
    assert err.count("\n") == 1


def test_the_answers_that_it_has_are_kept_when_a_clip_fails(directory, clip, capsys):
    given = (directory, "nowhere.mp4", clip, directory / "report.json")
    code, out, err = run(capsys, *given, "--json")
    assert code == 3
    failed, answered, other = json.loads(out)["predictions"]
    assert answered["clip"] == str(clip)
    assert len(answered["classes"]) == 2
    assert answered["error"] == ""
    assert failed["classes"] == other["classes"] == []
    assert failed["error"].startswith("nowhere.mp4 cannot be read")
    assert "report.json is not a video" in other["error"]
    assert err.startswith("tsformer: video: nowhere.mp4 cannot be read")
    assert "(2 of 3 clips failed)" in err
    assert err.count("\n") == 1
    code, out, _ = run(capsys, *given)
    assert code == 3
    assert out.count("not read") == 2


def test_scores_follow_the_task(directory, clip, capsys):
    with Predictor(directory) as predictor:
        (softmax,) = predictor.predict([clip])
    margin = np.log(softmax.classes[0].score / softmax.classes[1].score)  # of the two logits
    change(directory, task="regression")
    _, out, _ = run(capsys, directory, clip, "--json")
    found = json.loads(out)
    values = [entry["score"] for entry in found["predictions"][0]["classes"]]
    assert found["task"] == "regression"
    assert abs(values[0] - values[1]) == pytest.approx(margin, rel=1e-5)
    assert run(capsys, directory, clip, "--top", "1")[0] == 2
    assert "Value" in run(capsys, directory, clip)[1]
    change(directory, task="multi-label")
    _, out, _ = run(capsys, directory, clip, "--json")
    for entry in json.loads(out)["predictions"][0]["classes"]:
        assert entry["score"] == pytest.approx(1 / (1 + np.exp(-values[entry["index"]])))
    assert "Sigmoid" in run(capsys, directory, clip)[1]


def test_a_changed_graph_is_refused(directory, clip, capsys):
    (directory / "model.onnx").write_bytes(b"")
    code, out, err = run(capsys, directory, clip)
    assert (code, out) == (5, "")
    assert "was changed since it was exported" in err


def test_an_engine_without_a_gpu_is_one_line(directory, clip, capsys, without_gpu):
    change(directory, engine={"flavour": "tensorrt_rtx", "status": "built, not executed"})
    (directory / "model.engine").write_bytes(b"vtrt")
    code, out, err = run(capsys, directory, clip, "--device", "engine")
    assert (code, out) == (4, "")
    assert err.startswith("tsformer: runtime: tensorrt_rtx: the engine is built, but can be ")
    assert err.count("\n") == 1


def test_cuda_without_a_gpu_is_one_line(directory, clip, capsys, without_gpu):
    code, out, err = run(capsys, directory, clip, "--device", "cuda")
    assert (code, out) == (4, "")
    assert err == "tsformer: runtime: ONNX Runtime on CUDA: this machine has no NVIDIA GPU\n"


class TestClips:
    def test_an_assumed_sampling_is_said_and_a_given_one_is_named(self, directory, clip, capsys):
        _, out, _ = run(capsys, directory, clip)
        assert "this is assumed" in " ".join(out.split())
        _, out, _ = run(capsys, directory, clip, "--sampling", "dense:2@30")
        assert "assumed" not in out
        _, out, _ = run(capsys, directory, clip, "--views", "1x3", "--json")
        told = " ".join(json.loads(out)["clip"])
        assert "assumed" in told
        assert "1 clips x 3 crops, their logits averaged" in told

    def test_a_manifest_of_an_older_version_reads_clips_as_that_version_did(
        self, directory, clip, capsys
    ):
        _, now, _ = run(capsys, directory, clip, "--json")
        old = {"scale": "pixel / 255", "layout": "rgb", "sampling": "uniform segment centres"}
        old |= {"mean": [0.0] * 3, "std": [1.0] * 3, "short_side": None}
        change(directory, preprocessing=old)
        _, out, _ = run(capsys, directory, clip, "--json")
        assert json.loads(out)["predictions"] == json.loads(now)["predictions"]

    def test_windows_are_rows_with_times(self, directory, clip, capsys):
        windows = ("--window", "2s", "--stride", "1s", "--top", "1")
        code, out, _ = run(capsys, directory, clip, *windows, "--json")
        rows = [json.loads(line) for line in out.splitlines()]
        assert code == 0
        assert [(row["start"], row["end"]) for row in rows] == [(0, 2), (1, 3), (2, 4)]
        assert {row["lag"] for row in rows} == {None}
        _, out, _ = run(capsys, directory, clip, *windows)
        assert [f"{row['start']:.2f} to {row['end']:.2f} s" for row in rows] == [
            " ".join(line.split()[1:5]) for line in out.splitlines()
        ]

    def test_a_clip_that_cannot_be_read_does_not_end_the_windows_of_others(
        self, directory, clip, capsys
    ):
        code, out, err = run(capsys, directory, "a.mp4", clip, "b.mp4", "--window", "2s")
        assert code == 3
        assert [str(clip) in line for line in out.splitlines()] == [True, True]
        others, first = err.splitlines()[-2:]
        assert "b.mp4 cannot be read" in others
        assert "a.mp4 cannot be read" in first
        assert "(2 of 3 clips failed)" in first

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            (("--stride", "1s"), "--stride needs --window"),
            (("--window", "soon"), "expected a time, as 2s"),
            (("--window", "2s", "--features", "x.npz"), "--window does not go with --features"),
            (("--top", "1", "--features", "x.npz"), "--top does not go with --features"),
            (("--sampling", "dense"), "expected uniform, dense:RATE"),
            (("--views", "2"), "expected CLIPSxCROPS"),
        ],
    )
    def test_a_wrong_option_of_the_clip_is_one_line(self, directory, clip, capsys, arguments, part):
        code, out, err = run(capsys, directory, clip, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert part in err
