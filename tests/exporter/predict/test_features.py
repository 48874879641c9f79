"""Test exports of features, tokens, hidden states and attentions, from export to prediction."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from exporter import ExportSpec
from exporter.cli import main
from exporter.errors import OutputError, UsageError
from exporter.files.manifest import MANIFEST
from exporter.files.reference import REFERENCE, read_reference
from exporter.inputs.clips import read_for
from exporter.load import load_model
from exporter.pipeline import export
from exporter.predict import Predictor
from exporter.predict.features import Described, describe, write_features
from exporter.target.verify import verify
from model import TimeSformerViT

ALL = ("logits", "features", "tokens", "hidden-states", "attentions")
NAMES = ["logits", "features", "tokens", "hidden_states", "attentions"]


@pytest.fixture(scope="module")
def everything(tiny, tmp_path_factory):
    """Export all outputs once; tests must not change the result."""
    spec = ExportSpec(attn="regular", outputs=ALL, num_classes=5, **{**tiny, "depth": 2})
    return spec, export(spec, tmp_path_factory.mktemp("outputs") / "x")


@pytest.fixture(scope="module")
def headless(tiny, tmp_path_factory):
    """Export a bare Hugging Face model once: no classifier, and no output is named."""
    folder = tmp_path_factory.mktemp("headless")
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 32, "patch_size": 8, "num_frames": 2, "hidden_size": 16}
    more = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = transformers.TimesformerConfig(**sizes, **more)
    transformers.TimesformerModel(config).save_pretrained(folder / "bare")
    spec = ExportSpec(checkpoint=folder / "bare", engine="none", bench_seconds=0.0)
    return spec, export(spec, folder / "x")


def in_onnxruntime(report):
    """The rows of `model.onnx`, without those of its structure."""
    return [row for row in report.parity if row.runtime == "onnxruntime"]


def outputs_of(directory):
    manifest = json.loads((directory / MANIFEST).read_text())
    return {entry["name"]: entry["shape"] for entry in manifest["outputs"]}


def test_every_output_is_in_the_graph_and_proven(everything):
    _, result = everything
    shapes = [[1, 5], [1, 32], [1, 19, 32], [1, 3, 19, 32], [1, 2, 3, 2, 7, 7]]
    assert outputs_of(result.directory) == dict(zip(NAMES, shapes, strict=True))
    assert [(row.output, row.verdict) for row in in_onnxruntime(result.report)] == [
        (name, "pass") for name in NAMES
    ]
    assert all(0 < row.rel_l2 < 1e-5 for row in in_onnxruntime(result.report))
    assert {row.verdict for row in result.report.parity} == {"pass"}
    refused = {entry["name"] for entry in result.report.graph["rewrites_refused"]}
    assert {"class_token", "heads_first", "cut_attention"} <= refused


def test_reference_holds_the_truth_of_every_output(everything):
    spec, result = everything
    kept = read_reference(result.directory / REFERENCE)
    sizes = dict(zip(NAMES, (5, 32, 19 * 32, 3 * 19 * 32, 2 * 3 * 2 * 49), strict=True))
    assert dict(kept.outputs) == sizes
    assert kept.truth.shape == (len(kept.inputs), sum(sizes.values()))
    assert kept.truth.dtype == np.float64
    manifest = json.loads((result.directory / MANIFEST).read_text())
    assert list(manifest["floors"]) == ["fp32", *(f"fp32 {name}" for name in NAMES[1:])]
    assert manifest["spec"]["outputs"] == list(spec.outputs)


def test_verify_judges_every_output_without_torch_and_onnx(everything):
    _, result = everything
    code = f"""
        import sys
        sys.modules["torch"] = sys.modules["onnx"] = None
        from exporter.target.verify import verify
        for row in verify({str(result.directory)!r}).parity:
            if row.runtime == "onnxruntime":
                print(row.output, row.verdict)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == [f"{name} pass" for name in NAMES]


def test_verify_names_the_output_that_is_wrong(everything, tmp_path):
    import onnx
    from onnx import numpy_helper

    from exporter.files.manifest import sha256

    _, result = everything
    copy = tmp_path / "x"
    copy.mkdir()
    for file in result.directory.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    graph = onnx.load(copy / "model.onnx")
    node = next(n for n in graph.graph.node if "features" in n.output)
    half = numpy_helper.from_array(np.array(1.001, np.float32), "spoilt")
    graph.graph.initializer.append(half)
    node.output[list(node.output).index("features")] = "features.right"
    for reader in graph.graph.node:
        renamed = ["features.right" if name == "features" else name for name in reader.input]
        reader.input[:] = renamed
    spoil = onnx.helper.make_node("Mul", ["features.right", "spoilt"], ["features"])
    graph.graph.node.append(spoil)
    onnx.save(graph, copy / "model.onnx")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"]["model.onnx"]["sha256"] = sha256(copy / "model.onnx")
    (copy / MANIFEST).write_text(json.dumps(manifest))
    verdicts = {row.output: row.verdict for row in in_onnxruntime(verify(copy))}
    assert verdicts == dict.fromkeys(NAMES, "pass") | {"features": "fail"}


