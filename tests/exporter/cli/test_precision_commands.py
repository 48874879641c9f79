"""Test lower precision from the command line: the report, and refused options."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from exporter.cli import main
from exporter.inputs.motion import MOTION_LABELS

pytestmark = pytest.mark.slow  # the tests export in each precision

TRAINED = Path(__file__).parents[3] / "scripts" / "checkpoints" / "motion-fastformer.safetensors"
SIZES = ["--res", "32x48", "--depth", "1", "--dim", "32", "--dim-head", "16", "--frames", "3"]
MOTION_CLIPS = 192  # a part of them, because the evaluator of lower precision is slow
QUICK = ["--engine", "none", "--bench-seconds", "0"]
TINY = ["--attn", "regular", *SIZES, *QUICK]


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_clip):
    """Write three clips of one class and two of another."""
    folder = tmp_path_factory.mktemp("data") / "clips"
    for name, count in (("dark", 3), ("light", 2)):
        for i in range(count):
            levels = 10 * np.arange(4) + 10 + 150 * (name == "light") + i
            frames = [np.full((48, 64, 3), level, np.uint8) for level in levels]
            write_clip(folder / name / f"{i}.mkv", frames)
    return folder


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """Export in fp16 with one module in float32, and evaluate on a folder; read only.

    No error has room, so that the report explains it module by module.
    """
    out = tmp_path_factory.mktemp("made") / "x"
    options = ["--precision", "fp16", "--keep-fp32", "blocks.0.mlp", "--eval", str(data)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exporter.results.ROOM", 0.0)
        assert main(["export", *TINY, *options, "--quiet", "-o", str(out)]) == 0
    return out


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a command that must fail in an empty directory; return the one line of stderr."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())

    def call(code, *arguments):
        capsys.readouterr()
        got = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert got == code, err
        assert (out, err.count("\n")) == ("", 1), err
        assert err.startswith("tsformer: ")
        assert not err.startswith("tsformer: internal"), err
        assert sorted(tmp_path.iterdir()) == before
        return err

    return call


def report_of(directory):
    return json.loads((directory / "report.json").read_text(), parse_constant=pytest.fail)


# --- the report


@pytest.mark.slow
def test_the_rows_have_the_requested_precision(made):
    report = report_of(made)
    rows = {row["runtime"]: row for row in report["parity"]}
    assert set(rows) == {"onnxruntime", "onnx-reference", "structure"}
    for row in rows.values():
        assert (row["precision"], row["verdict"], row["device"]) == ("fp16", "pass", "cpu")
        assert row["inputs"] == len(row["per_input"]) == 16
    assert rows.pop("structure")["tolerance"] == 1e-9
    for row in rows.values():
        assert row["tolerance"] == max(2e-3, 4 * row["floor_rel_l2"])
    assert {(row["runtime"], row["precision"]) for row in report["latency"]} == {
        ("eager", "fp32"),
        ("onnxruntime", "fp16"),
    }
    assert report["spec"]["precision"] == "fp16"
    assert report["spec"]["keep_fp32"] == ["blocks.0.mlp"]
    assert [stage["name"] for stage in report["stages"]] == [
        "load",
        "inputs",
        "rewrite",
        "onnx",
        "engine",
        "parity",
        "ladder",
        "accuracy",
        "latency",
        "report",
    ]


@pytest.mark.slow
def test_the_report_contains_the_ladder(made):
    found = report_of(made)["ladder"]
    assert (found["runtime"], found["precision"]) == ("onnx-reference", "fp16")
    assert found["first_divergence"] == found["first_not_finite"] == ""
    paths = [rung["path"] for rung in found["rungs"]]
    assert paths[0] == "project_in"
    assert paths[-1] == "to_out.fn"
    assert "blocks.0" in paths
    assert all(rung["finite"] and rung["rel_l2"] > 0 for rung in found["rungs"])


def test_the_report_contains_the_accuracy(made, data):
    rows = report_of(made)["accuracy"]
    assert [(row["runtime"], row["precision"]) for row in rows] == [
        ("eager", "fp32"),
        ("onnxruntime", "fp16"),
        ("onnx-reference", "fp16"),
    ]
    for row in rows:
        assert (row["clips"], row["dataset"]) == (5, str(data))
        assert row["accuracy"] in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert row["agreement"] == 1.0


class Tags(HTMLParser):
    """Check that every opened tag is closed, and collect the text."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "br", "line", "rect", "circle", "path", "col"):
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def test_report_html_shows_accuracy_and_ladder(made):
    tags = Tags()
    tags.feed((made / "report.html").read_text())
    assert not tags.open
    assert len(set(tags.ids)) == len(tags.ids)
    assert {"accuracy", "ladder"} <= set(tags.ids)
    text = " ".join(" ".join(tags.text).split())
    for words in (
        "How accurate",
        "Module by module",
        "blocks.0.attn_s.fn",
        "onnx-reference (cpu, fp16)",
        "every module is within the rounding of eager PyTorch",
    ):
        assert words in text, words
    assert not re.search(r"\b(nan|None|Undefined)\b", text)


