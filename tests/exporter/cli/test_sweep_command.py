"""Test `tsformer sweep`: cells from flags and files, and exit codes."""

import json
from pathlib import Path

import pytest

from exporter import cli
from exporter.sweep import run
from exporter.sweep.table import Progress

ROW = {"key": "k", "reason": "", "directory": None, "seconds": 1.0, "report": None}
VERDICTS = {"regular": "pass", "performer": "ill-conditioned", "fastformer": "fail"}


@pytest.fixture
def ran(monkeypatch, tmp_path, capfd):
    """Run a command line without exports; return code, stdout, stderr and the cells."""
    monkeypatch.chdir(tmp_path)
    given = {}

    def fake(grid, cells, directory, *, jobs, on_progress):
        given.update(cells=cells, directory=directory, jobs=jobs, grid=grid)
        on_progress(Progress(0, len(cells), (), None))
        rows = [
            {**ROW, "cell": cell.values, "status": "done", "verdict": VERDICTS[cell.spec.attn]}
            if cell.spec
            else {**ROW, "cell": cell.values, "status": "failed", "verdict": None, "reason": "bad"}
            for cell in cells
        ]
        found = {"sweep_version": 1, "axes": dict(grid.axes), "base": {}, "rows": rows}
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "sweep.json").write_text(json.dumps(found))
        return found

    monkeypatch.setattr(run, "sweep", fake)

    def call(*arguments):
        given.clear()
        capfd.readouterr()
        code = cli.main(["sweep", *map(str, arguments)])
        return code, *capfd.readouterr(), given

    return call


def specs(given):
    return [cell.spec for cell in given["cells"]]


def test_flags_of_export_work_and_commas_make_axes(ran):
    code, out, _, given = ran(
        "--attn", "regular", "--res", "32,32x48", "--dim-head=16", "--jobs", 3
    )
    assert code == 0
    assert [(s.attn, s.res, s.dim_head) for s in specs(given)] == [
        ("regular", (32, 32), 16),
        ("regular", (32, 48), 16),
    ]
    assert (given["jobs"], given["directory"]) == (3, Path("build/sweep"))
    assert "32x48" in out
    assert out.rstrip().endswith("build/sweep/sweep.json")
    assert max(map(len, out.splitlines())) <= 80


def test_a_file_takes_the_same_names_and_flags_override_it(ran):
    Path("grid.toml").write_text(
        '[base]\ncheckpoint = "w-{attn}.pth"\nmask = false\nconfig = {frames = 5}\n'
        'dynamic-batch = "1:2:3"\n[axes]\nattn = ["regular", "performer"]\nseed = [0, -1]'
    )
    code, _, _, given = ran("grid.toml", "--attn", "regular", "-o", "here")
    assert code == 0
    assert [(str(s.checkpoint), s.seed, s.config) for s in specs(given)] == [
        ("w-regular.pth", 0, {"frames": 5}),
        ("w-regular.pth", -1, {"frames": 5}),
    ]
    assert given["directory"] == Path("here")


def test_options_of_lower_precision_are_not_given_to_fp32_cells(ran):
    _, _, _, given = ran(
        "--attn=regular",
        "--precision=fp32,fp16,int8",
        "--calibration",
        "clips",
        "--keep-fp32",
        "head",
    )
    assert [(bool(s.calibration), s.keep_fp32) for s in specs(given)] == [
        (False, ()),
        (False, ("head",)),
        (True, ("head",)),
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--atn", "regular"], 2, "atn is no option of an export; did you mean attn?"),
        (["--output-dir", "x"], 2, "output-dir is no option of an export"),
        (["--force", "true"], 2, "force is no option of an export"),
        (["--attn", "regular,fastfomer"], 2, "no cell of attn fastfomer can be exported: unknown"),
        (["--res", "32,x"], 2, "no cell of res x can be exported: Invalid value for --res"),
        (["--depth", "x"], 2, "got 'x', expected a whole number"),
        (["--res", "32,32"], 2, "res has a value twice"),
        (["--checkpoint", "{attn}.pth"], 2, "{attn} stands for no option given"),
        (["--jobs", "0"], 2, "--jobs: got 0, expected 1 to 512"),
        (["none.toml"], 3, "cannot read none.toml"),
        (["--attn"], 2, "requires an argument"),
    ],
)
def test_a_mistake_is_refused_before_any_cell_is_exported(ran, arguments, code, message):
    got, out, err, given = ran(*arguments)
    assert (got, out, given) == (code, "", {})
    assert message in err
    assert err.count("\n") == 1


def test_a_combination_that_is_not_valid_is_a_failed_row(ran):
    code, _, err, given = ran("--attn=regular", "--precision=fp32,bf16", "--opset=20,22")
    assert code == 4
    assert [cell.spec is None for cell in given["cells"]] == [False, False, True, False]
    assert "1 of 4 cells failed, first bf16 20: bad; see build/sweep/sweep.json" in err


@pytest.mark.parametrize(
    ("attns", "more", "code"),
    [
        ("regular", (), 0),
        ("regular,performer", (), 5),
        ("regular,fastformer", (), 5),
        ("regular,performer", ("--allow-ill-conditioned", "true"), 0),
        ("regular,fastformer", ("--allow-ill-conditioned", "true"), 5),
    ],
)
def test_the_exit_code_is_0_only_if_every_cell_is_proven(ran, attns, more, code):
    got, _, err, _ = ran("--attn", attns, *more)
    assert got == code
    assert ("1 of 2 cells are not proven, first" in err) == (code == 5)


def test_json_prints_the_rows_and_quiet_prints_nothing(ran):
    code, out, err, _ = ran("--attn", "regular", "--json")
    assert (code, err) == (0, "")
    assert [row["status"] for row in json.loads(out)["rows"]] == ["done"]
    assert ran("--attn", "regular", "--quiet")[:3] == (0, "", "")
