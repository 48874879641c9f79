"""Facts of exports, graphs of other origin, and engines; whole, foreign and damaged."""

import json
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter import cli
from exporter.errors import EngineError, GraphInputError, ManifestError, NoExportError
from exporter.inspection import engine as inspection_engine
from exporter.inspection import inspect
from exporter.inspection.engine import inspect_engine
from exporter.inspection.view import block, size
from exporter.to_engine.build import build_engine

needs_rtx = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="tensorrt-rtx-cu13 is for Linux on x86-64",
)
FLOAT = TensorProto.FLOAT
NOTE = "pkg.torch.onnx.name_scopes"


def node(op, inputs, output, *scopes, **attributes):
    made = helper.make_node(op, inputs, [output], name=f"node_{output}", **attributes)
    if scopes:
        made.metadata_props.add(key=NOTE, value=repr(["", *scopes, "op"]))
    return made


def save(path, *nodes, weights=(), shape=(2, 8, 16), outputs=("y",)):
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="me")
    onnx.save(made, path)
    return path


@pytest.fixture
def foreign(tmp_path):
    """Two modules and a head; a product that is transposed and scaled, for a runtime to fuse."""
    square = np.full((16, 16), 0.1, np.float32)
    return save(
        tmp_path / "model.onnx",
        node("MatMul", ["x", "w0"], "a", "blocks.0", "blocks.0.fc"),
        node("Transpose", ["a"], "t", "blocks.1", "blocks.1.attn", perm=[0, 2, 1]),
        node("MatMul", ["a", "t"], "p", "blocks.1", "blocks.1.attn"),
        node("Softmax", ["p"], "s", "blocks.1", "blocks.1.attn", axis=-1),
        node("Cast", ["s"], "h", to=TensorProto.FLOAT16),
        node("Cast", ["h"], "f", to=FLOAT),
        node("MatMul", ["f", "a"], "m", "blocks.1", "blocks.1.attn"),
        node("Add", ["m", "shared"], "n", "blocks.1"),
        node("Add", ["a", "shared"], "o", "blocks.0"),
        node("Add", ["n", "o"], "y"),
        weights=[("w0", square), ("shared", square[0]), ("shape", np.array([1, 2]))],
    )


def test_a_foreign_graph_is_inspected(foreign):
    found = inspect(foreign)
    assert (found.export, found.engine) == (None, None)
    graph = found.graph
    assert (graph.file, graph.bytes) == ("model.onnx", foreign.stat().st_size)
    assert (graph.producer, graph.opsets[""]) == ("me", 20)
    assert [(t.name, t.dtype, t.shape) for t in graph.inputs] == [("x", "float32", (2, 8, 16))]
    assert graph.ops == {"MatMul": 3, "Add": 3, "Cast": 2, "Transpose": 1, "Softmax": 1}
    assert graph.nodes == 10
    assert graph.values == {"float32": 9, "float16": 1}
    assert graph.weights == {"float32": 4 * (256 + 16), "int64": 16}
    assert graph.casts == {"float32 to float16": 1, "float16 to float32": 1}
    assert (graph.parameters, graph.weight_bytes) == (272, 4 * 272 + 16)
    assert graph.missing_weights == 0


def test_weights_belong_to_the_innermost_module_around_their_readers(foreign):
    modules = {module.path: module for module in inspect(foreign).graph.modules}
    assert modules["blocks.0.fc"].parameters == 256
    assert (modules["blocks"].parameters, modules["blocks"].nodes) == (16, 0)  # what both read
    assert modules[None].bytes == 16  # what nothing reads, and no name tells
    assert modules["blocks.1.attn"].nodes == 6  # with the casts between its nodes


def test_the_name_of_a_weight_gives_its_module_if_no_node_does(tmp_path):
    path = save(
        tmp_path / "model.onnx",
        node("MatMul", ["x", "blocks.3.fc.weight"], "h"),
        node("MatMul", ["h", "onnx::MatMul_12"], "y"),
        weights=[
            ("blocks.3.fc.weight", np.ones((16, 16), "f4")),
            ("onnx::MatMul_12", np.ones((16, 16), "f4")),
        ],
    )
    modules = {module.path: module.parameters for module in inspect(path).graph.modules}
    assert modules == {"blocks.3.fc": 256, None: 256}


