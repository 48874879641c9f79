"""Test that the ladder names the wrong module, and no module of a correct graph."""

import json
import math
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporter import ExportSpec
from exporter.cli import main
from exporter.errors import LadderError
from exporter.graph.modules import read_module_outputs
from exporter.pipeline import export
from exporter.proof.diagnose import ladder
from exporter.proof.ladder import OBSERVED, _judge, _match, _worse, add_outputs
from exporter.results import Rung
from exporter.runners.reference import ReferenceRunner
from exporter.to_engine.build import build_engine
from model import FastTimeSformer, save_checkpoint

SIZES = {"depth": 2, "dim": 32, "dim_head": 16, "frames": 3, "res": (32, 48)}
# Without rewrites no module is folded into another, so the ladder has a rung for each.
QUICK = {"engine": "none", "bench_seconds": 0.0, "rewrite": "none"}
SCOPES = "pkg.torch.onnx.name_scopes"


@pytest.fixture(scope="module")
def made(undrawn, tmp_path_factory):
    """Make one export for each precision; read only."""
    done = {}

    def get(precision, attn="regular"):
        if precision not in done:
            out = tmp_path_factory.mktemp("ladder") / precision
            spec = ExportSpec(attn=attn, precision=precision, **SIZES, **QUICK)
            done[precision] = export(spec, out).directory
        return done[precision]

    return get


@pytest.fixture
def changed(made, tmp_path):
    """Copy an export and change its graph by a function."""

    def get(precision, change, source=None):
        directory = shutil.copytree(source or made(precision), tmp_path / "changed")
        model = onnx.load(directory / "model.onnx")
        change(model)
        onnx.save(model, directory / "model.onnx")
        return directory

    return get


def scope(node):
    return {entry.key: entry.value for entry in node.metadata_props}.get(SCOPES, "")


def weights_of(model, path):
    """List the matrices that only the nodes of one module use as a factor."""
    names = {weight.name for weight in model.graph.initializer}
    inside, outside = set(), set()
    for node in model.graph.node:
        (inside if f"'{path}'" in scope(node) else outside).update(
            set(node.input) & names if node.op_type in ("MatMul", "Conv", "Gemm") else ()
        )
    return sorted(inside - outside)


def corrupt(path, factor=1.5):
    def change(model):
        name = weights_of(model, path)[-1]
        (weight,) = (w for w in model.graph.initializer if w.name == name)
        values = numpy_helper.to_array(weight).copy()
        values[..., 0] = values[..., 0] * np.asarray(factor, values.dtype)
        weight.CopyFrom(numpy_helper.from_array(values, name))

    return change


