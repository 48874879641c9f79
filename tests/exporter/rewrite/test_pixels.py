"""Test `--embed-preprocess`: the graph takes pixels, and every reader of an export knows that."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from exporter import BatchProfile, ExportSpec
from exporter.cli import main
from exporter.errors import RuntimeFailure
from exporter.files.manifest import MANIFEST, read_manifest
from exporter.inputs.clips import gather_calibration, gather_inputs, read_for
from exporter.load import load_model
from exporter.pipeline import export
from exporter.predict import Predictor, softmax
from exporter.target.verify import verify
from exporter.to_engine.build import build_engine
from exporter.to_engine.flavours import available_flavours
from model import load_checkpoint, save_checkpoint
from model.config import ClipConfig
from model.preprocessing import Preprocessing

MOTION = Path(__file__).parents[3] / "scripts" / "checkpoints" / "motion-fastformer.safetensors"
CONFIG = ClipConfig(3, 3, 32, 48, 11)
HOW = Preprocessing((0.45, 0.4, 0.35), (0.225, 0.25, 0.2), embedded=True)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Save a checkpoint of 11 classes with its own normalisation."""
    sizes = {name: tiny[name] for name in ("depth", "dim", "dim_head", "frames", "res")}
    model = load_model(ExportSpec(attn="regular", num_classes=11, **sizes))
    model.preprocessing = Preprocessing(HOW.mean, HOW.std)
    path = tmp_path_factory.mktemp("trained") / "x.safetensors"
    save_checkpoint(model, path)
    return path


@pytest.fixture(scope="module")
def make(trained, real_clips, tmp_path_factory):
    def export_one(**given):
        spec = ExportSpec(
            checkpoint=trained,
            embed_preprocess=True,
            engine="none",
            bench_seconds=0,
            video=(real_clips["bikes"],),
            **given,
        )
        return spec, export(spec, tmp_path_factory.mktemp("embed") / "x")

    return export_one


@pytest.fixture(scope="module")
def made(make):
    return make()


class TestTheClips:
    def test_synthetic_clips_use_the_whole_range_of_pixels(self):
        inputs = gather_inputs((), CONFIG, HOW)
        video = inputs.arrays["video"]
        assert (video.dtype, video.shape) == (np.uint8, (16, 3, 32, 48, 3))
        noise = video[inputs.names.index("normal-0")]
        assert 100 < noise.mean() < 155
        assert ((noise == 0) | (noise == 255)).mean() < 0.03
        assert set(np.unique(video[inputs.names.index("checkerboard")])) == {0, 255}
        flat = video.reshape(16, -1)
        assert len(np.unique(flat, axis=0)) == 16  # all clips differ

    def test_calibration_clips_are_pixels(self):
        video = gather_calibration((), CONFIG, HOW).arrays["video"]
        assert (video.dtype, video.shape[1:]) == (np.uint8, (3, 32, 48, 3))

    def test_real_clips_equal_the_rounded_float_clips(self, real_clips):
        plain = Preprocessing(HOW.mean, HOW.std)
        floats = read_for(CONFIG, plain, real_clips["bikes"])
        pixels = read_for(CONFIG, HOW, real_clips["bikes"])
        assert (pixels.array.dtype, pixels.array.shape) == (np.uint8, (1, 3, 32, 48, 3))
        back = np.moveaxis(floats.array, 2, -1) * np.float32(HOW.std) + np.float32(HOW.mean)
        assert np.abs(back * 255 - pixels.array).max() <= 0.5 + 1e-3
        assert pixels.summary == floats.summary

    def test_grey_clips_have_one_channel(self, real_clips):
        config = ClipConfig(3, 1, 32, 48, 11)
        how = Preprocessing((0.5,), (0.25,), embedded=True)
        assert read_for(config, how, real_clips["bikes"]).array.shape == (1, 3, 32, 48, 1)