def test_operations_are_counted_at_the_batch_of_the_graph(foreign, tmp_path):
    graph = inspect(foreign).graph
    assert graph.batch == 2
    products = 2 * 2 * 8 * 16 * 16 + 2 * 2 * 8 * 8 * 16 + 2 * 2 * 8 * 16 * 8
    assert graph.cost["matmul_flops"] == products
    free = save(tmp_path / "free.onnx", node("Exp", ["x"], "y"), shape=("b", 3))
    graph = inspect(free).graph
    assert (graph.batch, graph.cost["flops"]) == (1, 3)


def test_operations_that_cannot_be_counted_have_a_reason(tmp_path):
    path = save(tmp_path / "model.onnx", node("Det", ["x"], "y"), shape=(2, 4, 4))
    assert "the cost of operator Det" in inspect(path).graph.cost["reason"]


@pytest.mark.parametrize(
    ("shape", "reason"), [((), ""), (None, "the shape of 'x' cannot be found")]
)
def test_an_input_may_be_a_scalar_or_have_no_shape(tmp_path, shape, reason):
    graph = inspect(save(tmp_path / "model.onnx", node("Exp", ["x"], "y"), shape=shape)).graph
    assert graph.cost.get("reason", "") == reason
    assert graph.fusion.nodes == 1


def test_an_input_that_is_no_tensor_has_no_operations(tmp_path):
    path = save(tmp_path / "model.onnx", node("SequenceAt", ["x", "i"], "y"), weights=[("i", 0)])
    model = onnx.load(path)
    listed = helper.make_tensor_sequence_value_info("x", FLOAT, None)
    model.graph.input[0].CopyFrom(listed)
    onnx.save(model, path)
    assert "cannot be found" in inspect(path).graph.cost["reason"]


def test_a_graph_that_is_not_valid_has_no_operations(tmp_path):
    path = save(tmp_path / "model.onnx", node("MatMul", ["x"], "y"))
    assert "it is not valid ONNX: Node(node_y)" in inspect(path).graph.cost["reason"]


def test_the_batch_is_that_of_an_input_and_not_of_a_weight(tmp_path):
    path = save(
        tmp_path / "model.onnx", node("Exp", ["w"], "y"), weights=[("w", np.ones((40, 40), "f4"))]
    )
    model = onnx.load(path)
    del model.graph.input[:]
    onnx.save(model, path)
    assert inspect(path).graph.cost["flops"] == 1600


def test_types_of_less_than_8_bits_are_packed(tmp_path):
    path = save(
        tmp_path / "model.onnx",
        node("DequantizeLinear", ["w", "s"], "y"),
        weights=[("s", np.float32(1))],
    )
    model = onnx.load(path)
    model.opset_import[0].version = 21
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.INT4, [3, 5], range(-7, 8)))
    onnx.save(model, path)
    assert inspect(path).graph.weights == {"int4": 8, "float32": 4}


def test_what_a_runtime_fuses_is_reported_with_its_module(foreign):
    fusion = inspect(foreign).graph.fusion
    (fused,) = [f for f in fusion.fused if f.op == "com.microsoft.FusedMatMul"]
    assert (fused.count, fused.modules) == (1, ("blocks.1.attn",))
    assert fusion.attention == {"blocks.1.attn": ""}
    assert 0 < fusion.nodes < 10


def test_attention_that_is_one_operator_is_reported(tmp_path, monkeypatch):
    """No graph of a few nodes is recognised by the runtime: what it gives is put in its place."""
    path = save(
        tmp_path / "model.onnx",
        node("Softmax", ["x"], "s", "a", "a.attn"),
        node("Softmax", ["s"], "y", "b", "b.attn"),
    )
    optimised = onnx.load(path)
    optimised.graph.node[0].op_type, optimised.graph.node[0].domain = "Attention", "com.microsoft"
    monkeypatch.setattr(
        "exporter.inspection.graph.write_optimised", lambda _path, out: onnx.save(optimised, out)
    )
    fusion = inspect(path).graph.fusion
    assert fusion.attention == {"a.attn": "com.microsoft.Attention", "b.attn": ""}


def test_a_graph_that_no_runtime_loads_is_still_inspected(tmp_path):
    path = save(
        tmp_path / "model.onnx", node("Mul", ["x", "w"], "y", "m"), weights=[("w", np.ones(16))]
    )
    graph = inspect(path).graph
    assert graph.ops == {"Mul": 1}
    assert graph.fusion.nodes is None
    assert "does not load model.onnx" in graph.fusion.reason


def test_missing_weights_are_counted(tmp_path):
    path = save(
        tmp_path / "model.onnx",
        node("MatMul", ["x", "w"], "y"),
        weights=[("w", np.ones((16, 16), "f4"))],
    )
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    graph = inspect(path).graph
    assert (graph.missing_weights, graph.parameters) == (1, 256)