def test_report_md_shows_accuracy_and_ladder(made):
    text = (made / "report.md").read_text()
    assert "Accuracy of onnx-reference (cpu, fp16)" in text
    assert "onnx-reference (cpu, fp16): every module is within the rounding" in text


def test_an_fp16_export_passes_verify_and_ladder_again(made, capsys):
    assert main(["verify", str(made), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [(row["runtime"], row["verdict"]) for row in again["parity"]] == [
        ("onnxruntime", "pass"),
        ("onnx-reference", "pass"),
        ("structure", "pass"),
    ]
    assert main(["ladder", str(made)]) == 0


@pytest.mark.slow
def test_the_summary_describes_fp16_in_onnxruntime(made, tmp_path, capsys):
    options = ["--precision", "fp16", "-o", str(tmp_path / "x")]
    assert main(["export", *TINY, *options]) == 0
    out, err = capsys.readouterr()
    said = " ".join(out.split())
    assert err == ""
    assert "onnx-reference" in said
    assert "computes fp16 in float32 on a CPU" in said


@pytest.mark.slow
def test_a_kept_module_makes_the_graph_larger(made, tmp_path):
    options = ["--precision", "fp16", "--quiet", "-o", str(tmp_path / "x")]
    assert main(["export", *TINY, *options]) == 0
    kept, none = (report_of(path)["graph"]["file_bytes"] for path in (made, tmp_path / "x"))
    feed_forward = 32 * 256 + 128 * 32
    assert kept - none > 0.9 * 2 * feed_forward  # float32 needs two more bytes for each weight


# --- the built-in task, with a trained model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Export a trained model in a precision, and evaluate it on a part of the built-in task."""
    done = {}
    patch = pytest.MonkeyPatch()
    patch.setattr("exporter.inputs.dataset.MOTION_CLIPS", MOTION_CLIPS)

    def get(precision):
        if precision not in done:
            out = tmp_path_factory.mktemp("trained") / precision
            options = ["--checkpoint", str(TRAINED), "--precision", precision, "--eval", "motion"]
            assert main(["export", *options, *QUICK, "--quiet", "-o", str(out)]) == 0
            done[precision] = report_of(out)
        return done[precision]

    yield get
    patch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_trained_model_keeps_its_accuracy(trained, precision):
    report = trained(precision)
    runtimes = [row["runtime"] for row in report["accuracy"]]
    assert runtimes[0] == "eager"
    assert "onnx-reference" in runtimes
    for row in report["accuracy"]:
        assert (row["dataset"], row["clips"]) == ("motion", MOTION_CLIPS)
        assert row["accuracy"] >= 0.95
        assert 0.9 < row["low"] < row["accuracy"] < row["high"] + 1e-9
        assert row["agreement"] >= 0.98
    assert {row["verdict"] for row in report["parity"]} <= {"pass", "not-run"}


# --- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "bf16", "--opset", "20"], "--opset: got 20, expected 22 to 23"),
        (["--precision", "fp16", "--target", "sm75", "--engine", "rtx"], "omit sm75"),
        (["--precision", "bf16", "--target", "sm75", "--engine", "rtx"], "omit sm75"),
        (["--precision", "fp17"], "did you mean 'fp16'"),
        (["--precision", "half"], "unknown precision"),
        (["--keep-fp32", "blocks.0"], "--keep-fp32 does not go with --precision fp32"),
        (["--precision", "fp16", "--keep-fp32", "blocks.0.mpl"], "nearest is 'blocks.0.mlp'"),
        (["--precision", "fp16", "--keep-fp32", "blocks.7"], "nearest is 'blocks.0'"),
        (["--precision", "fp16", "--keep-fp32", "("], "not a regular expression"),
        (["--precision", "fp16", "--keep-fp32", "blocks.0", "--keep-fp32", "x"], "'x' matches no"),
        (["--precision", "fp16", "--keep-fp32", "to_out"], "matches no module"),
        (["--recipe", "none.json"], "cannot read none.json"),
        (["--eval", "motion"], "built-in task"),
        (["--eval", "nowhere"], "'nowhere'"),
        (["--eval", "/proc/self"], "--eval"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_one_line_and_exit_2(refused, options, words):
    engine = [] if "--engine" in options else ["--engine", "none"]
    assert words in refused(2, "export", *SIZES, *engine, *options, "-o", "made")


@pytest.mark.slow
def test_the_built_in_task_refuses_a_single_frame(refused):
    """The command refuses it before the export, as other bad usage."""
    sizes = ["--num-classes", "8", "--frames", "1", "--res", "32", "--depth", "1"]
    narrow = ["--dim", "32", "--dim-head", "16", "--attn", "regular"]
    assert "frames" in refused(2, "export", *sizes, *narrow, *QUICK, "--eval", "motion")


def test_a_mask_with_an_evaluation_works_or_is_bad_usage(data, tmp_path, capsys):
    model = ["--model", "timesformer_pytorch", "--mask", "--res", "32", "--depth", "1"]
    sizes = ["--dim", "32", "--dim-head", "16", "--heads", "2", "--frames", "3"]
    command = ["export", *model, *sizes, *QUICK, "--quiet", "--eval", str(data)]
    code = main([*command, "-o", str(tmp_path / "x")])
    err = capsys.readouterr().err
    assert code in (0, 2), err


@pytest.mark.slow
def test_an_evaluation_without_a_good_clip_keeps_the_export_and_says_why(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "clip.mp4").write_text("no clip\n" * 100)
    out = tmp_path / "made"
    assert main(["export", *TINY, "--eval", str(folder), "-o", str(out)]) == 0
    report = report_of(out)
    assert report["accuracy"] == []
    (stage,) = (stage for stage in report["stages"] if stage["name"] == "accuracy")
    assert stage["status"] == "failed"
    assert "2 bad" in stage["detail"]


@pytest.mark.slow
def test_a_static_batch_that_does_not_divide_the_clips_is_filled(data, tmp_path):
    options = ["--batch", "2", "--eval", str(data), "--quiet", "-o", str(tmp_path / "x")]
    assert main(["export", *TINY, *options]) == 0
    for row in report_of(tmp_path / "x")["accuracy"]:
        assert (row["clips"], row["agreement"]) == (5, 1.0)


def test_the_help_names_the_options_and_commands(capsys):
    assert main(["export", "--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--precision", "--keep-fp32", "--recipe", "--eval"):
        assert option in out
    for command in ("ladder", "tune-precision"):
        assert main([command, "--help"]) == 0
        assert f"Usage: tsformer {command}" in capsys.readouterr().out


def test_the_trained_checkpoint_has_the_labels_of_the_built_in_task():
    from model import load_checkpoint

    assert load_checkpoint(TRAINED).labels == MOTION_LABELS
