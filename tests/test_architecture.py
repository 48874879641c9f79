"""The rooms of the house: who imports whom, who owns the heavy imports, who prints.

All is read from the sources, lazy and type-checking imports included; nothing is imported.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A file imports only from files above it.
ORDER = (
    "model.config",
    "model.precision",
    "model.rotary",
    "model.attention",
    "model.spacetime",
    "model.block",
    "model.classifier",
    "model.upstream",
    "model.fast_timesformer",
    "model.timesformer",
    "model.timesformer_vit",
    "model.weights_file",
    "model.families",
    "model.families.base",
    "model.families.fast_timesformer",
    "model.families.timesformer_pytorch",
    "model.families.huggingface_preprocessing",
    "model.families.huggingface_directory",
    "model.families.facebookresearch",
    "model.families.huggingface",
    "model.checkpoint",
    "model",
    "exporter.errors",
    "exporter.module_map",
    "exporter.graph_view",
    "exporter.graph_file",
    "exporter.cost",
    "exporter.lint.spot",
    "exporter.lint.types",
    "exporter.lint.batch",
    "exporter.lint.ranges",
    "exporter.lint.structure",
    "exporter.lint",
    "exporter.tables",
    "exporter.lint.view",
    "exporter.spec",
    "exporter.results",
    "exporter.video",
    "exporter.inputs",
    "exporter.motion",
    "exporter.clips",
    "exporter.contention",
    "exporter.precision",
    "exporter.rewrite.places",
    "exporter.rewrite.class_token",
    "exporter.rewrite.fold_norm",
    "exporter.rewrite.fold_fc",
    "exporter.rewrite.frame_weights",
    "exporter.rewrite.heads_first",
    "exporter.rewrite.few_features",
    "exporter.rewrite.pooled_rotation",
    "exporter.rewrite.fold_global_key",
    "exporter.rewrite.bias_apart",
    "exporter.rewrite.pieces",
    "exporter.rewrite.cut_attention",
    "exporter.rewrite.cut_feed_forward",
    "exporter.rewrite.pixels",
    "exporter.rewrite.fold_pixels",
    "exporter.rewrite.measure",
    "exporter.rewrite",
    "exporter.block_functions",
    "exporter.to_onnx",
    "exporter.int8_products",
    "exporter.quantize",
    "exporter.engine_progress",
    "exporter.engine_worker",
    "exporter.engine_process",
    "exporter.to_engine",
    "exporter.runners",
    "exporter.runners.base",
    "exporter.runners.eager",
    "exporter.runners.onnxruntime",
    "exporter.runners.reference",
    "exporter.runners.tensorrt",
    "exporter.machine",
    "exporter.validate",
    "exporter.ladder",
    "exporter.tune",
    "exporter.evaluate",
    "exporter.memory",
    "exporter.bench",
    "exporter.report.formats",
    "exporter.report.escape",
    "exporter.report.words",
    "exporter.report.as_json",
    "exporter.report.tables",
    "exporter.report.axes",
    "exporter.report.svg",
    "exporter.report.drawing",
    "exporter.report.plots",
    "exporter.report.pages",
    "exporter.report",
    "exporter.environment",
    "exporter.output",
    "exporter.manifest",
    "exporter.predict",
    "exporter.triton",
    "exporter.triton.config",
    "exporter.triton.plan",
    "exporter.triton.deploy",
    "exporter.inspection.engine",
    "exporter.inspection.graph",
    "exporter.inspection",
    "exporter.inspection.view",
    "exporter.load",
    "exporter.stages",
    "exporter.job",
    "exporter.graphs",
    "exporter.candidates",
    "exporter.proof",
    "exporter.timing",
    "exporter.pipeline",
    "exporter.diagnose",
    "exporter.toml_file",
    "exporter.sweep",
    "exporter.sweep.grid",
    "exporter.sweep.results",
    "exporter.sweep.plots",
    "exporter.sweep.page",
    "exporter.sweep.cell_key",
    "exporter.sweep.cell_worker",
    "exporter.sweep.cell_process",
    "exporter.sweep.table",
    "exporter.sweep.run",
    "exporter.sweep.advise",
    "exporter",
    "exporter.cli.terminal",
    "exporter.cli.options",
    "exporter.cli.proof",
    "exporter.cli.export",
    "exporter.cli.verify",
    "exporter.cli.predict",
    "exporter.cli.inspect",
    "exporter.cli.ladder",
    "exporter.cli.lint",
    "exporter.cli.tune_precision",
    "exporter.cli.sweep",
    "exporter.cli.advise",
    "exporter.cli.triton",
    "exporter.cli.doctor",
    "exporter.cli.config_file",
    "exporter.cli",
    "exporter.__main__",
)

TENSORRT_OWNERS = {
    "exporter.to_engine",
    "exporter.engine_worker",
    "exporter.runners.tensorrt",
    "exporter.environment",
}
OWNERS = {
    "av": {"exporter.video"},
    "onnxruntime": {
        "exporter.runners.onnxruntime",
        "exporter.environment",
        "exporter.machine",
        "exporter.quantize",
    },
    "tensorrt": TENSORRT_OWNERS,
    "tensorrt_rtx": TENSORRT_OWNERS,
    "tensorrt_bindings": TENSORRT_OWNERS,
    "matplotlib": {"exporter.report.drawing"},
}
WITHOUT_TORCH = {
    f"exporter.{name}"
    for name in (
        *("errors", "spec", "results", "video", "inputs", "motion"),
        *("sweep.grid", "sweep.results", "sweep.plots", "sweep.page", "sweep.advise"),
        *("output", "manifest", "predict", "triton.config", "triton.plan", "triton.deploy"),
    )
} | {name for name in ORDER if name.startswith(("exporter.cli", "exporter.report"))}
DYNAMIC = {"import_module", "__import__"}  # imports whose name is not in the source
MAY_IMPORT_DYNAMICALLY = TENSORRT_OWNERS | {"model"}  # the package loads its own names lazily
MAY_PRINT = {"exporter.cli.terminal"}


def module_name(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {
    module_name(path): path
    for package in ("model", "exporter")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(name: str, source: str, known: tuple[str, ...] = ORDER) -> Iterator[str]:
    """Dotted names of the modules that a source imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".")[: -node.level]
                base = ".".join([*package, base] if base else package)
            for alias in node.names:  # `from exporter import spec` is the file, not the package
                inner = f"{base}.{alias.name}"
                yield inner if inner in known else base


