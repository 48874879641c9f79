"""Test that a `Predictor` of an export gives the answers of the eager model."""

import json
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter import BatchProfile, ExportSpec
from exporter.errors import (
    ManifestError,
    NoExportError,
    RuntimeFailure,
    UsageError,
    VideoError,
)
from exporter.files.manifest import MANIFEST
from exporter.inputs.clips import read_for
from exporter.inputs.motion import MOTION_LABELS
from exporter.load import load_model
from exporter.pipeline import export
from exporter.predict import Predictor, Windows, softmax
from exporter.predict import predictor as predicting

CHECKPOINTS = Path(__file__).parents[3] / "scripts" / "checkpoints"
CLASSES = 11
SIZES = ("frames", "channels", "height", "width", "num_classes", "patch_size")
CONFIG = dict.fromkeys(SIZES, 16) | {"num_classes": CLASSES}
RUN = {"precision": "fp32", "batch": 1, "dynamic_batch": None, "keep_fp32": []}
NUMBERS = [str(i) for i in range(CLASSES)]
# The packages that `Predictor` may import. An edge image needs no others.
RUNTIME = {"exporter", "model", "numpy", "onnxruntime", "av"}
COMMAND = {"cyclopts", "rich"}  # the command line imports these too, with their dependencies


@pytest.fixture(scope="module")
def make(tiny, tmp_path_factory):
    """Export a fresh model of 11 classes; return its spec and its directory."""

    def export_one(**given):
        spec = ExportSpec(**{**tiny, "num_classes": CLASSES, **given})
        return spec, export(spec, tmp_path_factory.mktemp("predict") / "x").directory

    return export_one


@pytest.fixture(scope="module")
def fresh(make, slow):
    """Export once; tests must not change the result."""
    return make(attn="regular")


@pytest.fixture
def copy(fresh, tmp_path):
    """Make a copy of an export that a test may change."""
    return shutil.copytree(fresh[1], tmp_path / "copy")


@pytest.fixture(scope="module")
def clips(real_clips):
    return list(real_clips.values())


def eager(spec, clips):
    """Compute the softmax `(n, classes)` of the eager model in float64, clip by clip."""
    model = load_model(spec).double()
    videos = [read_for(model.config, model.preprocessing, clip).array for clip in clips]
    mask = (torch.ones(1, model.config.frames, dtype=torch.bool),) if spec.mask else ()
    with torch.inference_mode():
        logits = [model(torch.from_numpy(video).double(), *mask).numpy() for video in videos]
    return softmax(np.concatenate(logits))


def check(predictions, expected, labels, top, atol=1e-5):
    """Compare classes, their order and their scores with `expected` `(n, classes)`."""
    assert len(predictions) == len(expected)
    for prediction, scores in zip(predictions, expected, strict=True):
        order = np.argsort(-scores, kind="stable")[:top]
        assert [entry.index for entry in prediction.classes] == order.tolist()
        assert [entry.label for entry in prediction.classes] == [labels[i] for i in order]
        found = [entry.score for entry in prediction.classes]
        np.testing.assert_allclose(found, scores[order], atol=atol, rtol=0)


def run(directory, clips, top=None, **options):
    with Predictor(directory, **options) as predictor:
        return list(predictor.predict(clips, top))


def change(directory, **entries):
    """Edit the manifest, which no hash protects."""
    path = directory / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


