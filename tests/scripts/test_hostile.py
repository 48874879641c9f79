"""A sample of the hostile files; `python scripts/hostile.py` plays them all."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def hostile():
    spec = importlib.util.spec_from_file_location("hostile", SCRIPTS / "hostile.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["hostile"] = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def test_the_generator_makes_at_least_300_files_with_names_of_their_own(hostile):
    names = [(kind, name) for kind, cases in hostile.KINDS.items() for name, _ in cases()]
    assert len(names) >= 300
    assert len(set(names)) == len(names)
    assert {kind for kind, _ in names} == {"texts", "checkpoints", "graphs", "clips"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("texts", "toml closed deep array"),
        ("texts", "toml value ansi"),
        ("texts", "grid 10^8 cells"),
        ("texts", "inspect bidi"),
        ("texts", "long argument"),
        ("texts", "manifest deep list"),
        ("checkpoints", "meta cls_token"),
        ("checkpoints", "holds itself"),
        ("checkpoints", "2^40 paths"),
        ("checkpoints", "claims depth 10^9"),
        ("checkpoints", "code 2 open"),
        ("checkpoints", "pipe"),
        ("graphs", "inspect functions 2^60"),
        ("graphs", "lint if in if"),
        ("graphs", "inspect names ansi"),
        ("graphs", "inspect constant of [4611686018427387904]"),
        ("graphs", "inspect weights in 'pipe'"),
        ("clips", "path http://127.0.0.1:9/c.mp4"),
        ("clips", "picture of 30000 pixels a side"),
    ],
)
def test_a_hostile_file_ends_in_one_line(hostile, tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    outcome = hostile.play(kind, name, tmp_path)
    # Time and memory are those of the whole test process here; the script measures them.
    faults = [fault for fault in outcome.faults if not fault.endswith((" s", " MB"))]
    assert faults == [], outcome.said
    assert outcome.code in (0, 2, 3, 4, 5)  # 5: a manifest that is damaged has lost its proof


def test_a_bad_ending_is_a_fault(hostile, tmp_path):
    faults = hostile._faults("\x1b[2J", "internal: a\nb", 4, 21, 2001, tmp_path)
    assert list(faults) == [
        "internal error", "more than one line", "control character", "21 s", "2001 MB",
    ]  # fmt: skip
    (tmp_path / hostile.CANARY).touch()
    assert list(hostile._faults("", "", 9, 0, 0, tmp_path)) == ["exit code 9", "code ran"]
