"""Test the command line: exit codes, one line for every error, no files left behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import av
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import tsformer
from exporter import cli, pipeline
from exporter.files.manifest import read_manifest
from exporter.latency import timing
from exporter.predict.rows import log_path
from exporter.runners.cuda import gpu_name
from exporter.to_engine.flavours import FLAVOURS, probe
from exporter.to_onnx import graphs
from model import FastTimeSformer, save_checkpoint

MECHANISMS = ("fastformer", "performer", "regular")
REPORT_KEYS = {"spec", "environment", "stages", "parity", "latency", "engine", "graph"}
STAGE_KEYS = {"name", "status", "seconds", "detail"}
PARITY_KEYS = {
    "runtime",
    "device",
    "precision",
    "verdict",
    "rel_l2",
    "max_abs",
    "cosine",
    "top1_agreement",
    "floor_rel_l2",
    "inputs",
}
LATENCY_KEYS = {
    "runtime",
    "device",
    "precision",
    "batch",
    "p50_ms",
    "p90_ms",
    "p95_ms",
    "p99_ms",
    "mean_ms",
    "std_ms",
    "clips_per_s",
    "runs",
    "peak_memory_mb",
}
# The smallest published performer that is clearly ill-conditioned with every tried seed. Floors are
# 7e-2 to 1; this seed gives 3e-1. The package's default (depth 12, dim 128) has larger floors.
ILL_CONDITIONED = [
    "--semantics",
    "upstream",
    "--attn",
    "performer",
    "--depth",
    "4",
    "--dim",
    "64",
    "--dim-head",
    "16",
    "--res",
    "32",
    "--frames",
    "2",
    "--engine",
    "none",
    "--bench-seconds",
    "0",
]


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run a command line in an empty directory; return exit code, stdout and stderr."""
    home = tmp_path / "cwd"
    home.mkdir()
    monkeypatch.chdir(home)

    def call(*arguments):
        capfd.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def refused(run):
    """Run a command that must fail with a given code; return the one line of stderr."""

    def call(code, *arguments):
        got, out, err = run(*arguments)
        assert got == code, err
        assert err.count("\n") == 1, err
        assert err.endswith("\n")
        assert err.startswith("tsformer: ")
        assert "Traceback" not in err
        assert not err.startswith("tsformer: internal")
        assert "\x1b" not in err
        assert out == ""
        assert listing() == []
        return err

    return call


