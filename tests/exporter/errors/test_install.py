"""Test that the metadata, which `pyproject.toml` declares, decides the extra of a package."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from exporter.errors import MissingPackageError, TsformerError, install
from exporter.errors.install import how_to_install, is_ours, missing_package

ROOT = Path(__file__).parents[3]
CPU_OR_GPU = "pip install 'tsformer[cpu]' (or [gpu]), in a checkout: pip install '.[cpu]'"
RUNTIME = (
    "pip install 'tsformer[runtime]' (or [runtime-gpu], [cpu], [gpu]), in a checkout: "
    "pip install '.[runtime]'"
)
GPU = "pip install 'tsformer[runtime-gpu]' (or [gpu]), in a checkout: pip install '.[runtime-gpu]'"


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("torch", CPU_OR_GPU),
        ("torch.nn.functional", CPU_OR_GPU),
        ("onnx", RUNTIME),
        ("onnx_ir", CPU_OR_GPU),
        ("google.protobuf", CPU_OR_GPU),
        ("matplotlib", CPU_OR_GPU),
        ("tensorrt", GPU),
        ("cuda", GPU),
        ("cuda.bindings.runtime", GPU),
        ("tensorrt_rtx", "pip install 'tsformer[cpu]', in a checkout: pip install '.[cpu]'"),
        ("av", "pip install tsformer (in a checkout: pip install .)"),
        ("jinja2", "pip install tsformer (in a checkout: pip install .)"),
        ("something_that_torch_needs", CPU_OR_GPU),
    ],
)
def test_the_remedy_names_the_smallest_extra_with_the_module(module, remedy):
    assert how_to_install(module) == remedy


def test_onnxruntime_is_in_the_extra_runtime():
    assert how_to_install("onnxruntime").startswith(
        "pip install 'tsformer[runtime]' (or [runtime-gpu], [cpu], [gpu])"
    )


def test_a_checkout_that_is_not_installed_names_the_extras_for_exports(monkeypatch):
    def absent(_name):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", absent)
    assert how_to_install("torch") == CPU_OR_GPU


def test_every_package_of_an_extra_has_an_install_command():
    """The packages of `export` are found in `cpu`, which includes that extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(install.EXTRAS) <= set(project["optional-dependencies"])
    for extra in (*install.EXTRAS, "export"):
        for requirement in project["optional-dependencies"][extra]:
            name = requirement.partition(";")[0].partition(">")[0].partition("[")[0]
            if name not in ("tsformer", "onnxruntime-gpu"):
                assert "pip install 'tsformer[" in how_to_install(name), name


def test_the_error_is_a_tsformer_error_and_an_import_error():
    error = missing_package("torch", "this command")
    assert isinstance(error, MissingPackageError)
    assert isinstance(error, TsformerError)
    assert isinstance(error, ImportError)
    assert str(error).startswith("this command needs torch, which is not installed; pip install ")


@pytest.mark.parametrize(
    ("module", "ours"),
    [("exporter.x", True), ("model.y", True), (None, True), ("resource", True), ("torch", False)],
)
def test_a_missing_module_of_ours_or_of_python_is_a_defect(module, ours):
    assert is_ours(module) is ours
