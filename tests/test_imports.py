"""Test that heavy imports happen at their first use: `--help` must not wait for torch."""

import json
import subprocess
import sys
import time

import pytest

HEAVY = (
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "av",
    "cuda",
    "matplotlib",
)
TELL = (
    "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
)


def loaded_by(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{TELL}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import exporter",
        "import exporter; exporter.ExportSpec(attn='fastformer')",
        "import exporter.cli",
        "from exporter.cli import main; main(['--help'])",
        "from exporter.cli import main; main(['export', '--help'])",
        "from exporter.cli import main; main(['--version'])",
        "from exporter.cli import main; main(['export', '--attn', 'fastfomer'])",
        "import model.config",
    ],
)
def test_light_code_imports_no_heavy_package(code):
    assert not loaded_by(code) & set(HEAVY)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import model", {"onnx", "onnxruntime", "onnxscript", "av", "tensorrt_rtx", "exporter"}),
        ("import exporter.inputs.video", {"torch", "av", "onnx", "onnxruntime"}),
        ("import exporter.to_engine.build", {"torch", "onnx", "onnxruntime", "tensorrt_rtx"}),
        (
            "import exporter.predict.decode_worker",
            {"torch", "onnx", "onnxruntime", "exporter.predict.predictor", "importlib.metadata"},
        ),
        ("import exporter.pipeline", {"tensorrt", "tensorrt_rtx", "av", "onnxruntime"}),
    ],
)
def test_a_module_does_not_import_packages_of_other_stages(code, absent):
    assert not loaded_by(code) & absent


def seconds(*codes):
    """Time processes that take turns, so that load slows all of them; the fastest of each."""

    def once(code):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return time.perf_counter() - started

    return [min(times) for times in zip(*(map(once, codes) for _ in range(5)), strict=True)]


@pytest.mark.slow
def test_help_is_about_as_fast_as_its_libraries():
    libraries, shown = seconds(
        "import cyclopts, rich.console, rich.progress, rich.table",
        "from exporter.cli import main; main(['--help'])",
    )
    # The limit is generous: the measured ratio is 2.5, and with torch it would be 15.
    assert shown < 3 * libraries + 0.1


@pytest.mark.slow
def test_lazy_names_load_on_first_use():
    offered = "import exporter; assert callable(exporter.export); exporter.ExportResult"
    assert "torch" in loaded_by(offered)
    assert "torch" in loaded_by("from model import FastTimeSformer, load_checkpoint")
    unknown = (
        "import exporter, model\nfor m in (exporter, model):\n assert not hasattr(m, 'nothing')"
    )
    loaded_by(unknown)