def of_the_project(name: str) -> bool:
    return name.partition(".")[0] in {"model", "exporter"}


def order_violations(name: str, source: str) -> list[str]:
    above = ORDER[: ORDER.index(name)]
    return [got for got in imports(name, source) if of_the_project(got) and got not in above]


def owner_violations(name: str, source: str) -> list[str]:
    found = []
    for got in imports(name, source):
        package = got.partition(".")[0]
        torch_where_it_is_not_wanted = package == "torch" and name in WITHOUT_TORCH
        if name not in OWNERS.get(package, {name}) or torch_where_it_is_not_wanted:
            found.append(got)
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    if name not in MAY_IMPORT_DYNAMICALLY:
        found += [called(call) for call in calls if called(call) in DYNAMIC]
    return found


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


def test_every_file_has_its_place():
    assert len(set(ORDER)) == len(ORDER)
    assert [name for name in SOURCES if name not in ORDER] == []
    assert "model.checkpoint" in SOURCES  # the sources were found at all


@pytest.mark.parametrize("name", [name for name in ORDER if name in SOURCES])
class TestFile:
    def test_imports_only_from_files_above(self, name):
        assert order_violations(name, SOURCES[name].read_text()) == []

    def test_leaves_heavy_imports_to_their_owners(self, name):
        assert owner_violations(name, SOURCES[name].read_text()) == []

    def test_does_not_print(self, name):
        assert print_violations(name, SOURCES[name].read_text()) == []


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("model")])
def test_model_never_imports_exporter(name):
    got = list(imports(name, SOURCES[name].read_text()))
    assert [imported for imported in got if imported.startswith("exporter")] == []


class TestTheChecks:
    """They find what they look for."""

    @pytest.mark.parametrize(
        ("name", "source", "found"),
        [
            ("model.config", "from exporter.spec import ExportSpec", ["exporter.spec"]),
            ("model.config", "def f():\n    import exporter.cli", ["exporter.cli"]),
            ("model.config", "from model.rotary import rotate", ["model.rotary"]),
            ("model.rotary", "from model.config import ConfigError", []),
            ("model.rotary", "from . import attention", ["model.attention"]),
            ("model.rotary", "from .attention import Attention", ["model.attention"]),
            ("exporter.spec", "from exporter import pipeline", ["exporter.pipeline"]),
            ("exporter.spec", "from exporter import ExportSpec", ["exporter"]),
            ("exporter.runners.eager", "from .base import Runner", []),
            ("exporter.spec", "import numpy, exporter.errors", []),
            ("exporter.spec", "from exporter.unheard_of import x", ["exporter.unheard_of"]),
        ],
    )
    def test_of_the_order(self, name, source, found):
        assert order_violations(name, source) == found

    @pytest.mark.parametrize(
        ("name", "source", "found"),
        [
            ("exporter.bench", "import av", ["av"]),
            ("exporter.bench", "def f():\n    from av.container import X", ["av.container"]),
            ("exporter.video", "import av", []),
            ("exporter.bench", "import onnxruntime as ort", ["onnxruntime"]),
            ("exporter.runners.onnxruntime", "import onnxruntime as ort", []),
            ("exporter.pipeline", "import tensorrt_rtx", ["tensorrt_rtx"]),
            (
                "exporter.pipeline",
                "import importlib\nimportlib.import_module(x)",
                ["import_module"],
            ),
            ("exporter.report.words", "import torch.nn", ["torch.nn"]),
            ("exporter.report.plots", "from matplotlib.axes import Axes", ["matplotlib.axes"]),
            ("exporter.bench", "import torch.nn", []),
        ],
    )
    def test_of_the_owners(self, name, source, found):
        assert owner_violations(name, source) == found

    @pytest.mark.parametrize(
        ("name", "source", "found"),
        [
            ("exporter.bench", "print(1)", ["print"]),
            ("exporter.bench", "import rich\nrich.print(1)", ["print"]),
            ("exporter.bench", "import sys\nsys.stderr.write('x')", ["sys.stderr"]),
            ("exporter.bench", "from sys import stdout", ["stdout"]),
            ("exporter.bench", "Console().log(1)", ["Console"]),
            ("exporter.cli.terminal", "print(1)", []),
            ("exporter.bench", "blueprint(1)", []),
        ],
    )
    def test_of_printing(self, name, source, found):
        assert print_violations(name, source) == found


@pytest.mark.parametrize("package", ["model", "exporter"])
def test_importing_a_package_loads_nothing_optional(package):
    optional = ("onnx", "onnxruntime", "av", "tensorrt", "tensorrt_rtx", "matplotlib")
    code = (
        f"import sys, {package}\n"
        f"print(*sorted(set({optional!r}) & set(sys.modules)), {package!r} in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True"]