@pytest.mark.slow
class TestTheExport:
    def test_it_is_proven_on_pixels(self, made):
        _, result = made
        assert result.verdict == "pass"
        row, structure = result.report.parity
        assert structure.verdict == "pass"
        assert row.inputs == 17
        assert row.rel_l2 < 1e-5
        fired = [rewrite["name"] for rewrite in result.report.graph["rewrites"]]
        assert "fold_pixels" in fired

    def test_the_manifest_and_the_graph_record_pixels(self, made):
        _, result = made
        manifest = read_manifest(result.directory)
        expected = {"name": "video", "dtype": "uint8", "shape": [1, 3, 32, 48, 3]}
        assert manifest["inputs"] == [expected]
        assert manifest["preprocessing"]["embedded"] is True
        assert manifest["spec"]["embed_preprocess"] is True
        assert any("uint8 pixels" in note for note in manifest["spec"]["notes"])
        graph = onnx.load(result.directory / "model.onnx")
        noted = {entry.key: entry.value for entry in graph.metadata_props}
        assert json.loads(noted["tsformer.preprocessing"])["embedded"] is True
        assert json.loads(noted["tsformer.spec"])["embed_preprocess"] is True

    def test_the_graph_equals_the_model_of_normalised_clips(self, made, trained, real_clips):
        """Compare with the original model, not with the eager model that takes pixels."""
        model = load_model(ExportSpec(checkpoint=trained)).double()
        pixels = read_for(CONFIG, HOW, real_clips["bikes"]).array
        mean, std = (np.float64(values)[:, None, None] for values in (HOW.mean, HOW.std))
        clip = (np.moveaxis(pixels, -1, 2).astype(np.float64) / 255 - mean) / std
        with torch.inference_mode():
            truth = model(torch.from_numpy(clip)).numpy()
        session = onnxruntime.InferenceSession(
            made[1].directory / "model.onnx", providers=["CPUExecutionProvider"]
        )
        (logits,) = session.run(None, {"video": pixels})
        assert np.linalg.norm(logits - truth) <= 1e-5 * np.linalg.norm(truth)

    def test_predict_has_the_top_5_of_eager(self, made, real_clips):
        clips = list(real_clips.values())
        spec, result = made
        model = load_model(spec).double()
        with Predictor(result.directory) as predictor:
            found = list(predictor.predict(clips))
        for clip, prediction in zip(clips, found, strict=True):
            video = read_for(model.config, model.preprocessing, clip).array
            with torch.inference_mode():
                scores = softmax(model(torch.from_numpy(video)).numpy())[0]
            order = np.argsort(-scores, kind="stable")[:5]
            assert [entry.index for entry in prediction.classes] == order.tolist()
            got = [entry.score for entry in prediction.classes]
            np.testing.assert_allclose(got, scores[order], atol=1e-5)

    def test_it_passes_verify_and_ladder(self, made, capsys):
        directory = made[1].directory
        assert [row.verdict for row in verify(directory).parity] == ["pass", "pass"]
        assert main(["ladder", str(directory)]) == 0
        assert "every module is within" in " ".join(capsys.readouterr().out.split())

    @pytest.mark.slow
    def test_it_is_proven_without_rewrites(self, make):
        _, result = make(rewrite="none")
        assert result.verdict == "pass"
        folded = {rewrite["name"] for rewrite in result.report.graph["rewrites"]}
        assert not folded

    @pytest.mark.slow
    @pytest.mark.parametrize("precision", ["fp16", "int8"])
    def test_it_is_proven_in_lower_precision(self, make, precision):
        _, result = make(precision=precision)
        assert result.verdict == "pass"

    @pytest.mark.slow
    def test_it_is_proven_with_a_dynamic_batch(self, make):
        _, result = make(dynamic_batch=BatchProfile(1, 2, 3))
        assert result.verdict == "pass"
        assert result.report.graph["inputs"][0]["shape"][0] == "batch"

    @pytest.mark.slow
    def test_it_is_proven_with_a_mask(self, tiny, tmp_path):
        spec = ExportSpec(
            **{**tiny, "model": "timesformer_pytorch"}, mask=True, embed_preprocess=True
        )
        result = export(spec, tmp_path / "x")
        assert result.verdict == "pass"
        assert [entry["name"] for entry in result.report.graph["inputs"]] == ["video", "mask"]

    @pytest.mark.slow
    def test_accuracy_is_measured_on_pixels(self, tmp_path, monkeypatch):
        monkeypatch.setattr("exporter.inputs.dataset.MOTION_CLIPS", 64)
        spec = ExportSpec(
            checkpoint=MOTION,
            embed_preprocess=True,
            eval="motion",
            engine="none",
            bench_seconds=0,
        )
        result = export(spec, tmp_path / "x")
        assert [row.agreement for row in result.report.accuracy] == [1.0, 1.0]
        assert min(row.accuracy for row in result.report.accuracy) > 0.95

    def test_a_wrong_type_of_clip_is_refused(self, made):
        wrong = {"video": np.zeros((1, 3, 32, 48, 3), np.float32)}
        with (
            Predictor(made[1].directory) as predictor,
            pytest.raises(RuntimeFailure, match="uint8"),
        ):
            predictor.runner.run(wrong)

    def test_a_checkpoint_does_not_store_the_embedding(self, trained, tmp_path):
        model = load_model(ExportSpec(checkpoint=trained, embed_preprocess=True))
        save_checkpoint(model, tmp_path / "again.safetensors")
        again = load_checkpoint(tmp_path / "again.safetensors")
        assert again.preprocessing == Preprocessing(HOW.mean, HOW.std)


@pytest.mark.slow
def test_tensorrt_rtx_builds_an_engine_of_pixels(made, tmp_path):
    if available_flavours()["rtx"].version is None:
        pytest.skip("TensorRT-RTX does not work here")
    info = build_engine(made[1].directory / "model.onnx", tmp_path / "x.engine", flavour="rtx")
    (video,) = info.inputs
    assert (video.dtype, video.shape) == ("uint8", (1, 3, 32, 48, 3))


@pytest.mark.slow
def test_the_flag_embed_preprocess_gives_a_uint8_input(tiny_flags, tmp_path, capsys):
    out = tmp_path / "x"
    assert main(["export", *tiny_flags, "--embed-preprocess", "-o", str(out)]) == 0
    assert "Pass" in capsys.readouterr().out
    assert json.loads((out / MANIFEST).read_text())["inputs"][0]["dtype"] == "uint8"