class TestTheRealClips:
    @pytest.mark.slow
    @pytest.mark.parametrize("attn", ["fastformer", "regular"])
    def test_a_trained_model_has_the_top_5_of_eager(self, attn, clips, tmp_path):
        checkpoint = CHECKPOINTS / f"motion-{attn}.safetensors"
        spec = ExportSpec(checkpoint=checkpoint, engine="none", bench_seconds=0)
        directory = export(spec, tmp_path / "x").directory
        check(run(directory, clips), eager(spec, clips), MOTION_LABELS, 5)

    @pytest.mark.slow
    def test_a_fresh_model_has_the_top_5_of_eager(self, fresh, clips):
        spec, directory = fresh
        predictions = run(directory, clips)
        check(predictions, eager(spec, clips), NUMBERS, 5)
        assert [prediction.clip for prediction in predictions] == [*map(str, clips)]

    @pytest.mark.slow
    def test_the_check_fails_for_other_clips(self, fresh, clips):
        spec, directory = fresh
        with pytest.raises(AssertionError):
            check(run(directory, clips), eager(spec, clips[::-1]), NUMBERS, 5)

    def test_the_scores_of_all_classes_sum_to_one(self, fresh, clips):
        (prediction,) = run(fresh[1], clips[:1], top=CLASSES)
        assert sum(entry.score for entry in prediction.classes) == pytest.approx(1)
        assert len(prediction.classes) == CLASSES


class TestHowItWasExported:
    @pytest.mark.parametrize(
        "given",
        [
            # Three clips: the last run is filled up.
            pytest.param({"batch": 2}, marks=pytest.mark.slow),
            pytest.param({"dynamic_batch": BatchProfile(1, 2, 2)}, marks=pytest.mark.slow),
            pytest.param({"model": "timesformer_pytorch", "mask": True}, marks=pytest.mark.slow),
        ],
        ids=["static", "dynamic", "mask"],
    )
    def test_every_clip_has_the_answer_of_eager(self, given, make, clips):
        given = {**given, "attn": None} if "model" in given else {**given, "attn": "regular"}
        spec, directory = make(**given)
        check(run(directory, clips), eager(spec, clips), NUMBERS, 5)

    @pytest.mark.slow
    def test_a_lower_precision_runs(self, make, clips):
        spec, directory = make(attn="regular", precision="int8")
        with Predictor(directory) as predictor:
            assert predictor.runner.precision == "int8"
            predictions = list(predictor.predict(clips, CLASSES))
        found = np.zeros((len(clips), CLASSES))
        for row, prediction in zip(found, predictions, strict=True):
            for entry in prediction.classes:
                row[entry.index] = entry.score
        np.testing.assert_allclose(found, eager(spec, clips), atol=0.02, rtol=0)

    def test_labels_come_from_the_model(self, copy, clips):
        change(copy, labels=[f"class {i}" for i in range(CLASSES)])
        (prediction,) = run(copy, clips[:1])
        assert [entry.label for entry in prediction.classes] == [
            f"class {entry.index}" for entry in prediction.classes
        ]

    def test_notes_about_a_clip_are_in_the_prediction(self, fresh, clips, tmp_path, write_clip):
        write_clip(tmp_path / "short.mkv", [np.full((48, 64, 3), 99, np.uint8)])
        noted, clean = run(fresh[1], [tmp_path / "short.mkv", clips[0]])
        assert "shorter than asked (1 of 3 frames)" in noted.note
        assert clean.note == ""

    @pytest.mark.slow
    def test_a_model_of_two_classes_gives_two_scores(self, exported, clips):
        (prediction,) = run(exported().directory, clips[:1])
        assert len(prediction.classes) == 2