def test_a_headless_model_gives_features(headless):
    _, result = headless
    assert outputs_of(result.directory) == {"features": [1, 16]}
    assert [(row.output, row.verdict) for row in in_onnxruntime(result.report)] == [
        ("features", "pass")
    ]
    assert result.verdict == "pass"
    assert "for features" in (result.directory / "report.md").read_text()


def test_features_of_a_clip_are_those_of_the_eager_model(headless, real_clips, tmp_path, capsys):
    spec, result = headless
    clip, file = real_clips["bikes"], tmp_path / "out.npz"
    assert main(["predict", str(result.directory), str(clip), "--features", str(file)]) == 0
    assert "features 1 x 16" in capsys.readouterr().out
    model = load_model(spec)
    video = read_for(model.config, model.preprocessing, clip).array
    with torch.no_grad():
        truth = model.double()(torch.from_numpy(video).double()).numpy()
    with np.load(file, allow_pickle=False) as arrays:
        assert list(arrays["clips"]) == [str(clip)]
        np.testing.assert_allclose(arrays["features"], truth, rtol=1e-4, atol=1e-5)


def test_classes_of_an_export_without_logits_are_refused_with_a_remedy(headless, real_clips):
    _, result = headless
    with Predictor(result.directory) as predictor, pytest.raises(UsageError, match="--features"):
        list(predictor.predict([real_clips["bikes"]]))


def test_rows_of_an_export_without_logits_have_features_and_no_classes(
    headless, real_clips, tmp_path
):
    _, result = headless
    out, clip = tmp_path / "rows.jsonl", str(real_clips["bikes"])
    assert main(["label", str(result.directory), clip, "-o", str(out), "--features"]) == 0
    row = json.loads(out.read_text())
    assert (row["classes"], row["scores"], row["error"]) == ([], [], None)
    with Predictor(result.directory) as predictor:
        (found,) = describe(predictor, [clip])
    assert np.array_equal(np.array(row["features"], np.float32), found.outputs["features"])


def test_a_predictor_describes_clips_by_every_output(everything, real_clips):
    _, result = everything
    clip = real_clips["bikes"]
    with Predictor(result.directory) as predictor:
        first, second = describe(predictor, [clip, clip])
        (prediction,) = predictor.predict([clip], top=1)
    assert list(first.outputs) == NAMES
    assert first.outputs["hidden_states"].shape == (3, 19, 32)
    assert np.array_equal(first.outputs["tokens"], second.outputs["tokens"])
    assert first.outputs["logits"].argmax() == prediction.classes[0].index


@pytest.mark.parametrize(
    ("file", "said"), [("out.csv", "ends in .npz"), ("missing/out.npz", "cannot write missing/out")]
)
def test_the_file_of_features_is_checked_before_clips_are_read(
    headless, capsys, tmp_path, monkeypatch, file, said
):
    monkeypatch.chdir(tmp_path)
    _, result = headless
    assert main(["predict", str(result.directory), "missing.mp4", "--features", file]) == 2
    assert said in capsys.readouterr().err


def test_features_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def torn(file, **_arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", torn)
    one = Described("a.mp4", "", {"features": np.zeros(2)}, np.zeros(1), (0,))
    with pytest.raises(OutputError, match="No space left"):
        write_features(tmp_path / "out.npz", [one])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attn": "performer", "outputs": ("attentions",)}, "regular attention only"),
        ({"outputs": ("features",), "eval": "motion"}, "--eval needs logits"),
    ],
)
def test_outputs_that_do_not_exist_are_refused(tiny, options, said):
    with pytest.raises(UsageError, match=said):
        load_model(ExportSpec(**tiny, **options))


def test_logits_of_a_headless_model_are_refused(headless):
    spec, _ = headless
    with pytest.raises(UsageError, match="no classifier"):
        load_model(ExportSpec(checkpoint=spec.checkpoint, outputs=("logits",)))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_outputs_are_float32_at_a_lower_precision(tiny, tmp_path, precision):
    words = ("features", "tokens", "attentions")
    spec = ExportSpec(attn="regular", outputs=words, precision=precision, **tiny)
    result = export(spec, tmp_path / "x")
    assert {entry["dtype"] for entry in result.report.graph["outputs"]} == {"float32"}
    found = {(row.runtime, row.output): row.verdict for row in result.report.parity}
    assert set(found.values()) == {"pass"}
    assert {output for _, output in found} == {"features", "tokens", "attentions"}


@pytest.mark.slow
def test_a_free_batch_and_pixels_go_with_outputs(tiny, tmp_path):
    from exporter import BatchProfile

    spec = ExportSpec(
        model="facebookresearch",
        heads=2,
        outputs=("tokens", "attentions"),
        dynamic_batch=BatchProfile(1, 2, 3),
        embed_preprocess=True,
        **{name: value for name, value in tiny.items() if name != "dim_head"},
    )
    result = export(spec, tmp_path / "x")
    assert [(row.output, row.verdict) for row in in_onnxruntime(result.report)] == [
        ("tokens", "pass"),
        ("attentions", "pass"),
    ]
    assert isinstance(load_model(spec), TimeSformerViT)
