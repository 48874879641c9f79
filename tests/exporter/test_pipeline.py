import json
from dataclasses import replace

import onnx
import pytest

from exporter import ExportSpec, pipeline


@pytest.mark.slow
def test_a_report_is_rendered_once_with_all_its_stages(tmp_path, monkeypatch):
    rendered = []
    write = pipeline.write_report

    def note(report, directory):
        rendered.append(report)
        write(report, directory)

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