class TestWrongInputs:
    def test_a_directory_that_is_not_an_export_is_refused(self, tmp_path, clips):
        for directory in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(NoExportError):
                Predictor(directory)

    def test_a_changed_file_is_refused(self, copy):
        with (copy / "model.onnx").open("ab") as file:
            file.write(b"x")
        with pytest.raises(ManifestError, match="changed since it was exported"):
            Predictor(copy)

    @pytest.mark.parametrize(
        "entries",
        [
            {"preprocessing": {}},
            {"preprocessing": {"mean": [0], "std": [0], "short_side": None}},
            {"labels": ["one", "two"]},
            {"labels": 3},
            {"labels": [*NUMBERS[:-1], 3]},
            {"model": {"config": {}}},
            {"model": {"config": dict.fromkeys(SIZES, "x")}},
            {"model": {"config": dict.fromkeys(SIZES, 11)}},
            {"spec": {"dynamic_batch": None}},
            {"spec": {"precision": "fp32", "dynamic_batch": {"min": 3, "opt": 2, "max": 1}}},
            {"spec": {"precision": "fp32", "dynamic_batch": {"min": "1", "opt": 2, "max": 3}}},
            {"model": {"config": CONFIG | {"frames": 0}}},
            {"model": {"config": CONFIG | {"height": 2**20}}},
            {"spec": RUN | {"batch": 0}},
            {"spec": RUN | {"batch": "1"}},
            {"spec": RUN | {"batch": 10**9}},
            {"spec": RUN | {"runtimes": 3}},
            {"spec": RUN | {"keep_fp32": "a"}},
            {"engine": {}},
        ],
    )
    def test_a_damaged_manifest_is_refused(self, copy, entries):
        change(copy, **entries)
        with pytest.raises(ManifestError, match="damaged"):
            Predictor(copy)

    @pytest.mark.parametrize("top", [0, -1, CLASSES + 1, "3", 1.5, True])
    def test_a_wrong_number_of_classes_is_refused(self, fresh, clips, top):
        with Predictor(fresh[1]) as predictor, pytest.raises(UsageError, match="1 to 11"):
            predictor.predict(clips, top)

    @pytest.mark.parametrize("threads", [0, -1, 10**8, "2", 1.5, True])
    def test_a_wrong_number_of_threads_is_refused(self, fresh, threads):
        with pytest.raises(UsageError, match="--threads"):
            Predictor(fresh[1], threads=threads)

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [({"batch": "1"}, "--batch: got '1'"), ({"clip": "uniform"}, "clip: got 'uniform'")],
    )
    def test_a_value_of_another_type_is_refused(self, fresh, wrong, said):
        with pytest.raises(UsageError, match=said):
            Predictor(fresh[1], **wrong)

    @pytest.mark.parametrize("clips", [None, 3, b"clip.mp4"])
    def test_what_is_no_clip_is_refused(self, fresh, clips):
        with Predictor(fresh[1]) as predictor, pytest.raises(UsageError, match="clips: got"):
            predictor.predict(clips)

    def test_a_missing_clip_is_refused(self, fresh):
        with pytest.raises(VideoError, match=r"nowhere\.mp4"):
            run(fresh[1], ["nowhere.mp4"])

    def test_a_file_that_is_not_a_video_is_refused(self, fresh):
        with pytest.raises(VideoError, match="is not a video"):
            run(fresh[1], [__file__])

    def test_nan_logits_are_an_error(self, fresh, clips):
        with Predictor(fresh[1]) as predictor:
            predictor.runner.run = lambda inputs: {"logits": np.full((1, CLASSES), np.nan)}
            with pytest.raises(RuntimeFailure, match="NaN or Inf"):
                list(predictor.predict(clips[:1]))


BUILT = {"flavour": "tensorrt_rtx", "status": "built, not executed"}


class StandIn:
    """An engine with a batch from 2 to 3."""

    name, device, precision = "tensorrt_rtx", "cuda:0", "fp32"

    def __init__(self, path, flavour, precision):
        self.path, self.flavour = path, flavour
        self.input_shapes = {"video": (None, 3, 3, 32, 48)}
        self.batches = []

    def __exit__(self, *_error):
        self.input_shapes = {}

    def run(self, inputs):
        self.batches.append(len(inputs["video"]))
        rows = np.arange(CLASSES, dtype=np.float32)
        return {"logits": np.tile(rows, (self.batches[-1], 1))}


