"""Test a file of the user with the name of our package: one line must name the file."""

import compileall
import shutil
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each test starts Python

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
MODULE = (sys.executable, "-m", "tsformer")
SCRIPT = "from exporter import ExportSpec\nprint(ExportSpec(attn='fastformer').attn)\n"


def shadow(folder, kind):
    """Write a module or a package `model` of the user; return the file that Python loads."""
    path = folder / ("model.py" if kind == "module" else "model/__init__.py")
    path.parent.mkdir(exist_ok=True)
    path.write_text("class MyModel:\n    pass\n")
    return path


def assert_one_line(text, path):
    assert text.count("\n") == 1, text
    assert text.startswith(f"tsformer: install: {path} hides the package `model` of tsformer; ")
    folder = path.parent.parent if path.name == "__init__.py" else path.parent
    assert f"rename it, or keep {folder} off Python's path" in text


@pytest.mark.parametrize("kind", ["module", "package"])
def test_python_m_exporter_names_the_file(tmp_path, run_alone, kind):
    path = shadow(tmp_path, kind)
    done = run_alone([sys.executable, "-m", "exporter", "--help"], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert_one_line(done.stderr, path)


@pytest.mark.parametrize("script", ["tsformer", "export"])
def test_the_console_scripts_name_a_file_earlier_on_the_path(tmp_path, run_alone, script):
    path = shadow(tmp_path, "module")
    done = run_alone([BIN / script, "--help"], cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (4, "")
    assert_one_line(done.stderr, path)


@pytest.mark.parametrize("names", [["model.py"], ["exporter.py"], ["model.py", "exporter.py"]])
def test_the_console_script_ignores_files_in_the_current_directory(tmp_path, run_alone, names):
    for name in names:
        (tmp_path / name).write_text("raise SystemExit('not this one')\n")
    done = run_alone([BIN / "tsformer", "predict", "x"], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no clip is given" in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        SCRIPT,
        f"import model\n{SCRIPT}",
        "from exporter import export",
        "from exporter.predict import Predictor",
        "from exporter.cli import main",
    ],
)
def test_a_script_beside_the_file_names_it(tmp_path, run_alone, code):
    path = shadow(tmp_path, "module")
    (tmp_path / "train.py").write_text(code)
    done = run_alone([sys.executable, "train.py"], cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("exporter.errors.ShadowedError: ")
    assert str(path) in last
    assert "rename it" in last


def test_a_script_named_model_names_itself(tmp_path, run_alone):
    (tmp_path / "model.py").write_text(SCRIPT)
    done = run_alone([sys.executable, "model.py"], cwd=tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path / 'model.py'} hides the package" in done.stderr.splitlines()[-1]


def test_the_remedy_works(tmp_path, run_alone):
    shadow(tmp_path, "module")
    done = run_alone([sys.executable, "-P", "-m", "exporter", "--version"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["module", "package", "folder"])
@pytest.mark.parametrize("command", [[BIN / "tsformer"], [BIN / "export"], [*MODULE]])
def test_the_command_names_what_hides_the_package_exporter(tmp_path, run_alone, kind, command):
    path = tmp_path / {"module": "exporter.py", "package": "exporter/__init__.py"}.get(
        kind, "exporter"
    )
    if kind == "folder":
        path.mkdir()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text("raise SystemExit('this code must not run')\n")
    done = run_alone([*command, "--help"], cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        f"tsformer: install: {path} hides the package `exporter` of tsformer; rename it, or keep "
        f"{tmp_path} off Python's path (python -P, no PYTHONPATH)\n"
    )


def test_python_m_tsformer_names_a_file_model_of_the_user(tmp_path, run_alone):
    path = shadow(tmp_path, "module")
    done = run_alone([*MODULE, "--help"], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert_one_line(done.stderr, path)


def test_python_names_a_file_exporter_of_the_user(tmp_path, run_alone):
    """No code of tsformer runs in this case."""
    (tmp_path / "exporter.py").touch()
    (tmp_path / "train.py").write_text("from exporter import export")
    done = run_alone([sys.executable, "train.py"], cwd=tmp_path)
    assert str(tmp_path / "exporter.py") in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("first", ["import model", ""])
def test_a_folder_that_hides_an_editable_install_is_named(tmp_path, run_alone, first):
    """The tests run in an editable install, whose packages Python finds last."""
    (tmp_path / "model").mkdir()
    (tmp_path / "train.py").write_text(f"{first}\n{SCRIPT}")
    done = run_alone([sys.executable, "train.py"], cwd=tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path / 'model'} hides the package" in done.stderr.splitlines()[-1]


def test_a_folder_behind_our_package_hides_nothing(tmp_path, run_alone):
    (tmp_path / "model").mkdir()
    (tmp_path / "train.py").write_text(f"{SCRIPT}from model import FastTimeSformer\n")
    done = run_alone([sys.executable, "train.py"], cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stdout, done.stderr) == (0, "fastformer\n", "")


def test_our_package_without_sources_hides_nothing(tmp_path, run_alone):
    for name in ("exporter", "model"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(tmp_path, quiet=1, legacy=True)
    for source in tmp_path.rglob("*.py"):
        source.unlink()
    done = run_alone([sys.executable, "-c", SCRIPT], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "fastformer\n", "")


def test_a_link_to_our_package_hides_nothing(tmp_path, run_alone):
    import model

    (tmp_path / "model").symlink_to(Path(model.__file__).parent)
    (tmp_path / "train.py").write_text(SCRIPT)
    done = run_alone([sys.executable, "train.py"], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "fastformer\n")


def test_the_check_takes_less_than_20_ms(tmp_path, run_alone):
    code = (
        "import time; from exporter.errors.install import refuse_shadow\n"
        "start = time.perf_counter()\n"
        "refuse_shadow(); print(time.perf_counter() - start)"
    )
    done = run_alone([sys.executable, "-c", code], cwd=tmp_path)
    assert float(done.stdout) < 0.02