# --- unchanged graphs


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_unchanged_graph_has_no_divergence(made, capsys, precision):
    assert main(["ladder", str(made(precision)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["first_divergence"] == found["first_not_finite"] == ""
    assert found["precision"] == precision
    assert found["runtime"] == ("onnxruntime" if precision == "fp32" else "onnx-reference")
    paths = [rung["path"] for rung in found["rungs"]]
    assert len(set(paths)) == len(paths) == 23 - 4
    assert paths[0] == "project_in"
    assert paths[-1] == "to_out.fn"
    # The order of computation: the parts of a block come before the block.
    order = ("attn_t.norm", "attn_t.fn", "fc_t", "attn_s.norm", "attn_s.fn", "mlp.norm", "mlp.fn")
    assert paths[1:9] == [*(f"blocks.0.{name}" for name in order), "blocks.0"]
    for rung in found["rungs"]:
        assert rung["finite"] is True
        assert 0 < rung["rel_l2"] < 0.05
        assert rung["floor_rel_l2"] > 0
        assert rung["cosine"] > 0.99
        assert rung["max_abs"] > 0


@pytest.mark.slow
def test_errors_of_fp16_are_within_its_rounding(made):
    whole, half = ladder(made("fp32")), ladder(made("fp16"))
    for a, b in zip(whole.rungs, half.rungs, strict=True):
        assert a.path == b.path
        assert a.rel_l2 < 1e-5
        assert 1e-5 < b.rel_l2 < 1e-2


@pytest.mark.slow
def test_the_table_lists_the_modules_and_the_result(made, capsys):
    assert main(["ladder", str(made("fp16"))]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "every module is within the rounding of eager PyTorch" in " ".join(out.split())
    assert "blocks.1.attn_s.fn" in out


# --- a wrong weight


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["project_in", "blocks.0.attn_t.fn", "blocks.0.fc_t", "blocks.1.mlp.fn", "to_out.fn"]
)
def test_a_wrong_weight_names_its_module(changed, path):
    found = ladder(changed("fp32", corrupt(path)))
    assert found.first_divergence == path
    assert found.first_not_finite == ""


@pytest.mark.slow
def test_a_wrong_weight_of_an_fp16_graph_names_its_module_and_is_exit_5(changed, capsys):
    directory = changed("fp16", corrupt("blocks.1.attn_s.fn", 3.0))
    assert main(["ladder", str(directory)]) == 5
    out, err = capsys.readouterr()
    assert "first above limit" in out
    assert err.count("\n") == 1
    assert err.startswith(
        "tsformer: ladder: blocks.1.attn_s.fn is the first module above its limit"
    )
    assert "tune-precision" in err


@pytest.mark.slow
def test_a_wrong_bias_names_its_module(changed):
    def change(model):
        (bias,) = (w for w in model.graph.initializer if w.name == "blocks.1.fc_t.bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.01, bias.name))

    assert ladder(changed("fp32", change)).first_divergence == "blocks.1.fc_t"


# --- NaN and Inf


@pytest.mark.slow
def test_the_first_nan_is_marked_and_json_stays_strict(changed, capsys):
    directory = changed("fp16", corrupt("blocks.0.mlp.fn", np.nan))
    assert main(["ladder", str(directory), "--json"]) == 5
    out, err = capsys.readouterr()
    found = json.loads(out, parse_constant=pytest.fail)
    assert err.count("\n") == 1
    assert found["first_divergence"] == found["first_not_finite"] == "blocks.0.mlp.fn"
    rungs = {rung["path"]: rung for rung in found["rungs"]}
    assert rungs["blocks.0.mlp.fn"]["rel_l2"] is None
    assert not rungs["blocks.0"]["finite"]
    assert rungs["blocks.0.attn_s.fn"]["finite"]


def test_an_infinity_in_a_graph_is_named_at_its_module(changed, capsys):
    def change(model):
        (bias,) = (w for w in model.graph.initializer if w.name == "blocks.0.fc_t.bias")
        values = np.full_like(numpy_helper.to_array(bias), np.inf)
        bias.CopyFrom(numpy_helper.from_array(values, bias.name))

    directory = changed("fp16", change)
    assert main(["ladder", str(directory)]) == 5
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "blocks.0.fc_t is the first module" in err
    assert "first NaN" in out


def rung(path, error=0.0, floor=0.0, *, finite=True):
    return Rung(path, error, floor, 1.0, error, finite)


def judged(*rungs, precision="fp16"):
    runner = ReferenceRunner.__new__(ReferenceRunner)
    runner.precision = precision
    found = _judge(runner, rungs)
    return found.first_divergence, found.first_not_finite


@pytest.mark.parametrize(
    ("rungs", "marks"),
    [
        ([rung("a", 1.9e-3), rung("b", 1.9e-3)], ("", "")),
        ([rung("a", 1e-3), rung("b", 2.1e-3), rung("c", 1.0)], ("b", "")),
        ([rung("a", 3.9e-2, 1e-2), rung("b", 4.1e-2, 1e-2)], ("b", "")),
        ([rung("a"), rung("b", math.nan, finite=False)], ("b", "b")),
        ([rung("a", 1.0), rung("b", math.inf, finite=False)], ("a", "b")),
        # Eager PyTorch overflows there too. NaN and Inf are never within a limit.
        ([rung("a"), rung("b", math.inf, math.inf, finite=False)], ("b", "b")),
        ([rung("a"), rung("b", math.nan, math.nan, finite=False)], ("b", "b")),
    ],
)
def test_first_divergence_and_first_not_finite_are_marked(rungs, marks):
    assert judged(*rungs) == marks


def test_the_limit_of_a_precision_equals_that_of_parity():
    assert judged(rung("a", 0.9e-6), rung("b", 1.1e-6), precision="fp32") == ("b", "")
    assert judged(rung("a", 1.5e-2), rung("b", 1.7e-2), precision="bf16") == ("b", "")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_larger_error_of_two_clips_counts(order):
    clips = [rung("a", 0.1, 0.3), rung("a", 0.2, 0.1)]
    worst = _worse(*(clips[i] for i in order))
    assert (worst.rel_l2, worst.floor_rel_l2, worst.finite) == (0.2, 0.3, True)
    clips[0] = rung("a", math.nan, 0.3, finite=False)
    worst = _worse(*(clips[i] for i in order))
    assert math.isnan(worst.rel_l2)
    assert not worst.finite
    clips[0] = rung("a", math.nan, 0.3)  # finite, but the truth is not
    assert math.isnan(_worse(*(clips[i] for i in order)).rel_l2)


def test_outputs_are_matched_by_size_from_the_last():
    cls, x, other = np.zeros((1, 4)), np.zeros((9, 4)), np.ones((9, 4))
    assert [v is w for v, w in zip(_match([cls, x], [x, cls]).values(), [x, cls], strict=True)] == [
        True,
        True,
    ]
    assert set(_match([cls, x], [cls])) == {0}  # a graph omits the patches of the last block
    found = _match([x, x], [x, other])
    assert found[0] is x
    assert found[1] is other
    assert _match([cls], [x]) == {}


# --- a norm in lower precision


@pytest.fixture(scope="module")
def large(undrawn, tmp_path_factory):
    """Export a model in fp16 with tokens in the hundreds, whose squares overflow float16."""
    folder = tmp_path_factory.mktemp("large")
    torch.manual_seed(0)
    model = FastTimeSformer(
        3, 3, 32, 48, 5, dim=32, dim_head=16, depth=2, attn_mechanism="regular"
    ).eval()
    with torch.no_grad():
        model.project_in.weight.mul_(300)
        model.project_in.bias[::4] += 400
    save_checkpoint(model, folder / "large.safetensors")
    spec = ExportSpec(checkpoint=folder / "large.safetensors", precision="fp16", **QUICK)
    result = export(spec, folder / "made")
    assert result.verdict == "pass"
    return result.directory


def force_first_norm_into_float16(model):
    """Replace the first LayerNormalization by its formula in float16, between two casts."""
    graph = model.graph
    place, norm = next(
        (i, node) for i, node in enumerate(graph.node) if node.op_type == "LayerNormalization"
    )
    assert "'blocks.0.attn_t.norm'" in scope(norm)
    half = TensorProto.FLOAT16
    for name in norm.input[1:]:
        (weight,) = (w for w in graph.initializer if w.name == name)
        values = numpy_helper.to_array(weight).astype(np.float16)
        graph.initializer.append(numpy_helper.from_array(values, f"{name}_half"))
    graph.initializer.append(numpy_helper.from_array(np.array([1e-5], np.float16), "eps_half"))
    scale, bias = (f"{name}_half" for name in norm.input[1:])
    make = helper.make_node
    formula = [
        make("Cast", [norm.input[0]], ["ln_x"], to=half),
        make("ReduceMean", ["ln_x", "ln_axes"], ["ln_mean"], keepdims=1),
        make("Sub", ["ln_x", "ln_mean"], ["ln_off"]),
        make("Mul", ["ln_off", "ln_off"], ["ln_square"]),
        make("ReduceMean", ["ln_square", "ln_axes"], ["ln_var"], keepdims=1),
        make("Add", ["ln_var", "eps_half"], ["ln_var_eps"]),
        make("Sqrt", ["ln_var_eps"], ["ln_deviation"]),
        make("Div", ["ln_off", "ln_deviation"], ["ln_normal"]),
        make("Mul", ["ln_normal", scale], ["ln_scaled"]),
        make("Add", ["ln_scaled", bias], ["ln_y"]),
        make("Cast", ["ln_y"], [norm.output[0]], to=TensorProto.FLOAT),
    ]
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), "ln_axes"))
    graph.node.remove(norm)
    for node in reversed(formula):
        graph.node.insert(place, node)
    onnx.checker.check_model(model)


@pytest.mark.slow
def test_large_tokens_with_float32_norms_have_no_divergence(large):
    found = ladder(large)
    assert (found.first_divergence, found.first_not_finite) == ("", "")


@pytest.mark.slow
def test_a_norm_forced_into_float16_is_named(large, changed):
    found = ladder(changed("fp16", force_first_norm_into_float16, large))
    assert found.first_divergence == "blocks.0.attn_t.norm"
    before = next(r for r in found.rungs if r.path == "project_in")
    assert before.finite


def test_a_float16_norm_of_small_tokens_is_not_named(made, changed):
    """Large tokens cause the error. The changed graph alone does not."""
    found = ladder(changed("fp16", force_first_norm_into_float16))
    assert (found.first_divergence, found.first_not_finite) == ("", "")


# --- refusals


def refused(capsys, directory, code):
    assert main(["ladder", str(directory)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert not err.startswith("tsformer: internal"), err
    return err


def test_a_graph_without_module_names_is_refused_in_one_line(changed, capsys):
    def change(model):
        kept = [entry for entry in model.metadata_props if entry.key != "tsformer.modules"]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)

    directory = changed("fp32", change)
    assert "export it again" in refused(capsys, directory, 4)
    with pytest.raises(LadderError):
        ladder(directory)


def test_a_directory_that_is_not_an_export_is_refused_in_one_line(capsys, tmp_path):
    assert "is not an export" in refused(capsys, tmp_path, 3)


def test_an_export_without_its_graph_is_one_line(made, tmp_path, capsys):
    directory = shutil.copytree(made("fp32"), tmp_path / "made")
    (directory / "model.onnx").unlink()
    assert main(["ladder", str(directory)]) in (3, 4, 5)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "model.onnx" in err
    assert not err.startswith("tsformer: internal"), err


def test_a_damaged_graph_is_one_line(made, tmp_path, capsys):
    directory = shutil.copytree(made("fp32"), tmp_path / "made")
    (directory / "model.onnx").write_bytes(b"no graph at all\n" * 9)
    assert main(["ladder", str(directory)]) in (3, 4, 5)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert not err.startswith("tsformer: internal"), err


def test_an_engine_without_a_gpu_is_one_line(made, capsys, without_gpu):
    assert main(["ladder", str(made("fp16")), "--engine"]) == 4
    error = capsys.readouterr().err
    assert "no NVIDIA GPU" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_an_engine_with_every_module_as_output_can_be_built(made, tmp_path, precision):
    proto = onnx.load(made(precision) / "model.onnx")
    names = [*dict.fromkeys(name for of in read_module_outputs(proto).values() for name in of)]
    add_outputs(proto, names)
    onnx.save(proto, tmp_path / "observed.onnx")

    engine = build_engine(tmp_path / "observed.onnx", tmp_path / "observed.engine", flavour="rtx")

    assert {output.name for output in engine.outputs} == {"logits", *(n + OBSERVED for n in names)}
    assert {output.dtype for output in engine.outputs} == {"float32"}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("attn", ["fastformer", "performer", "regular"])
def test_a_rewritten_graph_is_compared_with_the_rewritten_model(tmp_path, attn, precision):
    spec = ExportSpec(attn=attn, precision=precision, **SIZES, **{**QUICK, "rewrite": "all"})
    result = export(spec, tmp_path / "x")
    assert result.report.graph["rewrites"]

    found = ladder(tmp_path / "x")

    assert found.first_divergence == ""
    paths = {rung.path for rung in found.rungs}
    assert {"project_in", "blocks.0.attn_t.fn", "blocks.1.attn_s.fn", "to_out.fn"} <= paths
