"""A copy of an export that a test may change, and ways to change it."""

import json
import shutil
from dataclasses import replace

import pytest

from exporter.files.manifest import sha256
from exporter.files.reference import REFERENCE, read_reference, write_reference


@pytest.fixture
def directory(exported, tmp_path):
    return shutil.copytree(exported().directory, tmp_path / "export")


@pytest.fixture
def mend():
    """`mend(directory, name)`: give the manifest the hash that a file has now."""

    def write_hash(directory, name):
        path = directory / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["files"][name]["sha256"] = sha256(directory / name)
        path.write_text(json.dumps(manifest))

    return write_hash


@pytest.fixture
def change_reference(mend):
    """`change_reference(directory, **changes)`: change the reference, and its hash with it."""

    def change(directory, **changes):
        kept = read_reference(directory / REFERENCE)
        write_reference(directory / REFERENCE, replace(kept, **changes))
        mend(directory, REFERENCE)

    return change