class TestTheEngine:
    @pytest.mark.slow
    def test_an_engine_is_run_within_its_profile(self, copy, clips, monkeypatch):
        monkeypatch.setattr(predicting, "TensorRtRunner", StandIn)
        spec = json.loads((copy / MANIFEST).read_text())["spec"]
        profile = {"min": 2, "opt": 2, "max": 3}
        change(copy, engine=BUILT, spec=spec | {"dynamic_batch": profile})
        (copy / "model.engine").touch()
        with Predictor(copy, device="engine") as predictor:
            assert (predictor.runner.path, predictor.runner.flavour) == (
                copy / "model.engine",
                "rtx",
            )
            found = list(predictor.predict([*clips, clips[0]]))
        assert predictor.runner.batches == [3, 2]
        assert len(found) == 4
        assert predictor.runner.input_shapes == {}  # the runner was closed

    def test_an_engine_needs_a_gpu(self, copy, without_gpu):
        change(copy, engine=BUILT)
        with pytest.raises(ManifestError, match=r"lacks model\.engine"):
            Predictor(copy, device="engine")
        (copy / "model.engine").touch()
        with pytest.raises(RuntimeFailure, match="no NVIDIA GPU"):
            Predictor(copy, device="engine")

    def test_an_engine_that_was_never_built_is_refused(self, fresh):
        with pytest.raises(UsageError, match="has no engine"):
            Predictor(fresh[1], device="engine")

    def test_an_engine_of_an_unknown_builder_is_refused(self, copy):
        change(copy, engine={"flavour": "../evil", "status": "built"})
        with pytest.raises(ManifestError, match="evil"):
            Predictor(copy, device="engine")


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


ONLY = """
    import sys

    class Only:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] not in allowed:
                raise ModuleNotFoundError(f"{name} is not installed", name=name)

    allowed = {*sys.stdlib_module_names, *sys.argv[1].split(",")}
    sys.meta_path.insert(0, Only())
"""


@pytest.mark.slow
class TestWhatIsImported:
    def test_a_predictor_imports_only_numpy_onnxruntime_and_av(self, fresh, clips):
        done = python(
            ONLY
            + """
    from exporter.predict import Predictor

    with Predictor(sys.argv[2]) as predictor:
        (found,) = predictor.predict(sys.argv[3:])
    print(found.classes[0].label)
    for name in ("torch", "onnx", "rich"):
        try:
            __import__(name)
        except ModuleNotFoundError:
            print("no", name)
            """,
            ",".join(RUNTIME),
            fresh[1],
            clips[0],
        )
        assert done.stderr == ""
        (expected,) = run(fresh[1], clips[:1])
        assert done.stdout.split("\n")[:-1] == [
            expected.classes[0].label,
            "no torch",
            "no onnx",
            "no rich",
        ]

    def test_the_command_predict_imports_nothing_of_the_export(self, fresh, clips):
        done = python(
            """
            import sys
            from exporter.cli import main

            code = main(["predict", *sys.argv[1:]])
            print(code, *sorted({name.partition(".")[0] for name in sys.modules}))
            """,
            fresh[1],
            clips[0],
        )
        code, *loaded = done.stdout.splitlines()[-1].split()
        assert code == "0"
        assert {"numpy", "onnxruntime", "av", "exporter"} <= set(loaded)
        absent = {"torch", "onnx", "onnxscript", "onnx_ir", "einops", "safetensors", "jinja2"}
        assert absent.isdisjoint(loaded)

    @pytest.mark.slow
    def test_its_imports_are_about_as_fast_as_its_libraries(self):
        def seconds(code):
            def once():
                started = time.perf_counter()
                assert python(code).returncode == 0
                return time.perf_counter() - started

            return min(once() for _ in range(3))

        libraries = "import numpy, onnxruntime, av, cyclopts, rich.progress, rich.table"
        ours = f"{libraries}, exporter.cli, exporter.predict"
        # The limit is generous: the measured ratio is 1.3, and torch alone would make it 4.
        assert seconds(ours) < 2 * seconds(libraries) + 0.1

    @pytest.mark.parametrize("command", ["export", "verify", "ladder", "tune-precision"])
    def test_commands_that_need_torch_name_the_install_command(self, command, fresh):
        given = {
            "export": (),
            "verify": (fresh[1], "--checkpoint"),
            "tune-precision": (fresh[1], "--budget", "1"),
        }
        done = python(
            """
            import sys
            sys.modules["torch"] = sys.modules["onnx"] = sys.modules["jinja2"] = None
            from exporter.cli import main
            sys.exit(main(sys.argv[1:]))
            """,
            command,
            *given.get(command, (fresh[1],)),
        )
        assert done.returncode == 4
        assert done.stderr.startswith("tsformer: install: this command needs ")
        assert "pip install 'tsformer[cpu]'" in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""

    def test_the_doctor_works_without_torch(self):
        done = python(
            """
            import sys
            sys.modules["torch"] = None
            from exporter.cli import main
            sys.exit(main(["doctor", "--json"]))
            """
        )
        assert done.returncode == 0
        findings = {f["part"]: f for f in json.loads(done.stdout)["findings"]}
        assert not findings["PyTorch"]["works"]
        assert "pip install 'tsformer[cpu]'" in findings["PyTorch"]["remedy"]
        assert findings["ONNX Runtime"]["works"]
        assert "abilities" in json.loads(done.stdout)


