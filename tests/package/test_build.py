"""Test the output of `python -m build`: a complete wheel, and an sdist that runs its tests."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes

import pytest

pytestmark = pytest.mark.slow

HOUSEKEEPING = {
    ".ci",
    ".gitignore",
    ".pre-commit-config.yaml",
    ".github",
}  # files of the repository that the sdist omits


@pytest.fixture(scope="module")
def dist(build):
    return build()


@pytest.fixture(scope="module")
def sdist(dist, tmp_path_factory):
    """Unpack the sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


@pytest.fixture(scope="module")
def packed(dist):
    """Read the files of the wheel by name."""
    (archive,) = dist.glob("*.whl")
    with zipfile.ZipFile(archive) as files:
        return {name: files.read(name) for name in files.namelist()}


@pytest.fixture(scope="module")
def metadata(packed):
    (name,) = (name for name in packed if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(packed[name])


def files_below(folder):
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__"} & set(path.parts)
    }


def test_twine_accepts_wheel_and_sdist(dist):
    command = [sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_the_sdist_contains_the_whole_tree(source, sdist):
    expected = {n for n in files_below(source) if n.split("/")[0] not in HOUSEKEEPING}
    expected = {n for n in expected if ".egg-info" not in n}
    found = {n for n in files_below(sdist) if ".egg-info" not in n}
    assert found - expected == {"PKG-INFO", "setup.cfg"}  # setuptools writes these
    assert expected - found == set()
    assert "tests/data/reference/timesformer_pytorch/rotary/checkpoint.pth" in found


def test_the_sdist_runs_its_tests(sdist, run_alone):
    tests = (
        "tests/parity/test_timesformer_pytorch_reference.py",
        "tests/exporter/spec/test_spec.py",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = run_alone(command, cwd=sdist, PYTHONPATH=str(sdist))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_the_wheel_contains_exactly_the_two_packages_and_what_starts_the_command(source, packed):
    tops = ("model", "exporter", "tsformer.py")
    ours = {n for n in files_below(source) if n.split("/")[0] in tops}
    found = {name for name in packed if ".dist-info/" not in name}
    assert found == ours
    assert {"model/py.typed", "exporter/py.typed"} <= found
    assert {name for name in found if name.endswith(".jinja")}


def test_the_wheel_names_and_contains_its_licence(packed, metadata, source):
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    (name,) = (name for name in packed if name.endswith("licenses/LICENSE"))
    assert packed[name] == (source / "LICENSE").read_bytes()


def test_the_metadata_has_summary_keywords_classifiers_and_extras(metadata):
    assert len(metadata["Summary"]) < 120
    assert "onnx" in metadata["Keywords"]
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert {"runtime", "cpu", "gpu"} <= set(metadata.get_all("Provides-Extra"))


def relative_images(markdown):
    sources = re.findall(r"!\[[^]]*\]\(\s*<?([^\s)>]+)", markdown)
    sources += re.findall(r"!\[[^]]*\]:\s*(\S+)", markdown)
    sources += re.findall(r"<(?:img|source)\b[^>]*?\bsrc(?:set)?=[\"']?([^\"'\s>]+)", markdown)
    return [source for source in sources if not source.startswith(("https://", "data:"))]


def test_the_long_description_has_no_relative_images(metadata):
    """A package index shows the README without the files beside it."""
    assert metadata.get_content_type() == "text/plain"  # the format of the metadata itself
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    text = metadata.get_payload()
    assert "tsformer" in text
    assert relative_images(text) == []


@pytest.mark.parametrize(
    ("markdown", "found"),
    [
        ("![a line](docs/line.svg)", ["docs/line.svg"]),
        ('![a](<x.png> "title")', ["x.png"]),
        ("<source srcset='dark.svg'><img src=\"light.svg\">", ["dark.svg", "light.svg"]),
        ("[a page](docs/index.md) and ![ok](https://example.org/x.svg)", []),
    ],
)
def test_relative_images_are_found(markdown, found):
    assert relative_images(markdown) == found
