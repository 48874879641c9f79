"""Test the architecture: imports between rooms, owners of heavy imports, and files that print.

The tests parse the sources, with lazy and type-checking imports, and import none of them.
"""

import ast
import importlib.util
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def load_script():
    spec = importlib.util.spec_from_file_location(
        "architecture", ROOT / "scripts" / "architecture.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


architecture = load_script()
SOURCES = architecture.find_sources()

TENSORRT_OWNERS = {
    "exporter.to_engine.flavours",
    "exporter.to_engine.native",
    "exporter.runners.tensorrt",
    "exporter.machine.environment",
}
OWNERS = {
    "av": {
        "exporter.inputs.colour",
        "exporter.inputs.container",
        "exporter.inputs.decode",
        "exporter.inputs.survey",
        "exporter.inputs.windows",
    },
    "cuda": {"exporter.runners.cuda"},
    "onnxruntime_ep_nv_tensorrt_rtx": {"exporter.runners.onnxruntime"},
    "onnxruntime": {
        "exporter.runners.device",
        "exporter.runners.onnxruntime",
        "exporter.machine.environment",
        "exporter.machine.speed",
        "exporter.to_onnx.quantize",
    },
    "tensorrt": TENSORRT_OWNERS,
    "tensorrt_rtx": TENSORRT_OWNERS,
    "tensorrt_bindings": TENSORRT_OWNERS,
    "openvino": {"exporter.runners.openvino"},
    "huggingface_hub": {"exporter.files.hub"},
    "matplotlib": {"exporter.report.drawing"},
    "pyarrow": {"exporter.predict.rows"},
    "ray": {"exporter.predict.on_ray"},
}
# Rooms and modules that run without torch.
WITHOUT_TORCH = (
    "exporter.errors",
    "exporter.spec",
    "exporter.results",
    "exporter.files",
    "exporter.inputs.class_names",
    "exporter.inputs.clip_list",
    "exporter.inputs.clips",
    "exporter.inputs.colour",
    "exporter.inputs.container",
    "exporter.inputs.dataset",
    "exporter.inputs.decode",
    "exporter.inputs.frames",
    "exporter.inputs.kept",
    "exporter.inputs.motion",
    "exporter.inputs.pictures",
    "exporter.inputs.resize",
    "exporter.inputs.sampling",
    "exporter.inputs.survey",
    "exporter.inputs.synthetic",
    "exporter.inputs.video",
    "exporter.inputs.windows",
    "exporter.lint",
    "exporter.to_engine",
    "exporter.report",
    "exporter.inspection",
    "exporter.triton",
    "exporter.runners.base",
    "exporter.runners.cuda",
    "exporter.runners.cuda_stream",
    "exporter.runners.device",
    "exporter.runners.onnxruntime",
    "exporter.runners.onnxruntime_cuda",
    "exporter.runners.open",
    "exporter.runners.openvino",
    "exporter.runners.tensorrt",
    "exporter.runners.tensorrt_engine",
    "exporter.predict",
    "exporter.run.stages",
    "exporter.proof.judge",
    "exporter.proof.runtimes",
    "exporter.proof.structure",
    "exporter.latency.bench",
    "exporter.target.bench",
    "exporter.target.build",
    "exporter.target.record",
    "exporter.target.runtimes",
    "exporter.target.verify",
    "exporter.sweep.grid",
    "exporter.sweep.results",
    "exporter.sweep.plots",
    "exporter.sweep.page",
    "exporter.sweep.table",
    "exporter.sweep.advise",
    "exporter.cli",
)
DYNAMIC = {"import_module", "__import__"}  # imports whose name is not in the source
MAY_IMPORT_DYNAMICALLY = TENSORRT_OWNERS | {"model"}  # the package loads its own names lazily
MAY_PRINT = {"exporter.cli.terminal"}


def imports(name: str, source: str) -> list[str]:
    return list(architecture.imports(name, source, SOURCES))


def order_violations(name: str, source: str) -> list[str]:
    """List imports of the module `name` that break the order; its own room is allowed."""
    here = architecture.room_of(name)
    found = {got: architecture.room_of(got) for got in imports(name, source)}
    return [
        got
        for got, there in found.items()
        if there not in {None, here} and architecture.find_upward({(here, there)})
    ]


def owner_violations(name: str, source: str) -> list[str]:
    found = []
    for got in imports(name, source):
        package = got.partition(".")[0]
        torch_where_it_is_not_wanted = package == "torch" and runs_without_torch(name)
        if name not in OWNERS.get(package, {name}) or torch_where_it_is_not_wanted:
            found.append(got)
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    if name not in MAY_IMPORT_DYNAMICALLY:
        found += [called(call) for call in calls if called(call) in DYNAMIC]
    return found


def runs_without_torch(name: str) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in WITHOUT_TORCH)


def print_violations(name: str, source: str) -> list[str]:
    if name in MAY_PRINT:
        return []
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and called(node) in {"print", "Console", "pprint"}:
            found.append(called(node))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.stdout", "sys.stderr"}:
            found.append(ast.unparse(node))
        if isinstance(node, ast.ImportFrom) and node.module == "sys":
            found += [alias.name for alias in node.names if alias.name in {"stdout", "stderr"}]
    return found