@pytest.mark.slow
def test_ctrl_c_ends_it_without_output(fresh, clips):
    done = python(
        """
        import os, signal, sys
        from exporter.inputs import decode as decoding
        from exporter.cli import main

        decode = decoding._decode_all

        def interrupted(*arguments):
            os.kill(os.getpid(), signal.SIGINT)
            return decode(*arguments)

        decoding._decode_all = interrupted
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(main(["predict", *sys.argv[1:]]))
        """,
        fresh[1],
        clips[0],
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "tsformer: interrupted: nothing was left behind\n"


class TestViews:
    @pytest.mark.slow
    @pytest.mark.parametrize("average", ["logits", "probabilities"])
    @pytest.mark.parametrize("batch", [None, BatchProfile(1, 2, 8)], ids=["fixed", "dynamic"])
    def test_views_equal_the_average_of_the_single_views_to_the_last_bit(
        self, make, clips, average, batch
    ):
        _, directory = make(attn="regular", dynamic_batch=batch)
        with Predictor(directory, clip={"views": f"2x3:{average}"}) as predictor:
            card = predictor.card
            (found,) = predictor.predict([clips[0]], CLASSES)
            views = read_for(card.config, card.preprocessing, clips[0]).array
            assert len(views) == 6
            rows = [predictor.runner.run({"video": view[None]})["logits"] for view in views]
        logits = np.concatenate(rows).astype(np.float64)
        expected = softmax(logits).mean(0)
        if average == "logits":
            expected = softmax(logits.mean(0))
        got = {entry.index: entry.score for entry in found.classes}
        assert [got[index] for index in range(CLASSES)] == expected.tolist()

    def test_what_a_call_says_of_the_clip_replaces_the_manifest(self, fresh, clips):
        with Predictor(fresh[1], clip={"sampling": "dense:4@30", "views": "1x3"}) as predictor:
            how = predictor.card.preprocessing
            assert (str(how.sampling), how.views.crops) == ("dense:4@30:steps:centre:clamp", 3)
        with pytest.raises(UsageError, match=r"^sampling: got 'dense'"):
            Predictor(fresh[1], clip={"sampling": "dense"})
        with pytest.raises(UsageError, match=r"^unknown entry of clip: got 'foo'"):
            Predictor(fresh[1], clip={"foo": 1})

    def test_answers_that_are_taken_after_the_end_are_an_error(self, fresh, clips):
        with Predictor(fresh[1]) as predictor:
            found = predictor.predict([clips[0]], CLASSES)
        with pytest.raises(RuntimeFailure, match="closed"):
            list(found)


class TestWindows:
    def test_windows_have_times_and_the_answers_of_the_cut_clip(self, fresh, tmp_path, write_clip):
        path = tmp_path / "clip.mkv"
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (75, 48, 64, 3), np.uint8)
        write_clip(path, images)
        write_clip(tmp_path / "cut.mkv", images[25:50])
        with Predictor(fresh[1]) as predictor:
            rows = list(predictor.predict_windows(str(path), Windows.parse("1s"), 3))
            (cut,) = predictor.predict([tmp_path / "cut.mkv"], 3)
        assert [(row.start, row.end) for row in rows] == [(0, 1), (1, 2), (2, 3)]
        assert rows[1].classes == cut.classes
        assert {row.lag for row in rows} == {None}
