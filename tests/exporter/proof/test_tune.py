"""Test that tune-precision finds the module that overflows, and that export reads its recipe."""

import json
import math
from typing import Any

import pytest
import torch

from exporter.cli import main
from exporter.errors import OutputError, TuneError, UsageError
from exporter.inputs.clips import gather_inputs
from exporter.precision import in_precision
from exporter.proof.tune import read_recipe, tune, write_recipe
from exporter.results import Recipe
from model import FastTimeSformer, save_checkpoint
from model.precision import rounded_modules

pytestmark = pytest.mark.slow  # each test runs a model many times

QUICK = ["--engine", "none", "--bench-seconds", "0", "--quiet"]
PLANTED = "blocks.1.mlp.fn"
BUDGET = 5e-3


def sound():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FastTimeSformer(
            3, 3, 32, 48, 5, dim=32, dim_head=16, depth=3, attn_mechanism="regular"
        )
    return model.eval()


@torch.no_grad()
def planted(path=PLANTED, factor=2e5):
    """Make an equal function in float32 whose feed-forward overflows in float16."""
    model = sound()
    net: Any = model.get_submodule(f"{path}.net")
    project_in, project_out = net[0], net[3]
    project_in.weight[: len(project_in.weight) // 2] *= factor
    project_in.bias[: len(project_in.bias) // 2] *= factor
    project_out.weight /= factor
    return model


def inputs_of(model):
    return gather_inputs((), model.config, model.preprocessing)


def tuned(model, precision="fp16", budget=BUDGET, **options):
    return tune(model, inputs_of(model), precision=precision, budget=budget, **options)


# --- the search


def test_the_planted_overflow_occurs_only_in_float16():
    model, video = planted(), torch.from_numpy(inputs_of(planted()).arrays["video"])
    with torch.no_grad():
        assert not in_precision(model, "fp16")(video).isfinite().all()
        torch.testing.assert_close(model(video), sound()(video), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", [f"blocks.{i}.mlp.fn" for i in range(3)])
def test_only_the_planted_overflow_is_kept(path):
    recipe = tuned(planted(path))
    assert recipe.keep_fp32 == (path.replace(".", r"\."),)
    assert recipe.error <= recipe.budget == BUDGET
    assert not math.isfinite(recipe.error_without)
    assert next(iter(recipe.alone)) == path
    assert set(recipe.alone) == set(rounded_modules(planted()))
    others = [error for name, error in recipe.alone.items() if name != path]
    assert others == sorted(others, reverse=True)
    assert max(others) < BUDGET


def test_two_planted_overflows_are_kept():
    model = planted("blocks.0.mlp.fn")
    model.blocks[2] = planted("blocks.2.mlp.fn").blocks[2]
    assert tuned(model).keep_fp32 == (r"blocks\.0\.mlp\.fn", r"blocks\.2\.mlp\.fn")


def test_nothing_is_kept_if_the_budget_is_met_without():
    recipe = tuned(sound())
    assert recipe.keep_fp32 == ()
    assert recipe.evaluations == 1
    assert recipe.error == recipe.error_without <= BUDGET


def test_bf16_does_not_overflow_and_keeps_nothing():
    assert tuned(planted(), "bf16", 0.05).keep_fp32 == ()


def test_a_budget_below_the_rounding_keeps_some_and_meets_it():
    without = tuned(sound()).error
    recipe = tuned(sound(), budget=without / 2)
    assert 0 < len(recipe.keep_fp32) < len(rounded_modules(sound()))
    assert recipe.error <= without / 2
    # The kept modules are those with the largest errors.
    kept = [path for path in recipe.alone if path.replace(".", r"\.") in recipe.keep_fp32]
    assert kept == list(recipe.alone)[: len(kept)]


def test_a_budget_that_float32_cannot_meet_is_an_error():
    with pytest.raises(TuneError, match="float32 alone is above the budget") as caught:
        tuned(sound(), budget=1e-12)
    assert caught.value.exit_code == 5


def test_progress_is_reported_and_ends_within_its_total():
    told = []
    tuned(planted(), on_step=lambda done, total, what: told.append((done, total, what)))
    assert [done for done, _, _ in told] == list(range(len(told)))
    (total,) = {total for _, total, _ in told}
    assert len(told) <= total
    assert all(what for _, _, what in told)


# --- the file


def recipe_of(**changes):
    values = {
        "precision": "fp16",
        "keep_fp32": (r"blocks\.0\.mlp\.fn",),
        "budget": 1e-3,
        "error": 5e-4,
        "error_without": math.inf,
        "evaluations": 7,
        "alone": {"blocks.0.mlp.fn": math.inf, "project_in": 1e-4},
    }
    return Recipe(**{**values, **changes})


def test_a_recipe_is_strict_json_and_can_be_read(tmp_path):
    write_recipe(recipe_of(), tmp_path / "r.json")
    values = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert values["error_without"] is None
    assert values["alone"] == {"blocks.0.mlp.fn": None, "project_in": 1e-4}
    assert read_recipe(tmp_path / "r.json") == ("fp16", (r"blocks\.0\.mlp\.fn",))


def test_a_recipe_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*r\.json: No such file or directory"):
        write_recipe(recipe_of(), tmp_path / "missing" / "r.json")


BAD = {
    "empty": "",
    "no json": "precision: fp16",
    "not utf-8": b"\xff\xfe\x00{",
    "a list": "[]",
    "a string": '"fp16"',
    "a number": "3",
    "null": "null",
    "nothing in it": "{}",
    "no precision": '{"keep_fp32": []}',
    "nothing kept": '{"precision": "fp16"}',
    "a precision that is none": '{"precision": 16, "keep_fp32": []}',
    "null for a precision": '{"precision": null, "keep_fp32": []}',
    "text for a list": '{"precision": "fp16", "keep_fp32": "blocks.0"}',
    "null for a list": '{"precision": "fp16", "keep_fp32": null}',
    "numbers in the list": '{"precision": "fp16", "keep_fp32": ["blocks.0", 3]}',
    "a mapping for a list": '{"precision": "fp16", "keep_fp32": {"blocks.0": 1}}',
    "too deep": '{"precision": "fp16", "keep_fp32": ' + "[" * 100_000,
}


@pytest.fixture(params=BAD, ids=lambda name: name.replace(" ", "-"))
def bad(request, tmp_path):
    content = BAD[request.param]
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "bad.json").write_bytes(content)
    return tmp_path / "bad.json"


def test_a_bad_recipe_is_bad_usage(bad):
    with pytest.raises(UsageError) as caught:
        read_recipe(bad)
    assert str(caught.value).startswith("--recipe: ")
    assert str(bad) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.json", "."])
def test_a_recipe_that_cannot_be_read_is_bad_usage(tmp_path, name):
    with pytest.raises(UsageError, match="cannot read"):
        read_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (None, [], "cannot read"),
        ("{", [], "is no recipe"),
        ('{"precision": 3, "keep_fp32": []}', [], "is damaged"),
        ('{"precision": "fp16", "keep_fp32": []}', ["--precision", "bf16"], "--recipe is for fp16"),
        ('{"precision": "fp8", "keep_fp32": []}', [], "unknown precision"),
        ('{"precision": "fp32", "keep_fp32": ["blocks.0"]}', [], "--keep-fp32 does not go with"),
        ('{"precision": "fp16", "keep_fp32": ["blocks.9"]}', [], "matches no module"),
        ('{"precision": "fp16", "keep_fp32": ["("]}', [], "not a regular expression"),
    ],
)
def test_bad_recipes_are_one_line_and_exit_2(
    tmp_path, monkeypatch, capsys, content, options, words
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "r.json").write_text(content)
    sizes = ["--res", "32", "--depth", "1", "--dim", "32", "--dim-head", "16", "--frames", "2"]
    assert main(["export", *sizes, *QUICK, "--recipe", "r.json", *options, "-o", "made"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "made").exists()


# --- the command


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A float32 export of the planted checkpoint."""
    folder = tmp_path_factory.mktemp("planted")
    save_checkpoint(planted(), folder / "planted.safetensors")
    command = ["export", "--checkpoint", str(folder / "planted.safetensors"), *QUICK]
    assert main([*command, "-o", str(folder / "made")]) == 0
    return folder


@pytest.mark.slow
def test_the_recipe_makes_the_export_pass(exported, tmp_path, capsys):
    recipe = tmp_path / "found.json"
    arguments = [str(exported / "made"), "--budget", str(BUDGET), "-o", str(recipe)]
    assert main(["tune-precision", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out, parse_constant=pytest.fail) == json.loads(recipe.read_text())
    assert json.loads(out)["precision"] == "fp16"
    assert json.loads(out)["keep_fp32"] == [r"blocks\.1\.mlp\.fn"]

    checkpoint = ["--checkpoint", str(exported / "planted.safetensors")]
    with_recipe = ["export", *checkpoint, "--recipe", str(recipe), *QUICK]
    assert main([*with_recipe, "-o", str(tmp_path / "mended")]) == 0
    report = json.loads((tmp_path / "mended" / "report.json").read_text())
    assert report["spec"]["precision"] == "fp16"
    assert report["spec"]["keep_fp32"] == [r"blocks\.1\.mlp\.fn"]
    really = next(row for row in report["parity"] if row["runtime"] == "onnx-reference")
    assert really["verdict"] == "pass"
    # The graph has the error that tune-precision predicted, except for other roundings.
    assert really["rel_l2"] < 2 * BUDGET

    # Without the recipe the export fails in one line, and its ladder names the module.
    capsys.readouterr()
    without = ["export", *checkpoint, "--precision", "fp16", *QUICK]
    assert main([*without, "-o", str(tmp_path / "without")]) == 5
    assert capsys.readouterr().err.count("\n") == 1
    found = json.loads((tmp_path / "without" / "report.json").read_text())["ladder"]
    assert found["first_not_finite"] == found["first_divergence"] == PLANTED


@pytest.mark.slow
def test_the_recipe_is_written_beside_the_export_by_default(exported, capsys):
    assert main(["tune-precision", str(exported / "made"), "--budget", "0.1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    recipe = exported / "made.recipe.json"
    assert str(recipe) in out.replace("\n", "")
    assert read_recipe(recipe) == ("fp16", (r"blocks\.1\.mlp\.fn",))
    assert "blocks.1.mlp.fn" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "options", "words"),
    [
        (5, ["--budget", "1e-12"], "float32 alone is above the budget"),
        (2, ["--budget", "0"], "--budget"),
        (2, ["--budget", "-1"], "--budget"),
        (2, ["--budget", "nan"], "--budget"),
        (2, ["--budget", "inf"], "--budget"),
        (2, ["--budget", "much"], "much"),
        (2, ["--precision", "fp32"], "--precision"),
        (2, ["--precision", "fp61"], "--precision"),
        (2, ["--budget", "0.5", "--precision", "bf16", "-o", "/proc/none/r.json"], "cannot write"),
    ],
)
def test_bad_options_are_one_line(exported, capsys, code, options, words):
    assert main(["tune-precision", str(exported / "made"), *options]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert not err.startswith("tsformer: internal")


def test_a_directory_that_is_not_an_export_is_refused(tmp_path, capsys):
    assert main(["tune-precision", str(tmp_path)]) == 3
    assert capsys.readouterr().err.count("\n") == 1