# --- exports


def test_an_export_has_the_facts_of_its_report(exported):
    made = exported("fastformer")
    found = inspect(made.directory)
    report = made.report.graph
    assert found.graph.parameters == report["parameters"]
    assert (found.graph.nodes, found.graph.ops) == (report["nodes"], report["ops"])
    assert found.export.verdict == made.verdict
    assert list(map(dict, found.export.rewrites)) == report["rewrites"]
    assert set(found.export.files.values()) == {"as exported"}
    assert (found.engine, found.export.engine_status) == (None, "not built")
    paths = {module.path for module in found.graph.modules}
    assert {"project_in", "blocks.0.attn_t.fn", "to_out.fn"} <= paths
    assert None not in paths
    assert sum(module.nodes for module in found.graph.modules) == report["nodes"]


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported("fastformer").directory, tmp_path / "copy")


def test_changed_and_missing_files_are_reported(copy):
    model = onnx.load(copy / "model.onnx")
    model.producer_name = "someone"
    onnx.save(model, copy / "model.onnx")
    (copy / "report.json").unlink()
    export = inspect(copy).export
    assert export.files["model.onnx"] == "changed since it was exported"
    assert export.files["report.json"] == "missing"
    assert export.files["report.md"] == "as exported"
    assert export.rewrites is None


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"graph": {}}', '{"graph": {"rewrites": 3}}'),
        pytest.param("[" * 100_000, id="nested deeply"),
    ],
)
def test_a_damaged_report_gives_no_rewrites(copy, content):
    (copy / "report.json").write_text(content)
    assert inspect(copy).export.rewrites is None


def test_a_directory_that_is_no_export_is_refused(tmp_path, copy):
    with pytest.raises(NoExportError):
        inspect(tmp_path)
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(ManifestError, match="damaged"):
        inspect(copy)


def test_a_directory_without_its_graph_is_shown_without_it(copy):
    """The image of a GPU server may hold the engine and the manifest only."""
    (copy / "model.onnx").unlink()
    found = inspect(copy)
    assert found.graph is None
    assert found.export.files["model.onnx"] == "missing"