def listing(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


def run_in_new_process(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "exporter", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# --- the main job


@pytest.mark.slow
@pytest.mark.parametrize("attn", MECHANISMS)
def test_one_command_leaves_a_proven_export(run, tiny_flags, real_clips, attn):
    built = {"none": "auto", "onnxruntime": "onnxruntime,tensorrt"}
    flags = [built.get(flag, flag) for flag in tiny_flags]
    code, out, err = run(
        "export", "--attn", attn, *flags, "--video", real_clips["bikes"], "-o", "made"
    )
    assert (code, err) == (0, "")
    assert "Pass" in out
    assert "made/report.html" in out.replace("\n", "")
    assert "1 real clip, 16 synthetic" in out

    report = json.loads(Path("made/report.json").read_text())
    assert set(report) >= REPORT_KEYS
    # The processor decides whether the error is below half of the tolerance; else the ladder runs.
    assert [stage["name"] for stage in report["stages"] if stage["name"] != "ladder"] == [
        "load",
        "inputs",
        "rewrite",
        "onnx",
        "engine",
        "parity",
        "latency",
        "report",
    ]
    assert all(set(stage) >= STAGE_KEYS for stage in report["stages"])
    (parity, *others) = report["parity"]
    assert set(parity) >= PARITY_KEYS
    assert (parity["runtime"], parity["device"], parity["verdict"]) == (
        "onnxruntime",
        "cpu",
        "pass",
    )
    assert parity["inputs"] == 17
    assert parity["per_input"][0]["name"] == "bikes.mp4"
    assert parity["rel_l2"] <= parity["tolerance"] <= max(4 * parity["floor_rel_l2"], 1e-6)
    assert {row["runtime"] for row in report["latency"]} >= {"eager", "onnxruntime"}
    for row in report["latency"]:
        assert set(row) >= LATENCY_KEYS
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["runs"] >= 10
    assert report["spec"]["attn"] == attn
    assert report["graph"]["inputs_used"][0]["note"]

    files = {"model.onnx", "manifest.json", "reference.npz"}
    files |= {"report.json", "report.md", "report.html", "README.md"}
    manifest = read_manifest(Path("made"))
    if probe("rtx").version:
        files |= {"model.engine", "model.tensorrt.onnx"}
        assert Path("made/model.engine").read_bytes()[:4] == FLAVOURS["rtx"].magic == b"vtrt"
        assert report["engine"]["bytes"] == Path("made/model.engine").stat().st_size
        if gpu_name() is None:
            assert report["engine"]["status"] == "built, not executed"
            verdicts = {row["runtime"]: row["verdict"] for row in others}
            assert verdicts == {
                "onnxruntime-tensorrt": "pass",
                "tensorrt_rtx": "not-run",
                "structure": "pass",
                "structure-tensorrt": "pass",
            }
    assert set(listing("made")) == files
    assert set(manifest["files"]) == files - {"manifest.json", "README.md"}
    assert listing() == ["made"]


@pytest.mark.slow
def test_json_prints_the_report_and_nothing_else(run, tiny_flags):
    code, out, err = run("export", *tiny_flags, "--json", "-o", "made")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(Path("made/report.json").read_text())


@pytest.mark.slow
def test_quiet_prints_nothing_and_the_default_directory_is_named_after_the_model(run, tiny_flags):
    assert run("export", *tiny_flags, "--quiet") == (0, "", "")
    assert listing("build") == ["fastformer-divided-32x48-fp32"]


@pytest.mark.slow
def test_a_dynamic_batch_is_verified_at_one_two_three_and_max(run, tiny_flags):
    code, *_ = run("export", *tiny_flags, "--dynamic-batch", "1:2:4", "--quiet", "-o", "made")
    assert code == 0
    report = json.loads(Path("made/report.json").read_text())
    (stage,) = (stage for stage in report["stages"] if stage["name"] == "parity")
    assert "batch 1, 2, 3, 4" in stage["detail"]
    assert report["graph"]["inputs"][0]["shape"][0] == "batch"


@pytest.mark.slow
def test_a_clip_that_is_too_short_is_used_and_noted(run, tiny_flags, tmp_path, write_clip):
    frames = [np.full((48, 64, 3), level, np.uint8) for level in (0, 20)]
    clip = write_clip(tmp_path / "short.mkv", frames)
    assert run("export", *tiny_flags, "--quiet", "--video", clip, "-o", "made")[0] == 0
    used = json.loads(Path("made/report.json").read_text())["graph"]["inputs_used"][0]
    assert used["name"] == "short.mkv"
    assert "shorter than asked (2 of 3 frames), so frames repeat" in used["note"]


@pytest.mark.slow
def test_a_published_checkpoint_is_exported_and_verified_again(run, tiny_flags, tmp_path):
    model = FastTimeSformer(2, 3, 32, 32, 4, dim=32, dim_head=16, depth=1, semantics="upstream")
    torch.save(dict(model.state_dict()), tmp_path / "published.pth")
    config = json.dumps({"frames": 2, "height": 32, "width": 32, "heads": 8})
    checkpoint = ("--checkpoint", tmp_path / "published.pth", "--config", config)
    flags = ("--engine", "none", "--bench-seconds", "0", "--quiet", "-o", "made")
    assert run("export", *checkpoint, *flags) == (0, "", "")
    spec = json.loads(Path("made/report.json").read_text())["spec"]
    assert (spec["semantics"], spec["depth"], spec["num_classes"]) == ("upstream", 1, 4)
    code, out, err = run("verify", "made")
    assert (code, err) == (0, "")
    assert "Pass" in out


# --- proof that fails


def corrupt_after_export(monkeypatch):
    """Let the exporter write a graph with one wrong number in one weight."""
    export_onnx = graphs.export_onnx

    def corrupting(model, example, path, **options):
        described = export_onnx(model, example, path, **options)
        graph = onnx.load(path)
        (weight,) = (w for w in graph.graph.initializer if w.name == "to_out.fn.weight")
        values = numpy_helper.to_array(weight).copy()
        values[0, 0] += 0.01
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(graph, path)
        return described

    monkeypatch.setattr(graphs, "export_onnx", corrupting)


@pytest.mark.slow
def test_a_corrupted_graph_is_delivered_with_its_verdict_and_exit_5(run, tiny_flags, monkeypatch):
    corrupt_after_export(monkeypatch)
    code, out, err = run("export", *tiny_flags, "-o", "made")
    assert code == 5
    assert err.startswith("tsformer: parity: fail: Not proven in structure")
    assert err.count("\n") == 1
    assert "Fail" in out
    report = json.loads(Path("made/report.json").read_text())
    assert [row["verdict"] for row in report["parity"]] == ["fail", "fail"]
    assert json.loads(Path("made/manifest.json").read_text())["verdict"] == "fail"


@pytest.mark.slow
def test_allow_ill_conditioned_does_not_accept_a_failed_proof(run, tiny_flags, monkeypatch):
    corrupt_after_export(monkeypatch)
    flags = (*tiny_flags, "--quiet", "--allow-ill-conditioned")
    assert run("export", *flags, "-o", "made")[0] == 5


def verdicts_of(report):
    return {row["runtime"]: row["verdict"] for row in report["parity"]}


@pytest.mark.slow
def test_the_published_performer_is_ill_conditioned(run):
    code, out, err = run("export", *ILL_CONDITIONED, "--json", "-o", "made")
    assert code == 5
    assert "ill-conditioned" in err
    assert "--allow-ill-conditioned accepts it" in err
    assert err.count("\n") == 1
    report = json.loads(Path("made/report.json").read_text())
    assert report == json.loads(out)
    assert verdicts_of(report)["onnxruntime"] == "ill-conditioned"
    # The rounding of float64 may be amplified above its tolerance too, on some processors.
    assert verdicts_of(report)["structure"] in ("pass", "ill-conditioned")
    assert report["parity"][0]["floor_rel_l2"] > 1e-3

    code, _, err = run("export", *ILL_CONDITIONED, "--allow-ill-conditioned", "-o", "allowed")
    assert (code, err) == (0, "")
    allowed = json.loads(Path("allowed/report.json").read_text())
    assert verdicts_of(allowed) == verdicts_of(report)
    assert json.loads(Path("allowed/manifest.json").read_text())["verdict"] == "ill-conditioned"

    code, _, err = run("verify", "allowed")
    assert code == 5
    assert "--allow-ill-conditioned" not in err  # `verify` has no such option


# --- bad input: arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--res", "100"], "multiple of patch_size 16: got 100, nearest 96 or 112"),
        (["--res", "0"], "at least 1: got 0"),
        (["--res", "32x"], "expected 512 or 224x384"),
        (["--res", "1x2x3"], "expected 512 or 224x384"),
        (["--res", "-32"], ""),
        (["--frames", "0"], "frames must be a whole number of at least 1: got 0"),
        (["--frames", "many"], "got 'many', expected a whole number"),
        (["--batch", "1.5"], "got '1.5', expected a whole number"),
        (["--attn", "fastfomer"], "did you mean 'fastformer'?"),
        (["--attn", "quick"], "regular, performer, fastformer"),
        (["--scheme", "divide"], "did you mean 'divided'?"),
        (["--batch", "0"], "--batch: got 0, expected 1 to 4,096"),
        (["--batch", "5000"], "--batch: got 5000, expected 1 to 4,096"),
        (["--dynamic-batch", "1:4:5000"], "--dynamic-batch: got 1:4:5000, expected 1 <= MIN"),
        (["--dynamic-batch", "4:2:8"], "1 <= MIN <= OPT <= MAX"),
        (["--dynamic-batch", "4"], "MIN:OPT:MAX"),
        (["--opset", "9"], "--opset: got 9, expected 16 to 23"),
        (["--engine", "rtxx"], "did you mean 'rtx'?"),
        (["--precision", "fp8"], "unknown precision"),
        (["--target", "sm86,sm90"], "'sm90'"),
        (["--target", "sm75"], "omit sm75"),
        (["--threads", "0"], "--threads: got 0"),
        (["--bench-seconds", "inf"], "--bench-seconds: got inf"),
        (["--seed", "99999999999999999999"], "--seed"),
        (["--dim", "100"], "multiple of dim_head"),
        (["--config", "{}", "--config", "{}"], "multiple times"),
        (["--config", '{"frames": 2}'], "add --checkpoint"),
        (["--config", "nowhere.json"], "cannot read nowhere.json"),
        (["--config", "{"], "is not JSON"),
        (["--config", "[1]"], "[1]"),
        (["--checkpoint", "x.pth", "--config", '{"config": 3}'], "not a JSON object"),
        (["--unknown", "1"], "Unknown option: --unknown; see tsformer --help"),
        (["stray"], "stray"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_one_line_and_exit_2(refused, arguments, words):
    assert words in refused(2, "export", *arguments)


def test_a_file_that_looks_like_an_option_gets_the_way_to_write_it(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-clip.mp4").touch()
    for arguments in (["predict", "build/x", "-clip.mp4"], ["export", "--video", "-clip.mp4"]):
        code, _, said = run(*arguments)
        assert (code, said.count("\n")) == (2, 1)
        assert said.endswith("; write the file as ./-clip.mp4\n")


def test_an_unknown_command_is_bad_usage(refused):
    assert "exprot" in refused(2, "exprot")


# --- bad input: checkpoints


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.fixture
def checkpoints(tmp_path):
    """Write bad checkpoints; the file names describe the faults."""
    model = FastTimeSformer(2, 3, 32, 32, 2, dim=32, dim_head=16, depth=1, semantics="upstream")
    state = dict(model.state_dict())
    torch.save(state, tmp_path / "good.pth")
    good = (tmp_path / "good.pth").read_bytes()
    save_checkpoint(model, tmp_path / "good.safetensors")
    torch.save(state | {"extra": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pth")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "keys.pth")
    torch.save(state | {"blocks.0.fc_t.bias": torch.zeros(7)}, tmp_path / "shapes.pth")
    torch.save(state | {"to_out.fn.bias": torch.full((2,), torch.nan)}, tmp_path / "nan.pth")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "truncated.pth").write_bytes(good[: len(good) // 2])
    whole = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("these are no weights\n" * 100)
    (tmp_path / "folder.pth").mkdir()
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.pth", "No such file"),
        ("empty.pth", "is empty"),
        ("truncated.pth", "is not a whole PyTorch file"),
        ("truncated.safetensors", "is not a whole safetensors file"),
        ("text.pth", "is not a whole PyTorch file"),
        ("folder.pth", "is a directory"),
        ("bomb.pth", "nothing was run"),
        ("keys.pth", "conv1.weight"),
        ("shapes.pth", "blocks.0.fc_t.bias has the wrong shape: got (7,), expected (32,)"),
        ("nan.pth", "NaN"),
    ],
)
def test_a_bad_checkpoint_is_one_line_and_exit_3(refused, checkpoints, name, words):
    error = refused(3, "export", "--checkpoint", checkpoints / name, "--frames", "2", "--res", "32")
    assert error.startswith("tsformer: checkpoint: ")
    assert words in error
    assert name in error
    assert not (checkpoints / "exploded").exists()


def test_the_bomb_checkpoint_runs_code_when_unpickled(checkpoints):
    torch.load(checkpoints / "bomb.pth", weights_only=False)
    assert (checkpoints / "exploded").exists()


# --- bad input: clips


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("what", ["missing", "empty", "text", "sound", "truncated", "directory"])
def test_a_bad_clip_is_one_line_and_exit_3(refused, tiny_flags, tmp_path, real_clips, what):
    clip = tmp_path / f"{what}.mp4"
    if what == "empty":
        clip.touch()
    elif what == "text":
        clip.write_text("no video at all\n" * 100)
    elif what == "sound":
        clip = write_sound(tmp_path / "sound.wav")
    elif what == "truncated":  # the index is at the end of the file
        clip.write_bytes(real_clips["bikes"].read_bytes()[:20_000])
    elif what == "directory":
        clip.mkdir()
    error = refused(3, "export", *tiny_flags, "--video", clip, "-o", "made")
    assert error.startswith("tsformer: video: ")
    assert clip.name in error


# --- bad output


@pytest.mark.slow
def test_an_existing_output_is_refused_at_once_and_replaced_by_force(run, tiny_flags, exported):
    shutil.copytree(exported().directory, "made")
    before = read_manifest(Path("made"))
    code, out, err = run("export", *tiny_flags, "--attn", "regular", "-o", "made")
    assert (code, out) == (2, "")
    assert "--force" in err
    assert err.count("\n") == 1
    assert read_manifest(Path("made")) == before
    flags = (*tiny_flags, "--attn", "regular", "--quiet", "--force")
    assert run("export", *flags, "-o", "made") == (0, "", "")
    assert read_manifest(Path("made"))["spec"]["attn"] == "regular"
    assert listing() == ["made"]


@pytest.mark.slow
def test_force_that_fails_keeps_the_older_export(run, tiny_flags, exported, tmp_path):
    shutil.copytree(exported().directory, "made")
    before = read_manifest(Path("made"))
    clip = ("--video", tmp_path / "none.mp4")
    assert run("export", *tiny_flags, *clip, "--force", "-o", "made")[0] == 3
    assert read_manifest(Path("made")) == before
    assert listing() == ["made"]


@pytest.mark.parametrize("out", ["/proc/tsformer", "../file/made", f"long/{'x' * 300}"])
def test_an_output_that_cannot_be_written_is_one_line_and_exit_2(
    refused, tiny_flags, tmp_path, out
):
    (tmp_path / "file").touch()
    assert "cannot write" in refused(2, "export", *tiny_flags, "-o", out)


# --- verify


@pytest.fixture
def directory(exported, tmp_path):
    return shutil.copytree(exported().directory, tmp_path / "export")


@pytest.mark.slow
def test_an_untouched_export_verifies(run, directory, real_clips):
    before = {path: path.read_bytes() for path in directory.iterdir()}
    code, out, err = run("verify", directory, "--checkpoint", "--video", real_clips["carphone"])
    assert (code, err) == (0, "")
    assert "Pass" in out
    assert "1 real clip, 16 synthetic" in out
    assert {path: path.read_bytes() for path in directory.iterdir()} == before
    assert listing() == []


@pytest.mark.slow
def test_verify_prints_json(run, directory):
    code, out, err = run("verify", directory, "--json")
    assert (code, err) == (0, "")
    assert verdicts_of(json.loads(out)) == {"onnxruntime": "pass", "structure": "pass"}


@pytest.mark.parametrize("name", ["model.onnx", "report.md"])
def test_verify_refuses_a_file_with_a_changed_byte(refused, directory, name):
    content = bytearray((directory / name).read_bytes())
    content[len(content) // 3] ^= 1
    (directory / name).write_bytes(content)
    assert "was changed since it was exported" in refused(5, "verify", directory)


def test_a_graph_that_was_changed_with_its_hash_fails_the_proof(run, directory):
    """The proof fails for another model even if its hash in the manifest is correct."""
    graph = onnx.load(directory / "model.onnx")
    (weight,) = (w for w in graph.graph.initializer if w.name == "to_out.fn.bias")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 0.01, weight.name))
    onnx.save(graph, directory / "model.onnx")
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["files"]["report.json"]
    from exporter.files.manifest import sha256

    manifest["files"]["model.onnx"]["sha256"] = sha256(directory / "model.onnx")
    (directory / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = run("verify", directory)
    assert code == 5
    assert err.startswith("tsformer: parity: fail")


def test_verify_refuses_a_directory_that_is_not_an_export(refused, tmp_path):
    assert "is not an export" in refused(3, "verify", tmp_path)
    assert "is not an export" in refused(3, "verify", tmp_path / "nowhere")


def test_a_manifest_without_its_parts_cannot_be_verified(refused, directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["spec"]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert "damaged" in refused(5, "verify", directory)


@pytest.mark.slow
def test_verify_accepts_only_the_checkpoint_that_was_exported(run, tiny_flags, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = FastTimeSformer(2, 3, 32, 32, 2, dim=32, dim_head=16, depth=1)
    save_checkpoint(model, tmp_path / "own.safetensors")
    flags = ("--engine", "none", "--bench-seconds", "0", "--quiet", "-o", "made")
    assert run("export", "--checkpoint", tmp_path / "own.safetensors", *flags) == (0, "", "")
    moved = (tmp_path / "own.safetensors").rename(tmp_path / "moved.safetensors")
    assert run("verify", "made")[0] == 0  # by the reference of the export
    code, _, err = run("verify", "made", "--checkpoint")
    assert (code, err.count("\n")) == (3, 1)
    assert "say where it is with --checkpoint" in err
    assert run("verify", "made", "--checkpoint", moved)[0] == 0
    moved.write_bytes(moved.read_bytes()[:-1] + b"\0\0")
    code, _, err = run("verify", "made", "--checkpoint", moved)
    assert (code, err.count("\n")) == (3, 1)
    assert "is not the checkpoint that was exported" in err


# --- the other commands


def test_the_doctor_lists_every_part(run):
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    for part in ("PyTorch", "ONNX Runtime", "TensorRT-RTX", "NVIDIA GPU", "OpenVINO", "PyAV"):
        assert part in " ".join(out.split()), part
    assert "\nYou can: make exports, prove, time and use exports" in out


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_what_the_doctor_must_find_sets_the_exit_code(run, without_gpu, flags):
    for asked in (["gpu,engine"], ["gpu", "--require", "engine"]):
        code, out, err = run("doctor", "--require", *asked, *flags)
        assert code == 4
        assert out
        assert err.startswith(
            "tsformer: doctor: this machine cannot run model.onnx on the GPU or run engines: "
            "got NVIDIA GPU: none; use a machine with an NVIDIA GPU"
        )
        assert err.count("\n") == 1


def test_an_unknown_requirement_is_a_usage_error(run):
    code, out, err = run("doctor", "--require", "tpu")
    assert (code, out) == (2, "")
    assert "--require: got tpu, expected some of gpu, engine, openvino" in err


def test_the_doctor_prints_json(run):
    code, out, err = run("doctor", "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert {"part", "works", "found", "remedy"} == set(said["findings"][0])
    assert said["environment"]["packages"]["torch"] == torch.__version__


@pytest.mark.parametrize("command", [[], ["export"], ["verify"], ["doctor"]], ids=" ".join)
def test_help_shows_the_usage(run, command):
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert "Usage: tsformer" in out


@pytest.mark.parametrize("command", [name for name in cli.app if not name.startswith("-")])
def test_the_help_names_only_defaults_that_a_user_can_write(run, command):
    _, out, _ = run(command, "--help")
    assert re.findall(r"default:\s*(?:False|\(\)|None)", out.replace("│", "")) == []


def test_the_help_of_export_breaks_lines_at_the_border_only(run):
    _, out, _ = run("export", "--help")
    words = " ".join(line.strip("│ ") for line in out.splitlines())
    assert "otherwise uniform, and the report says so." in " ".join(words.split())
    lines = [line for line in out.splitlines() if "otherwise uniform" in line]
    assert len(lines[0].rstrip("│ ")) > 65


def test_the_help_of_a_command_breaks_lines_at_the_width_only(run):
    _, out, _ = run("sweep", "--help")
    assert "of it. FILE is TOML with the same names: options of all cells in [base], lists" in out
    _, out, _ = run("verify", "--help")
    assert "export, with torch; give a path if it was moved. Write" in out
    assert "\n    tsformer verify build/trained --checkpoint trained.safetensors" in out  # examples


def test_every_command_has_debug():
    for name in (name for name in cli.app if not name.startswith("-")):
        arguments = cli.app[name].assemble_argument_collection()
        assert "--debug" in {each for argument in arguments for each in argument.names}, name


def test_the_help_of_export_names_every_option_of_the_contract(run):
    _, out, _ = run("export", "--help")
    for option in (
        "--attn",
        "--res",
        "--scheme",
        "--frames",
        "--channels",
        "--batch",
        "--num-classes",
        "--dim",
        "--depth",
        "--heads",
        "--dim-head",
        "--patch-size",
        "--checkpoint",
        "--config",
        "--semantics",
        "--video",
        "--precision",
        "--dynamic-batch",
        "--opset",
        "--engine",
        "--target",
        "--output",
        "-o",
        "--seed",
        "--json",
        "--quiet",
    ):
        assert option in out, option


class InterruptedAtItsEnd:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_within_a_finalizer_is_not_lost(capsys):
    """Python prints what a finalizer raises, and goes on: an export went on after Ctrl-C."""
    received = []
    with pytest.raises(KeyboardInterrupt), cli._noting_signals(received):
        InterruptedAtItsEnd()
        for _ in range(500):
            time.sleep(0.01)
    assert received == [signal.SIGINT]
    assert "Exception ignored" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_version_is_that_of_the_package(tmp_path):
    done = run_in_new_process("--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == metadata.version("tsformer") + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["tsformer", "export"])
def test_the_console_scripts_are_installed(tmp_path, script):
    path = Path(sys.executable).with_name(script)
    command = [path, *(["export"] if script == "tsformer" else []), "--res", "100"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "nearest 96 or 112" in done.stderr
    assert done.stderr.count("\n") == 1
    assert listing(tmp_path) == []


# --- internal errors, and errors in a new process


def test_debug_shows_the_trace(run):
    code, out, err = run("export", "--res", "100", "--debug")
    assert (code, out) == (2, "")
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("tsformer: usage: height must be a multiple")


@pytest.mark.slow
def test_an_internal_error_is_one_line_and_exit_4(run, tiny_flags, monkeypatch):
    def broken(*_args, **_options):
        raise ZeroDivisionError("a defect\nin two lines")

    monkeypatch.setattr(timing, "bench", broken)
    code, out, err = run("export", *tiny_flags, "-o", "made")
    assert (code, out) == (4, "")
    assert err.startswith("tsformer: internal: ZeroDivisionError: a defect in two lines")
    assert err.count("\n") == 1
    assert listing() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (2, ["export", "--frames", "0"]),
        (3, ["export", "--checkpoint", "none.pth"]),
        (3, ["verify", "."]),
    ],
    ids=["usage", "checkpoint", "verify"],
)
def test_a_new_process_gives_one_line_and_the_exit_code(tmp_path, code, arguments):
    done = run_in_new_process(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1
    assert listing(tmp_path) == []


# --- interrupted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "load"),
        (signal.SIGINT, "onnx"),
        (signal.SIGINT, "engine Building"),
        (signal.SIGINT, "latency"),
        (signal.SIGTERM, "engine Building"),
    ],
)
def test_an_interrupted_export_leaves_nothing(start, ended, tmp_path, tiny_flags, number, moment):
    # Builds an engine, and measures latency for 60 s.
    changed = {"none": "auto", "onnxruntime": "onnxruntime,tensorrt", "0": "60"}
    process = start("export", *(changed.get(flag, flag) for flag in tiny_flags), "-o", "a/made")
    process.wait_for(*moment.split())
    children = process.children()
    code, said = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}[number]
    assert process.end(number) == (code, f"tsformer: {said}: nothing was left behind\n")
    assert listing(tmp_path) == []
    assert all(ended(child) for child in children)


@pytest.mark.parametrize("out", ["rows.jsonl", "rows.parquet"])
def test_an_interrupted_label_says_that_its_rows_are_kept(run, monkeypatch, out):
    def interrupted(_how, _clips, _out, **_):
        log_path(Path(out)).write_text("a row\n")
        raise KeyboardInterrupt

    monkeypatch.setattr("exporter.predict.label.label", interrupted)
    Path("clip.mp4").touch()
    code, _, err = run("label", "made", "clip.mp4", "-o", out)
    told = f"what is finished is kept in {log_path(Path(out))}; the same command goes on from there"
    assert (code, err) == (130, f"tsformer: interrupted: {told}\n")


def test_ctrl_c_before_the_command_line_is_imported_is_one_line(monkeypatch, capfd):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    assert tsformer.main() == 130
    assert capfd.readouterr().err == "tsformer: interrupted: nothing was left behind\n"


@pytest.mark.parametrize(
    ("interruption", "code"),
    [(KeyboardInterrupt, 130), (RuntimeError, 130)],
    ids=["as is", "turned"],
)
def test_ctrl_c_is_told_as_an_interrupt_whatever_a_library_raises(
    run, tiny_flags, monkeypatch, interruption, code
):
    """Interrupted imports and traces raise any error, for example RecursionError."""

    def interrupted(_spec):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)  # the signal arrives here
        except KeyboardInterrupt:
            raise interruption from None

    monkeypatch.setattr(pipeline, "load_model", interrupted)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    got, out, err = run("export", *tiny_flags, "-o", "made")
    assert (got, out, err) == (code, "", "tsformer: interrupted: nothing was left behind\n")
    assert listing() == []
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# --- a closed pipe


@pytest.mark.slow
@pytest.mark.parametrize("option", [[], ["--json"]], ids=["table", "json"])
def test_a_closed_pipe_does_not_change_the_exit_code(monkeypatch, tmp_path, option):
    """`tsformer export | true`: the exit code describes the proof, not the pipe."""
    script = (
        "import sys, time; from types import SimpleNamespace as N; from pathlib import Path\n"
        "from exporter import cli, pipeline; from exporter.results import Parity, Report\n"
        "row = Parity('onnxruntime', 'cpu', 'fp32', 'fail', rel_l2=1.0, tolerance=1e-6, inputs=8)\n"
        "report = Report({}, {}, (), (row,), ())\n"
        "Path('report.json').write_text('{}')\n"
        "result = N(verdict='fail', report=report, directory=Path('.'))\n"
        "pipeline.export = lambda *a, **k: time.sleep(0.5) or result\n"
        "sys.exit(cli.main(['export', *sys.argv[1:]]))\n"
    )
    command = [sys.executable, "-c", script, *option]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdout.close()
        error = child.stderr.read()
        assert child.wait() == 5
    assert error.startswith(b"tsformer: parity: fail")
    assert error.count(b"\n") == 1
