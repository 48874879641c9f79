import json
from dataclasses import replace

import onnx
import pytest
import torch

from exporter import ExportSpec, pipeline
from exporter.errors import OutputError
from model import FastTimeSformer, save_checkpoint


@pytest.mark.slow
def test_a_report_is_rendered_once_with_all_its_stages(tmp_path, monkeypatch):
    rendered = []
    write = pipeline.write_report

    def note(report, directory, *sheets):
        rendered.append(report)
        write(report, directory, *sheets)

    monkeypatch.setattr(pipeline, "write_report", note)
    spec = ExportSpec(res=(32, 32), frames=2, dim=64, depth=1, engine="none", bench_seconds=0)
    result = pipeline.export(spec, tmp_path / "made")

    assert rendered == [result.report]
    stages = json.loads((tmp_path / "made" / "report.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == [
        "load",
        "inputs",
        "rewrite",
        "onnx",
        "engine",
        "parity",
        "latency",
        "report",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_for_tensorrt_writes_and_proves_a_graph_without_an_engine(tmp_path, precision):
    sizes = {"res": (32, 32), "frames": 2, "dim": 64, "dim_head": 32, "depth": 1}
    spec = ExportSpec(
        attn="regular", precision=precision, runtimes=("tensorrt",), engine="none", **sizes
    )
    result = pipeline.export(replace(spec, bench_seconds=0), tmp_path / "made")

    rows = {row.runtime: row for row in result.report.parity}
    assert rows["onnxruntime-tensorrt"].verdict == "pass"
    graph = onnx.load(tmp_path / "made" / "model.tensorrt.onnx").graph
    kinds = {weight.name: weight.data_type for weight in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert any(kinds.get(node.input[1]) == onnx.TensorProto.FLOAT16 for node in products) == (
        precision == "fp16"
    )
    assert not (tmp_path / "made" / "model.engine").exists()
    assert result.report.engine["status"] == "not built"


SMALL = {"res": (32, 48), "frames": 3, "dim": 32, "dim_head": 16, "depth": 1, "engine": "none"}


@pytest.mark.slow
def test_a_stray_file_among_labelled_clips_is_counted_and_costs_nothing(real_clips, tmp_path):
    for place, name in (("0", "carphone"), ("10", "carphone"), ("11", "bikes")):
        (tmp_path / "data" / place).mkdir(parents=True)
        (tmp_path / "data" / place / f"{name}.mp4").symlink_to(real_clips[name])
    (tmp_path / "data" / "10" / "Thumbs.db").write_text("no clip")
    spec = ExportSpec(
        **SMALL, num_classes=12, batch=2, bench_seconds=0, eval=str(tmp_path / "data")
    )
    result = pipeline.export(spec, tmp_path / "made")
    eager, ours = result.report.accuracy
    assert (ours.clips, ours.bad, ours.measure) == (3, 1, "top-1")
    assert (ours.agreement, ours.accuracy) == (1.0, eager.accuracy)
    stage = next(stage for stage in result.report.stages if stage.name == "accuracy")
    assert stage.status == "done"
    assert "1 bad; the first: " in stage.detail
    assert "1 bad clips do not count" in (tmp_path / "made" / "report.md").read_text()


@pytest.mark.slow
def test_a_failure_to_measure_accuracy_never_costs_the_export(tmp_path):
    for place in range(2):
        (tmp_path / "data" / str(place)).mkdir(parents=True)
        (tmp_path / "data" / str(place) / "notes.txt").write_text("no clip")
    spec = ExportSpec(**SMALL, bench_seconds=0, eval=str(tmp_path / "data"))
    result = pipeline.export(spec, tmp_path / "made")
    assert result.verdict == "pass"
    assert result.report.accuracy == ()
    stage = next(stage for stage in result.report.stages if stage.name == "accuracy")
    assert stage.status == "failed"
    assert "not measured: no clip of" in stage.detail
    page = (tmp_path / "made" / "report.html").read_text()
    assert "accuracy: not measured: no clip of" in page
    assert json.loads((tmp_path / "made" / "manifest.json").read_text())["verdict"] == "pass"


@pytest.mark.slow
def test_force_keeps_a_checkpoint_in_the_directory_that_it_would_replace(tmp_path):
    model = FastTimeSformer(2, 3, 16, 16, num_classes=2, dim=16, depth=1, dim_head=8)
    out = tmp_path / "made"
    out.mkdir()
    save_checkpoint(model, out / "trained.safetensors")
    (out / "manifest.json").write_text('{"manifest_version": 1, "verdict": "pass"}')
    spec = ExportSpec(checkpoint=out / "trained.safetensors", engine="none", bench_seconds=0)
    with pytest.raises(OutputError, match=r"trained\.safetensors lies in .* would remove"):
        pipeline.export(spec, out, force=True)
    assert (out / "trained.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_one_thread_and_two_give_the_same_graphs(precision, tmp_path):
    sizes = {"res": (64, 64), "frames": 2, "dim": 128, "dim_head": 64, "depth": 1}
    runtimes = ("onnxruntime", "tensorrt", "openvino")
    spec = ExportSpec(precision=precision, runtimes=runtimes, engine="none", **sizes)
    before, made = torch.get_num_threads(), []
    for threads in (1, 2):
        given = replace(spec, bench_seconds=0, threads=threads)
        pipeline.export(given, tmp_path / str(threads))
        files = sorted((tmp_path / str(threads)).glob("*.onnx"))
        made.append({file.name: file.read_bytes() for file in files})
    assert torch.get_num_threads() == before
    assert made[0] == made[1]
    assert "model.tensorrt.onnx" in made[0]
    integers = [
        node.op_type for node in onnx.load(files[0]).graph.node if "Integer" in node.op_type
    ]
    integers += [w.name for w in onnx.load(files[0]).graph.initializer if w.data_type == 3]
    assert bool(integers) == (precision == "int8")