def called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)


class TestRooms:
    def test_every_room_has_its_place_in_the_order(self):
        assert len(set(architecture.ORDER)) == len(architecture.ORDER)
        assert {architecture.room_of(name) for name in SOURCES} == set(architecture.ORDER)

    def test_no_import_runs_upward(self):
        assert architecture.find_upward(architecture.find_arrows(SOURCES)) == []

    def test_the_number_of_arrows_is_limited(self):
        assert 0 < len(architecture.find_arrows(SOURCES)) <= architecture.MOST_ARROWS

    def test_modules_of_a_room_have_no_import_circle(self):
        graph = {
            name: {got for got in imports(name, path.read_text()) if got in SOURCES and got != name}
            for name, path in SOURCES.items()
        }
        TopologicalSorter(graph).prepare()  # raises CycleError

    def test_the_script_reports_no_violation(self, capsys):
        assert architecture.main() == 0
        assert "0 upward" in capsys.readouterr().out


@pytest.mark.parametrize("name", SOURCES)
class TestFile:
    def test_only_owners_import_heavy_packages(self, name):
        assert owner_violations(name, SOURCES[name].read_text()) == []

    def test_only_the_terminal_prints(self, name):
        assert print_violations(name, SOURCES[name].read_text()) == []


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("model")])
def test_model_never_imports_exporter(name):
    got = list(imports(name, SOURCES[name].read_text()))
    assert [imported for imported in got if imported.startswith("exporter")] == []


class TestTheChecks:
    """The checks find violations in synthetic sources."""

    @pytest.mark.parametrize(
        ("name", "source", "found"),
        [
            ("model.config", "from exporter.spec import ExportSpec", ["exporter.spec"]),
            ("model.config", "def f():\n    import exporter.cli", ["exporter.cli"]),
            ("model.rotary", "from model.config import ConfigError", []),
            ("exporter.report.words", "from ..cli import main", ["exporter.cli"]),
            ("exporter.report.words", "from .. import cli", ["exporter.cli"]),
            ("exporter.spec", "from exporter import pipeline", ["exporter.pipeline"]),
            ("exporter.spec", "from exporter import ExportSpec", ["exporter"]),
            ("exporter.runners.eager", "from .base import Runner", []),
            ("exporter.spec", "import numpy, exporter.errors", []),
            ("exporter.spec", "from exporter.unheard_of import x", ["exporter.unheard_of"]),
        ],
    )
    def test_order_violations_are_found(self, name, source, found):
        assert order_violations(name, source) == found

    @pytest.mark.parametrize(
        ("name", "source", "found"),
        [
            ("exporter.latency.bench", "import av", ["av"]),
            (
                "exporter.latency.bench",
                "def f():\n    from av.container import X",
                ["av.container"],
            ),
            ("exporter.inputs.container", "import av", []),
            ("exporter.pipeline", "from cuda.bindings import runtime", ["cuda.bindings"]),
            ("exporter.latency.bench", "import onnxruntime as ort", ["onnxruntime"]),
            ("exporter.runners.onnxruntime", "import onnxruntime as ort", []),
            ("exporter.pipeline", "import tensorrt_rtx", ["tensorrt_rtx"]),
            (
                "exporter.pipeline",
                "import importlib\nimportlib.import_module(x)",
                ["import_module"],
            ),
            ("exporter.report.words", "import torch.nn", ["torch.nn"]),
            ("exporter.report.plots", "from matplotlib.axes import Axes", ["matplotlib.axes"]),
            ("exporter.latency.timing", "import torch.nn", []),
        ],
    )
    def test_owner_violations_are_found(self, name, source, found):
        assert owner_violations(name, source) == found

    @pytest.mark.parametrize(
        ("name", "source", "found"),
        [
            ("exporter.latency.bench", "print(1)", ["print"]),
            ("exporter.latency.bench", "import rich\nrich.print(1)", ["print"]),
            ("exporter.latency.bench", "import sys\nsys.stderr.write('x')", ["sys.stderr"]),
            ("exporter.latency.bench", "from sys import stdout", ["stdout"]),
            ("exporter.latency.bench", "Console().log(1)", ["Console"]),
            ("exporter.cli.terminal", "print(1)", []),
            ("exporter.latency.bench", "blueprint(1)", []),
        ],
    )
    def test_print_violations_are_found(self, name, source, found):
        assert print_violations(name, source) == found


@pytest.mark.parametrize("package", ["model", "exporter"])
def test_importing_a_package_loads_no_optional_package(package):
    optional = ("onnx", "onnxruntime", "av", "cuda", "tensorrt", "tensorrt_rtx", "matplotlib")
    optional += ("huggingface_hub", "openvino", "pyarrow", "ray")
    code = (
        f"import sys, {package}\n"
        f"print(*sorted(set({optional!r}) & set(sys.modules)), {package!r} in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True"]
