"""Test OpenVINO as a target: its graph, its rows, and its file on other machines."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporter import BatchProfile, ExportSpec
from exporter.files.machines import read_machines
from exporter.files.manifest import read_manifest, sha256
from exporter.pipeline import export
from exporter.runners.openvino import precisions
from exporter.sweep.results import read_cells
from exporter.target.bench import bench
from exporter.target.record import keep
from exporter.target.verify import verify

ON_THIS_CPU = precisions()

pytestmark = pytest.mark.slow  # each exports


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """Export once for each set of options, for ONNX Runtime and OpenVINO."""
    done = {}

    def get(**options):
        key = tuple(sorted(options.items()))
        if key not in done:
            out = tmp_path_factory.mktemp("openvino") / "made"
            chosen = {**tiny, "runtimes": ("onnxruntime", "openvino"), **options}
            done[key] = export(ExportSpec(**chosen), out)
        return done[key]

    return get


def rows_of(report):
    return {(row.runtime, row.precision): row for row in report.parity}


def test_float32_is_judged_and_timed_on_the_graph_of_onnx_runtime(made):
    result = made()
    rows = rows_of(result.report)
    row = rows["openvino", "fp32"]
    assert (row.verdict, row.inputs) == ("pass", rows["onnxruntime", "fp32"].inputs)
    assert row.inputs >= 8
    assert row.rel_l2 < 3e-6  # bf16 would be above 1e-3
    assert "openvino" in [row.runtime for row in result.report.latency]
    assert not (result.directory / "model.openvino.onnx").exists()


def test_bf16_has_a_float32_graph_of_its_own_that_is_proven_in_float32(made):
    result = made(attn="regular", precision="bf16")
    rows = rows_of(result.report)
    assert rows["onnxruntime-openvino", "fp32"].verdict == "pass"
    assert rows["onnxruntime-openvino", "fp32"].rel_l2 < 3e-6
    graph = onnx.load(result.directory / "model.openvino.onnx")
    assert {weight.data_type for weight in graph.graph.initializer} <= {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
    }
    row = rows["openvino", "bf16"]
    if "bf16" in ON_THIS_CPU:
        assert row.verdict == "pass"
        assert row.rel_l2 > 1e-4
    else:
        assert row.verdict == "not-run"
        assert "has no bf16 on this CPU" in row.reason
    size = (result.directory / "model.openvino.onnx").stat().st_size
    assert result.report.graph["openvino_bytes"] == size


def test_int8_is_judged_by_the_rounding_between_its_products(made):
    result = made(precision="int8")
    rows = rows_of(result.report)
    assert rows["openvino", "int8"].verdict == "pass"
    plain, other = rows["onnxruntime", "int8"], rows["openvino", "int8"]
    assert other.floor_rel_l2 == plain.floor_rel_l2
    expected = "pass" if "bf16" in ON_THIS_CPU else "not-run"
    assert rows["openvino-bf16", "int8"].verdict == expected
    floors = read_manifest(result.directory)["floors"]
    assert set(floors) == {"fp32", "int8-onnxruntime", "int8-bf16"}
    assert floors["int8-bf16"] != floors["int8-onnxruntime"]


def test_int8_of_a_wide_model_with_a_mean_class_token_runs(tmp_path):
    """Its blocks have integer products: OpenVINO counted the axes before the mean wrong."""
    sizes = {"frames": 3, "res": (32, 32), "dim": 512, "heads": 8, "depth": 2, "num_classes": 5}
    given = {"model": "facebookresearch", "precision": "int8", "runtimes": ("openvino",)}
    result = export(ExportSpec(**sizes, **given, engine="none", bench_seconds=0.0), tmp_path / "x")
    assert rows_of(result.report)["openvino", "int8"].verdict == "pass"


def test_a_free_batch_is_proven_and_timed(made):
    result = made(dynamic_batch=BatchProfile(1, 2, 4))
    assert rows_of(result.report)["openvino", "fp32"].verdict == "pass"
    found = bench(result.directory, batches=(1, 3), seconds=0)
    assert {(r.runtime, r.batch) for r in found.latency} == {
        (runtime, batch) for runtime in ("onnxruntime", "openvino") for batch in (1, 3)
    }


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_it_runs_without_torch_onnx_and_onnx_runtime(made, command):
    code = """
import sys
for name in ("torch", "onnx", "onnxruntime"):
    sys.modules[name] = None
from exporter.cli import main
sys.exit(main(sys.argv[1:]))
"""
    more = ["--seconds", "0"] if command == "bench" else []
    command = [sys.executable, "-c", code, command, str(made().directory), *more, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    rows = found["latency"] or found["parity"]
    assert "openvino" in [row["runtime"] for row in rows if row.get("verdict") != "not-run"]


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made().directory, tmp_path / "copy")


def test_a_changed_weight_fails(copy):
    path = copy / "model.onnx"
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda w: int(np.prod(w.dims)))
    changed = numpy_helper.to_array(weight) + np.float32(0.1)
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(model, path)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["model.onnx"]["sha256"] = sha256(path)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert rows_of(verify(copy))["openvino", "fp32"].verdict == "fail"


def test_an_export_that_names_no_runtime_is_run_where_openvino_works(copy, openvino_by_default):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["spec"]["runtimes"] = []
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert rows_of(verify(copy))["openvino", "fp32"].verdict == "pass"
    manifest["spec"]["runtimes"] = ["onnxruntime"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert ("openvino", "fp32") not in rows_of(verify(copy))


def test_a_record_names_the_file_that_was_run(copy):
    report = verify(copy)
    keep(copy, "here", report.environment, report.parity)
    (found,) = read_machines(copy, read_manifest(copy)).found
    assert found.files["openvino"] == "model.onnx"


def test_a_sweep_counts_the_bytes_of_the_file_that_openvino_runs(made):
    report = json.loads((made().directory / "report.json").read_text())
    report["graph"]["openvino_bytes"] = 17
    row = {"cell": {}, "status": "done", "verdict": "pass", "report": report}
    (cell,) = read_cells([row])
    sizes = {timed.runtime: timed.bytes for timed in cell.made}
    assert sizes == {"onnxruntime": report["graph"]["file_bytes"], "openvino": 17}