# --- engines


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A real engine, and what was noted when it was built."""
    folder = tmp_path_factory.mktemp("engine")
    save(folder / "model.onnx", node("Softmax", ["x"], "y"))
    model = onnx.shape_inference.infer_shapes(onnx.load(folder / "model.onnx"))
    onnx.save(model, folder / "model.onnx")
    info = build_engine(folder / "model.onnx", folder / "model.engine", flavour="rtx")
    return folder / "model.engine", {**asdict(info), "flavour": "tensorrt_rtx"}


@needs_rtx
class TestEngine:
    def test_with_its_notes(self, built):
        path, noted = built
        facts = inspect_engine(path, noted)
        assert (facts.header, facts.content) == ("well-formed", "as built")
        assert (facts.flavour, facts.bytes) == ("tensorrt_rtx", path.stat().st_size)
        assert facts.built["layers"] == noted["layers"]

    def test_alone(self, built):
        path, _ = built
        found = inspect(path)
        assert (found.graph, found.export) == (None, None)
        assert (found.engine.header, found.engine.flavour) == ("well-formed", "tensorrt_rtx")
        assert found.engine.content == "nothing to compare with"
        assert found.engine.built == {}

    def test_by_its_content_whatever_its_name(self, built, tmp_path):
        shutil.copy(built[0], tmp_path / "thing.bin")
        assert inspect(tmp_path / "thing.bin").engine.header == "well-formed"

    def test_cut_off_within_its_header(self, built, tmp_path):
        (tmp_path / "model.engine").write_bytes(built[0].read_bytes()[:24])
        assert inspect(tmp_path / "model.engine").engine.header == "malformed"

    def test_that_begins_as_something_else(self, built, tmp_path):
        path, noted = built
        (tmp_path / "model.engine").write_bytes(b"else" + path.read_bytes()[4:])
        assert inspect_engine(tmp_path / "model.engine", noted).header == "malformed"

    def test_cut_off(self, built, tmp_path):
        path, noted = built
        (tmp_path / "model.engine").write_bytes(path.read_bytes()[:-1000])
        facts = inspect_engine(tmp_path / "model.engine", noted)
        assert facts.header == "well-formed"  # which is all that TensorRT looks at
        assert facts.content == "changed since it was built"

    @pytest.mark.slow
    def test_in_an_export(self, built, copy):
        path, noted = built
        shutil.copy(path, copy / "model.engine")
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest["engine"] = noted
        (copy / "manifest.json").write_text(json.dumps(manifest))
        for place in (copy, copy / "model.engine"):
            facts = inspect(place).engine
            assert (facts.content, facts.built["version"]) == ("as built", noted["version"])
        shutil.copy(path, copy / "other.engine")
        assert inspect(copy / "other.engine").engine.built == {}


def test_an_engine_without_tensorrt_on_this_machine_is_not_checked(tmp_path, monkeypatch):
    def absent(_path, _flavour):
        raise EngineError("tensorrt_rtx is not installed")

    monkeypatch.setattr(inspection_engine, "examine_header", absent)
    (tmp_path / "model.engine").write_bytes(b"vtrt and more")
    facts = inspect(tmp_path / "model.engine").engine
    assert (facts.header, facts.objections) == ("not checked", ("tensorrt_rtx is not installed",))


def test_an_engine_without_a_known_mark_is_not_checked(tmp_path):
    (tmp_path / "model.engine").write_bytes(b"something else")
    facts = inspect(tmp_path / "model.engine").engine
    assert (facts.flavour, facts.header) == (None, "not checked")
    assert "does not begin as" in facts.objections[0]


@pytest.mark.parametrize("name", ["model.engine", "model.onnx"])
def test_empty_and_absent_files_are_refused(tmp_path, name):
    with pytest.raises(GraphInputError, match="there is no file"):
        inspect(tmp_path / name)
    (tmp_path / name).touch()
    with pytest.raises(GraphInputError, match=r"is empty|not an ONNX file"):
        inspect(tmp_path / name)


def test_a_broken_manifest_beside_an_engine_does_not_hide_it(tmp_path):
    (tmp_path / "model.engine").write_bytes(b"something else")
    (tmp_path / "manifest.json").write_text("{")
    assert inspect(tmp_path / "model.engine").engine.built == {}


# --- the command


@pytest.fixture
def run(capfd):
    def call(*arguments):
        capfd.readouterr()
        code = cli.main(["inspect", *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


def test_the_command_shows_an_export(run, exported):
    code, out, err = run(exported("fastformer").directory)
    assert (code, err) == (0, "")
    words = (
        "res 32x48",
        "files are as they were exported",
        "Rewrites: ",
        "MatMul",
        "blocks.0",
        "ONNX Runtime runs",
    )
    for word in (*words, "model.engine: not built", "FLOP"):
        assert word in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_command_shows_what_is_changed(run, copy):
    (copy / "report.md").write_text("mine")
    assert "report.md: changed since it was exported" in run(copy)[1]


@needs_rtx
def test_the_command_shows_an_engine_alone(run, built):
    code, out, _ = run(built[0])
    assert code == 0
    assert "Header: well-formed" in out
    assert "needs a GPU to know more" in out


def test_json_has_every_module_and_operator(run, exported):
    code, out, _ = run(exported("fastformer").directory, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["graph"]["ops"] == exported("fastformer").report.graph["ops"]
    assert {"path", "nodes", "parameters", "bytes"} == set(found["graph"]["modules"][0])
    assert found["engine"] is None


def test_names_of_the_graph_cannot_steer_the_terminal(run, tmp_path):
    path = save(tmp_path / "model.onnx", node("Exp", ["x"], "y\x1b[2J"), outputs=["y\x1b[2J"])
    code, out, _ = run(path)
    assert code == 0
    assert "\x1b" not in out


def test_a_missing_file_is_an_error_of_one_line(run, tmp_path):
    code, out, err = run(tmp_path / "nothing.onnx")
    assert (code, out) == (3, "")
    assert err.startswith("tsformer: input: there is no file")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_it_imports_no_torch(foreign):
    code = (
        "import sys; from exporter.cli import main\n"
        f"assert main(['inspect', {str(foreign)!r}]) == 0\n"
        "print(*sorted({'torch', 'av', 'tensorrt_rtx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


# --- words


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("blocks.3.attn_t.fn", "blocks.3"),
        ("encoder.layer.11.output", "encoder.layer.11"),
        ("to_out.fn", "to_out"),
        ("project_in", "project_in"),
        ("", ""),
        (None, None),
    ],
)
def test_modules_are_shown_by_block(path, shown):
    assert block(path) == shown


def test_sizes_have_the_unit_that_suits_them():
    assert [size(n) for n in (0, 80, 4096, 22_000_000)] == ["0 B", "80 B", "4.1 kB", "22 MB"]


def test_facts_are_plain_values(foreign):
    graph = inspect(foreign).graph
    assert json.loads(json.dumps(asdict(replace(graph)))) is not None
