import json

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
