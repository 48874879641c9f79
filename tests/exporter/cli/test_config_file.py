"""Test options in a file: named on stderr, checked, overridden by the command line; completion."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from exporter import cli
from exporter.cli import export
from exporter.errors import ParityError
from exporter.sweep import run as sweep_run

TOLD = "tsformer: options of [export] in tsformer.toml are used\n"


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run a command line up to the start of the export; return code, stderr and the spec."""
    monkeypatch.chdir(tmp_path)
    specs = []

    def note(spec, *_, **__):
        specs.append(spec)
        raise ParityError("stopped by the test")

    monkeypatch.setattr("exporter.pipeline.export", note)

    def call(toml, *arguments, file="tsformer.toml"):
        specs.clear()
        if toml is not None:
            Path(file).write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return code, capfd.readouterr().err, *specs

    return call


def test_its_options_are_used_and_stderr_names_the_file(run):
    toml = (
        '[export]\nattn = "regular"\nres = 64\nmask = false\nvideo = ["a", "b"]\n'
        'bench_seconds = 1\neval = "motion"\ndynamic-batch = "1:2:3"\n[verify]\njson = true'
    )
    code, err, spec = run(toml, "export")
    assert (code, err.startswith(TOLD)) == (5, True)
    assert (spec.attn, spec.res, spec.mask, spec.bench_seconds) == ("regular", (64, 64), False, 1.0)
    assert (list(map(str, spec.video)), spec.eval, spec.run_batch) == (["a", "b"], "motion", 2)


def test_the_command_line_overrides_the_file(run):
    toml = '[export]\nattn = "regular"\nres = 64\nvideo = ["a", "b"]'
    _, _, spec = run(toml, "export", "--res", "32", "--video", "c")
    assert (spec.attn, spec.res, list(map(str, spec.video))) == ("regular", (32, 32), ["c"])


def test_a_table_sets_an_option_that_takes_json(run):
    _, _, spec = run('[export]\ncheckpoint = "x"\nconfig = {frames = 5}', "export")
    assert spec.config == {"frames": 5}


@pytest.mark.parametrize("arguments", [["--config-file", "my.toml"], ["--config-file=my.toml"]])
def test_config_file_can_stand_before_or_after_the_command(run, arguments):
    Path("tsformer.toml").write_text('[export]\nattn = "performer"')
    toml = '[export]\nattn = "regular"'
    for words in (["export", *arguments], [*arguments, "export"]):
        _, err, spec = run(toml, *words, file="my.toml")
        assert spec.attn == "regular"
        assert "options of [export] in my.toml are used" in err


@pytest.mark.parametrize("quiet", ["--quiet", None])
def test_quiet_hides_the_name_of_the_file(run, quiet):
    toml = '[export]\nattn = "regular"\n' + ("" if quiet else "quiet = true")
    _, err, spec = run(toml, "export", *([quiet] if quiet else []))
    assert spec.attn == "regular"
    assert "are used" not in err


def test_a_command_without_a_table_ignores_the_file_silently(run):
    _, err, spec = run('[verify]\nvideo = ["a"]', "export")
    assert spec.video == ()
    assert "are used" not in err


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["--version"]])
def test_help_and_version_ignore_errors_in_the_file(run, arguments):
    assert run("[exprot]", *arguments) == (0, "")


def test_options_of_one_call_do_not_reach_the_next(run):
    assert run('[export]\nattn = "regular"', "export")[2].attn == "regular"
    Path("tsformer.toml").unlink()
    assert run(None, "export")[2].attn is None


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[export]\natn = 'regular'", "[export] atn: expected an option of this command; did you "),
        ("[exprot]\nattn = 'regular'", "exprot: expected a table named as a command; did you mean"),
        ("[verify]\nvido = ['a']", "[verify] vido"),  # the table of another command
        ("export = 3", "export: expected a table named as a command"),
        ("[export]\nframes = 'x'", "Invalid value for [frames]: got 'x' in tsformer.toml"),
        ("[export]\nattn = 'fastfomer'", "did you mean 'fastformer'"),
        ("[export", "tsformer.toml is not TOML"),
        (b"\xff", "tsformer.toml is not TOML"),
    ],
)
def test_an_error_in_the_file_is_named_in_one_line(run, toml, message):
    code, err = run(toml, "export")
    assert code == 2
    assert message in err.removeprefix(TOLD)
    assert err.removeprefix(TOLD).count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file"], "--config-file has no path"),
        (["--config-file="], "--config-file has no path"),
        (["--config-file", "none.toml"], "cannot read none.toml: No such file"),
        (["--config-file", "."], "cannot read .: Is a directory"),
    ],
)
def test_a_named_file_that_cannot_be_read_is_bad_usage(run, arguments, message):
    code, err = run(None, "export", *arguments)
    assert (code, message in err) == (2, True)


def test_a_flag_of_sweep_overrides_one_option_and_keeps_the_others(run, monkeypatch):
    """The table [export] has no effect on the cells of a sweep."""
    seen = []

    def fake(grid, cells, directory, **_):
        seen.append(grid)
        raise ParityError("stopped by the test")

    monkeypatch.setattr(sweep_run, "sweep", fake)
    toml = "[sweep]\nattn = ['regular', 'performer']\nres = 64\njobs = 2\n[export]\nseed = 7"
    run(toml, "sweep", "--res", "32")
    assert (seen[0].base, seen[0].axes) == ({"res": "32"}, {"attn": ["regular", "performer"]})


def test_every_command_shows_its_examples(capfd):
    for command in ("export", "verify", "ladder", "tune-precision", "sweep", "advise"):
        assert cli.main([command, "--help"]) == 0
        assert f"Examples:\n    tsformer {command}" in capfd.readouterr().out
    assert export.__doc__


@pytest.mark.slow
def test_completion_can_be_installed_and_completes_in_bash(tmp_path):
    """The script, sourced in bash, completes commands and options."""
    script = tmp_path / "tsformer.bash"
    code = (
        "import sys; sys.argv[0] = 'tsformer'; from exporter.cli import main;"
        f"sys.exit(main(['--install-completion', '--shell', 'bash', '--output', {str(script)!r}]))"
    )
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    asked = [("tsformer", "sw"), ("tsformer", "export", "--prec")]
    for words in asked:
        line = json.dumps(words)
        bash = (
            f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1};"
            'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE};'
            "f=$(complete -p tsformer | sed 's/.*-F \\([^ ]*\\).*/\\1/'); $f tsformer;"
            'echo "${COMPREPLY[@]}"'
        )
        out = subprocess.run(["bash", "-c", bash], capture_output=True, text=True, check=True)
        assert {"sw": "sweep", "--prec": "--precision"}[words[-1]] in out.stdout, (line, out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "-o", ""], "the argument after -o is empty"),
        (["export", "--checkpoint="], "--checkpoint is empty"),
        (["label", "made", "", "-o", "rows.jsonl"], "the argument after made is empty"),
        (["export", "--outputs", ","], "--outputs: got ',', expected names"),
        (["doctor", "--require", ","], "--require: got ',', expected names"),
    ],
)
def test_an_empty_argument_is_not_the_current_directory_or_the_default(run, arguments, said):
    code, err, *_ = run(None, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err


def test_an_empty_value_of_a_file_is_refused(run):
    code, err, *_ = run('[export]\noutput = ""', "export")
    assert (code, err) == (
        2,
        "tsformer: usage: tsformer.toml: [export] output is empty; give a value, or omit it\n",
    )


def test_a_file_can_ask_for_the_trace(run):
    _, err, *_ = run("[export]\ndebug = true", "export")
    assert "Traceback" in err
