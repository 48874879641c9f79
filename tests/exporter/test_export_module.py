"""Export modules that are not of this package: a CNN, a VideoMAE, a text model, and bad ones."""

import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exporter import BatchProfile, ExportSpec, export_module
from exporter.cli import main
from exporter.errors import ManifestError, OnnxError, UsageError
from exporter.files.manifest import MANIFEST, sha256
from exporter.files.reference import REFERENCE, read_reference
from exporter.predict import Predictor
from exporter.target.bench import bench
from exporter.target.verify import verify

ROOT = Path(__file__).parents[2]
QUICK = ExportSpec(engine="none", bench_seconds=0.0)


def in_onnxruntime(report):
    """The rows of `model.onnx`, without those of its structure."""
    return [row for row in report.parity if row.runtime == "onnxruntime"]


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


def cnn():
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    tail = [nn.MaxPool2d(2), Residual(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    model = nn.Sequential(*stem, *tail)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model.train()  # the export takes a copy in evaluation mode


def images():
    return torch.randn(8, 3, 24, 32, generator=torch.manual_seed(1))


@pytest.fixture(scope="module")
def exported_cnn(tmp_path_factory, slow):
    """Export the CNN once; tests must not change the result."""
    out = tmp_path_factory.mktemp("module") / "cnn"
    spec = ExportSpec(engine="none", bench_seconds=0.0, dynamic_batch=BatchProfile(1, 2, 4))
    model = cnn()
    result = export_module(model, {"image": images()}, out, spec, outputs=["logits"])
    assert model.training
    return model, result


def test_a_cnn_is_proven(exported_cnn):
    _, result = exported_cnn
    (row,) = in_onnxruntime(result.report)
    assert (row.runtime, row.output, row.verdict) == ("onnxruntime", "logits", "pass")
    assert row.top1_agreement == 1.0
    assert 0 < row.rel_l2 <= row.tolerance < 1e-5
    assert {row.runtime for row in result.report.latency} == {"eager", "onnxruntime"}
    graph = onnx.load(result.directory / "model.onnx")
    assert [value.name for value in graph.graph.input] == ["image"]
    assert result.report.graph["inputs"][0]["shape"][1:] == (3, 24, 32)
    assert "Inputs: 8 given" in (result.directory / "report.md").read_text()


def test_the_reference_of_a_module_holds_its_inputs_and_truth(exported_cnn):
    model, result = exported_cnn
    kept = read_reference(result.directory / REFERENCE)
    assert np.array_equal(kept.given["image"], images().numpy())
    with torch.no_grad():
        truth = model.eval().double()(images().double())
    np.testing.assert_allclose(kept.truth, truth.numpy(), rtol=1e-12)


def test_a_module_is_verified_without_torch_and_onnx(exported_cnn):
    _, result = exported_cnn
    code = f"""
        import sys
        sys.modules["torch"] = sys.modules["onnx"] = None
        from exporter.target.verify import verify
        print(*[(row.output, row.verdict) for row in verify({str(result.directory)!r}).parity
            if row.runtime == 'onnxruntime'])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["('logits',", "'pass')"]


def test_a_module_is_timed_from_its_directory(exported_cnn):
    _, result = exported_cnn
    assert [(row.batch, row.runtime) for row in bench(result.directory, seconds=0.0).latency] == [
        (2, "onnxruntime")
    ]


def copy_of(result, path):
    path.mkdir()
    for file in result.directory.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def test_a_changed_weight_of_a_module_fails(exported_cnn, tmp_path):
    copy = copy_of(exported_cnn[1], tmp_path / "x")
    graph = onnx.load(copy / "model.onnx")
    weight = max(graph.graph.initializer, key=lambda one: len(one.raw_data))
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.001)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, copy / "model.onnx")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"]["model.onnx"]["sha256"] = sha256(copy / "model.onnx")
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert [row.verdict for row in in_onnxruntime(verify(copy))] == ["fail"]


def test_commands_for_clips_refuse_a_module(exported_cnn, tmp_path, capsys):
    directory = str(exported_cnn[1].directory)
    with pytest.raises(UsageError, match="does not take clips"):
        Predictor(directory)
    for command in (["verify", "--checkpoint", str(tmp_path)], ["ladder"], ["tune-precision"]):
        assert main([command[0], directory, *command[1:]]) == 2
        error = capsys.readouterr().err
        assert "no checkpoint makes again; verify without --checkpoint, bench, inspect" in error
    assert main(["triton", directory, str(tmp_path / "models"), "--name", "cnn"]) == 0
    config = (tmp_path / "models" / "cnn_onnx" / "config.pbtxt").read_text()
    assert 'name: "image"' in config
    assert "preprocessing" not in config
    assert main(["triton", directory, str(tmp_path / "m"), "--name", "cnn", "--ensemble"]) == 2


def test_a_module_is_inspected_without_facts_of_a_model_of_ours(exported_cnn, capsys):
    assert main(["inspect", str(exported_cnn[1].directory)]) == 0
    assert "verdict at export: pass" in capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_a_videomae_is_proven_with_hidden_states_left_aside(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 32}
    more = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(**sizes, **more, num_labels=5)
    model = transformers.VideoMAEForVideoClassification(config)
    clips = torch.randn(8, 4, 3, 32, 32)
    result = export_module(model, {"pixel_values": clips}, tmp_path / "x", QUICK)
    assert [(row.output, row.verdict) for row in in_onnxruntime(result.report)] == [
        ("logits", "pass")
    ]
    bare = transformers.VideoMAEModel(config)
    result = export_module(bare, {"pixel_values": clips}, tmp_path / "bare", QUICK)
    assert [(row.output, row.verdict) for row in in_onnxruntime(result.report)] == [
        ("last_hidden_state", "pass")
    ]


@pytest.mark.slow
def test_the_example_of_a_text_model_is_proven(tmp_path, capsys):
    path = ROOT / "examples" / "text_model.py"
    spec = importlib.util.spec_from_file_location("text_model", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main(str(tmp_path / "text")) == 0
    assert capsys.readouterr().out.startswith("pass: logits error ")
    manifest = json.loads((tmp_path / "text" / MANIFEST).read_text())
    assert manifest["inputs"] == [{"name": "ids", "dtype": "int64", "shape": [1, 16]}]


class Two(nn.Module):
    """Two inputs, one a mask, and two outputs."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(6, 5)

    def forward(self, x, mask):
        pooled = (self.map(x) * mask.unsqueeze(-1)).sum(1)
        return pooled, torch.tanh(pooled)


@pytest.mark.slow
def test_several_inputs_and_outputs_keep_their_names_and_are_proven(tmp_path):
    inputs = {"x": np.random.default_rng(0).normal(size=(9, 4, 6)).astype(np.float32)}
    inputs["mask"] = np.arange(36).reshape(9, 4) % 3 > 0
    result = export_module(Two(), inputs, tmp_path / "x", QUICK, outputs=["pooled", "squashed"])
    rows = [(row.output, row.verdict, row.inputs) for row in in_onnxruntime(result.report)]
    assert rows == [("pooled", "pass", 9), ("squashed", "pass", 9)]
    assert [(row.output, row.verdict) for row in in_onnxruntime(verify(result.directory))] == [
        ("pooled", "pass"),
        ("squashed", "pass"),
    ]


class Bent(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.nn.functional.hardswish(x).clamp(0, 2).round() + x)


def test_a_module_may_cut_and_round_with_numbers_of_its_own(tmp_path):
    x = torch.randn(8, 4, generator=torch.manual_seed(0))
    result = export_module(Bent(), {"x": x}, tmp_path / "out", QUICK)
    assert result.verdict == "pass"


class Coupled(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def test_a_module_that_mixes_its_samples_is_not_proven(tmp_path):
    spec = ExportSpec(engine="none", bench_seconds=0.0, batch=2)
    result = export_module(Coupled(), {"x": images().flatten(1)}, tmp_path / "x", spec)
    assert result.verdict == "fail"


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_inputs_of_another_float_type_are_taken_as_float32(dtype, tmp_path):
    spec = ExportSpec(engine="none", bench_seconds=0.0)
    generator = torch.Generator().manual_seed(0)
    inputs = {"x": torch.randn(8, 4, generator=generator).to(getattr(torch, dtype))}
    result = export_module(nn.Linear(4, 2), inputs, tmp_path / "x", spec)
    assert result.verdict == "pass"


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Single(nn.Module):
    def forward(self, x):
        return x @ torch.ones(4, 3)


class Summed(nn.Module):
    def forward(self, x):
        return x.sum()


@pytest.mark.parametrize(
    ("module", "inputs", "options", "error", "said"),
    [
        (Branching(), {"x": torch.ones(8, 4)}, {}, OnnxError, "torch could not export"),
        (Single(), {"x": torch.ones(8, 4)}, {}, UsageError, "does not run in float64"),
        (Single(), {"x": torch.ones(8, 5)}, {}, UsageError, "does not run in float32"),
        (Summed(), {"x": torch.ones(8, 4)}, {}, UsageError, "the batch as its first axis"),
        (Coupled(), {"x": torch.ones(7, 4)}, {}, UsageError, "at least 8"),
        (Coupled(), {}, {}, UsageError, "at least 8"),
        ("a path", {"x": torch.ones(8, 4)}, {}, UsageError, "module: got 'a path'"),
        (Coupled(), [torch.ones(8, 4)], {}, UsageError, "got list, expected names with arrays"),
        (Coupled(), {"x": ["a"] * 8}, {}, UsageError, "expected numbers or booleans"),
        (Coupled(), {1: torch.ones(8, 4)}, {}, UsageError, "got 1, expected a text"),
        (Coupled(), {"x": torch.ones(8, 4)}, {"outputs": ["a", "b"]}, UsageError, "not give"),
        (
            Coupled(),
            {"x": torch.ones(8, 4)},
            {"spec": ExportSpec(attn="regular")},
            UsageError,
            "option attn means nothing",
        ),
    ],
    ids=[
        *("branch", "float32 only", "shape", "scalar", "seven", "none"),
        *("no module", "list", "texts", "name", "outputs", "option"),
    ],
)
def test_a_module_that_cannot_be_exported_is_refused_with_the_reason(
    tmp_path, module, inputs, options, error, said
):
    with pytest.raises(error, match=said):
        export_module(module, inputs, tmp_path / "x", **{"spec": QUICK, **options})
    assert not (tmp_path / "x").exists()


def test_changed_inputs_of_a_module_are_refused(exported_cnn, tmp_path):
    from dataclasses import replace

    from exporter.files.reference import write_reference

    copy = copy_of(exported_cnn[1], tmp_path / "x")
    kept = read_reference(copy / REFERENCE)
    other = replace(kept, given={"image": kept.given["image"] + 1})
    write_reference(copy / REFERENCE, other)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"][REFERENCE]["sha256"] = sha256(copy / REFERENCE)
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match=r"sample-0.* other values"):
        verify(copy)
