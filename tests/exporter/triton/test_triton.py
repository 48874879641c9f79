import copy
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from exporter.cli import main
from exporter.errors import TritonError, UsageError
from exporter.files.machines import Machine, Machines
from exporter.files.manifest import read_manifest, sha256
from exporter.inputs.video import normalise
from exporter.results import Parity
from exporter.triton.config import render
from exporter.triton.plan import DEFAULT_QUEUE_DELAY, Serving, plan
from model.preprocessing import Preprocessing

PASSED = {"verdict": "pass", "reason": ""}
ON_CPU = {"runtime": "onnxruntime", "device": "cpu", **PASSED}
ON_CUDA = {"runtime": "onnxruntime", "device": "cuda", **PASSED}
EXECUTED = {"runtime": "tensorrt", "device": "cuda", **PASSED}
NOT_ON_CPU = ON_CPU | {"verdict": "not-run", "reason": "no kernel\nfor Conv(22)"}
ENGINE = {"flavour": "tensorrt", "version": "10.9.0"}


@pytest.fixture
def directory(exported, tmp_path):
    """Make a copy of an export that a test may change."""
    return shutil.copytree(exported().directory, tmp_path / "made")


@pytest.fixture
def manifest(exported):
    """Make the manifest of an export with an engine file."""
    found = copy.deepcopy(read_manifest(exported().directory))
    found["files"]["model.engine"] = {}
    return found


@pytest.fixture
def dynamic(manifest):
    """Make the manifest of an export with a dynamic batch."""
    manifest["spec"]["dynamic_batch"] = {"min": 1, "opt": 4, "max": 16}
    for tensor in (*manifest["inputs"], *manifest["outputs"]):
        tensor["shape"][0] = "batch"
    return manifest


def change(directory, edit):
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def refused(capsys, code, *arguments):
    """Run a command that must fail with a given code; return its one line of stderr."""
    assert main(["triton", *map(str, arguments)]) == code
    out, said = capsys.readouterr()
    assert out == ""
    assert said.startswith("tsformer: ")
    assert said.count("\n") == 1
    return said


def planned(manifest, *rows, **how):
    return plan(manifest, {"parity": rows or (ON_CPU,)}, Serving("m", **how))


# --- written


def test_an_export_is_written_and_left_out_models_are_named(directory, tmp_path, capsys):
    repository = tmp_path / "a" / "models"
    assert main(["triton", str(directory), str(repository)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "made_trt is left out: no engine was built: --engine none" in said
    assert "--dynamic-batch" in said

    made = repository / "made_onnx"
    assert tree(repository) == [
        "made_onnx/1/model.onnx",
        "made_onnx/config.pbtxt",
        "made_onnx/tsformer.json",
    ]
    assert sha256(made / "1" / "model.onnx") == sha256(directory / "model.onnx")
    assert (made / "tsformer.json").read_bytes() == (directory / "manifest.json").read_bytes()
    config = (made / "config.pbtxt").read_text()
    assert 'name: "made_onnx"' in config
    assert "max_batch_size: 0" in config
    assert "dims: [ 1, 3, 3, 32, 48 ]" in config
    assert "label_filename" not in config
    assert (made / "1" / "model.onnx").stat().st_mode & 0o444 == 0o444  # the server's user reads it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "made"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["models"]


def test_json_lists_models_and_left_out_models(directory, tmp_path, capsys):
    command = ["triton", directory, tmp_path / "models", "--name", "x.1", "--ensemble", "--json"]
    assert main(list(map(str, command))) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in facts["models"]] == ["x.1_onnx", "x.1_preprocess", "x.1"]
    assert [model["device"] for model in facts["models"]] == ["cpu", "cpu", None]
    assert list(facts["left_out"]) == ["x.1_trt"]
    assert {path.name for path in (tmp_path / "models").iterdir()} == {
        model["name"] for model in facts["models"]
    }


def test_values_have_no_labels_to_be_ranked_by(directory, tmp_path):
    change(directory, lambda content: content.update(labels=["x", "y"], task="regression"))
    assert main(["triton", str(directory), str(tmp_path / "models")]) == 0
    made = tmp_path / "models" / "made_onnx"
    assert not (made / "labels.txt").exists()
    assert '\\"task\\": \\"regression\\"' in (made / "config.pbtxt").read_text()


def test_labels_with_line_breaks_are_one_line_each(directory, tmp_path):
    change(directory, lambda content: content.update(labels=["to the\nleft", "außen"]))
    assert main(["triton", str(directory), str(tmp_path / "models")]) == 0
    made = tmp_path / "models" / "made_onnx"
    assert (made / "labels.txt").read_text(encoding="utf-8") == "to the left\naußen\n"
    assert 'label_filename: "labels.txt"' in (made / "config.pbtxt").read_text()


@pytest.mark.slow
def test_nothing_heavy_is_imported(directory, tmp_path):
    code = (
        "import sys\nfrom exporter.cli import main\n"
        f"assert main(['triton', {str(directory)!r}, {str(tmp_path / 'models')!r}]) == 0\n"
        "print(*{'torch', 'onnx', 'onnxruntime', 'av', 'tensorrt_rtx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


# --- planned


def test_a_dynamic_batch_prefers_opt_and_max(dynamic):
    (model,) = planned(dynamic).models
    assert model.max_batch_size == 16
    assert model.preferred == (4, 16)
    assert model.queue_delay == DEFAULT_QUEUE_DELAY
    assert model.warm_up == (1, 4, 16)
    assert model.inputs[0].dims == (3, 3, 32, 48)
    assert model.outputs[0].dims == (2,)
    assert planned(dynamic).notes == ()


def test_equal_batch_sizes_are_listed_once(dynamic):
    dynamic["spec"]["dynamic_batch"] = {"min": 1, "opt": 1, "max": 1}
    (model,) = planned(dynamic, queue_delay=0).models
    assert (model.preferred, model.warm_up, model.queue_delay) == ((1,), (1,), 0)


def test_a_fixed_batch_has_no_dynamic_batching(manifest):
    (model,) = planned(manifest).models
    assert (model.max_batch_size, model.preferred, model.warm_up) == (0, (), (1,))
    with pytest.raises(UsageError, match=r"batch of this export is fixed.*--dynamic"):
        planned(manifest, queue_delay=100)


def test_an_engine_of_tensorrt_is_served_beside_the_graph(dynamic):
    dynamic["engine"] = ENGINE
    deployment = planned(dynamic, ON_CPU, EXECUTED)
    assert [(m.name, m.backend, m.device) for m in deployment.models] == [
        ("m_onnx", "onnxruntime", "cpu"),
        ("m_trt", "tensorrt", "cuda"),
    ]
    assert deployment.left_out == {}
    assert "TensorRT 10.9.0" in deployment.notes[0]


@pytest.mark.parametrize(
    ("engine", "least", "rows", "words"),
    [
        (ENGINE | {"flavour": "tensorrt_rtx"}, 1, (ON_CPU,), ("tensorrt_rtx", "--engine tensorrt")),
        (ENGINE, 1, (ON_CPU,), ("not executed", "not proven")),
        (
            ENGINE,
            1,
            (ON_CPU, EXECUTED | {"verdict": "not-run", "reason": ""}),
            ("not executed", "not proven"),
        ),
        (ENGINE, 2, (ON_CPU, EXECUTED), ("no batch below 2", "--dynamic-batch 1:")),
        ({"status": "not built", "reason": "no GPU"}, 1, (ON_CPU,), ("no engine", "no GPU")),
    ],
    ids=["rtx", "never-run", "not-run", "minimum", "none"],
)
def test_an_engine_that_triton_cannot_serve_is_left_out(dynamic, engine, least, rows, words):
    dynamic["engine"] = engine
    dynamic["spec"]["dynamic_batch"]["min"] = least
    deployment = planned(dynamic, *rows)
    assert [model.name for model in deployment.models] == ["m_onnx"]
    assert all(word in deployment.left_out["m_trt"] for word in words)


def test_an_engine_whose_file_is_missing_is_left_out(dynamic):
    dynamic["engine"] = ENGINE
    del dynamic["files"]["model.engine"]
    deployment = planned(dynamic, ON_CPU, EXECUTED)
    assert deployment.left_out == {"m_trt": "the engine is not in the export"}


def test_onnx_runtime_uses_the_proven_device_by_default(manifest):
    assert planned(manifest, ON_CPU).models[0].device == "cpu"
    on_gpu = planned(manifest, ON_CPU, ON_CUDA)
    assert on_gpu.models[0].device == "cuda"
    assert not any("not proven" in note for note in on_gpu.notes)
    assert planned(manifest, ON_CPU, ON_CUDA, device="cpu").models[0].device == "cpu"
    insisted = planned(manifest, ON_CPU, device="cuda")
    assert insisted.models[0].device == "cuda"
    assert any("not proven on cuda" in note for note in insisted.notes)


def test_a_graph_that_onnx_runtime_cannot_run_is_not_served(manifest):
    with pytest.raises(TritonError, match=r"no kernel for Conv.*--device cuda.*no eng") as caught:
        planned(manifest, NOT_ON_CPU)
    assert caught.value.exit_code == 4
    assert planned(manifest, NOT_ON_CPU, device="cuda").models[0].device == "cuda"
    manifest["engine"] = ENGINE
    deployment = planned(manifest, NOT_ON_CPU, EXECUTED)
    assert [model.name for model in deployment.models] == ["m_trt"]
    assert "no kernel" in deployment.left_out["m_onnx"]


def test_an_ensemble_uses_the_engine_if_there_is_one(dynamic):
    dynamic["engine"] = ENGINE
    *_, preprocess, whole = planned(dynamic, ON_CPU, EXECUTED, ensemble=True).models
    assert preprocess.inputs[0].dims == (3, 32, 48, 3)
    assert [step.model for step in whole.steps] == ["m_preprocess", "m_trt"]
    *_, whole = planned(dynamic, ON_CPU, ensemble=True).models
    assert [step.model for step in whole.steps] == ["m_preprocess", "m_onnx"]


def test_an_ensemble_of_a_graph_of_pixels_is_refused(manifest):
    manifest["inputs"][0]["dtype"] = "uint8"
    assert planned(manifest).models[0].inputs[0].type == "TYPE_UINT8"
    with pytest.raises(UsageError, match="takes pixels itself"):
        planned(manifest, ensemble=True)


def test_the_preprocessing_model_equals_the_reader_bit_for_bit(monkeypatch):
    how = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    stub = types.ModuleType("triton_python_backend_utils")
    stub.Tensor = lambda name, array: (name, array)
    stub.InferenceResponse = lambda tensors: tensors
    stub.get_input_tensor_by_name = lambda request, name: types.SimpleNamespace(
        as_numpy=lambda: request[name]
    )
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    space = {}
    exec(render("preprocess.py.jinja", mean=list(how.mean), std=list(how.std)), space)
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), np.uint8)
    answers = space["TritonPythonModel"]().execute([{"frames": frames}, {"frames": frames[:1]}])
    expected = normalise(np.moveaxis(frames, -1, -3) / np.float32(255), how)
    for answer, array in zip(answers, (expected, expected[:1]), strict=True):
        ((name, video),) = answer
        assert (name, video.dtype, video.shape) == ("video", np.float32, array.shape)
        assert np.array_equal(video, array)


# --- an existing repository


def test_force_replaces_all_models_of_one_name_and_keeps_others(directory, tmp_path, capsys):
    repository = tmp_path / "models"
    (repository / "other" / "1").mkdir(parents=True)
    (repository / "other" / "config.pbtxt").write_text("theirs")
    assert main(["triton", str(directory), str(repository), "--ensemble"]) == 0
    before = tree(repository)
    assert {"made/config.pbtxt", "made_preprocess/1/model.py"} < set(before)
    capsys.readouterr()

    assert "made_onnx exists; replace it with --force" in refused(capsys, 2, directory, repository)
    assert tree(repository) == before
    assert main(["triton", str(directory), str(repository), "--force", "--instances", "2"]) == 0
    assert tree(repository) == [  # the old ensemble must not feed the new model
        "made_onnx/1/model.onnx",
        "made_onnx/config.pbtxt",
        "made_onnx/tsformer.json",
        "other/config.pbtxt",
    ]
    assert "count: 2" in (repository / "made_onnx" / "config.pbtxt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "models"]


def test_models_of_others_are_never_replaced(directory, tmp_path, capsys):
    repository = tmp_path / "models"
    (repository / "made_onnx").mkdir(parents=True)
    (repository / "made_onnx" / "config.pbtxt").write_text("theirs")
    said = refused(capsys, 2, directory, repository, "--force")
    assert "was not made by tsformer" in said
    assert tree(repository) == ["made_onnx/config.pbtxt"]


def test_an_export_as_repository_is_refused_and_unchanged(directory, tmp_path, capsys):
    before = tree(directory)
    assert "is an export" in refused(capsys, 2, directory, directory, "--force")
    # The ensemble and the export have the same path.
    said = refused(capsys, 2, directory, directory.parent, "--ensemble", "--force")
    assert "was not made by tsformer" in said
    assert main(["triton", str(directory), str(directory.parent), "--force"]) == 0
    assert main(["triton", str(directory), str(directory.parent), "--force"]) == 0
    assert tree(directory) == before


def test_a_file_as_repository_is_refused(directory, tmp_path, capsys):
    (tmp_path / "models").write_text("")
    assert "is a file; give another repository" in refused(
        capsys, 2, directory, tmp_path / "models"
    )


def test_an_interrupt_leaves_nothing(directory, tmp_path, monkeypatch):
    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    assert main(["triton", str(directory), str(tmp_path / "a" / "models")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_full_disk_leaves_nothing(directory, tmp_path, monkeypatch, capsys):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    said = refused(capsys, 2, directory, tmp_path / "models", "--ensemble")
    assert "No space left on device" in said
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


# --- wrong inputs


@pytest.mark.parametrize("name", ["", "a b", "-x", ".", "..", "a/b", "ü", 'a"b', "x" * 201])
def test_a_name_that_triton_does_not_accept_is_refused(directory, tmp_path, capsys, name):
    said = refused(capsys, 2, directory, tmp_path / "models", f"--name={name}")
    assert "--name" in said
    assert not (tmp_path / "models").exists()


def test_the_name_of_the_directory_is_checked_too(directory, tmp_path, capsys):
    odd = directory.rename(tmp_path / "my model")
    assert "'my model'" in refused(capsys, 2, odd, tmp_path / "models")


@pytest.mark.parametrize(
    "options",
    [
        ("--instances", "0"),
        ("--instances", "1001"),
        ("--instances", "two"),
        ("--queue-delay=-1",),
        ("--queue-delay", "10000001"),
        ("--queue-delay", "100"),  # the batch is fixed
        ("--device", "tpu"),
    ],
    ids=" ".join,
)
def test_options_out_of_bounds_are_refused(directory, tmp_path, capsys, options):
    assert options[0].split("=")[0] in refused(capsys, 2, directory, tmp_path / "m", *options)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("verdict", ["fail", "ill-conditioned", "not-run", None])
def test_an_unproven_export_is_refused(directory, tmp_path, capsys, verdict):
    change(directory, lambda content: content.update(verdict=verdict))
    said = refused(capsys, 5, directory, tmp_path / "models")
    assert f"verdict {verdict}" in said
    assert "report.html" in said
    assert not (tmp_path / "models").exists()


def test_an_ill_conditioned_model_is_served_if_that_was_accepted(directory, tmp_path, capsys):
    def accept(content):
        content["verdict"] = "ill-conditioned"
        content["spec"]["allow_ill_conditioned"] = True

    change(directory, accept)
    assert main(["triton", str(directory), str(tmp_path / "models")]) == 0
    assert "ill-conditioned" in capsys.readouterr().out


def test_a_changed_or_missing_export_is_refused(directory, tmp_path, capsys):
    refused(capsys, 3, tmp_path / "nothing", tmp_path / "models")
    with (directory / "model.onnx").open("ab") as file:
        file.write(b"x")
    assert "was changed" in refused(capsys, 5, directory, tmp_path / "models")


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content.pop("inputs"),
        lambda content: content.update(labels=[3]),
        lambda content: content.update(outputs={}.fromkeys(["logits"])),
        lambda content: content["inputs"][0].update(dtype="complex64"),
        lambda content: content["inputs"][0].update(shape=["batch", 3]),
        lambda content: content["spec"].update(dynamic_batch={"min": 1}),
        lambda content: content["inputs"][0].update(name='video"'),
        lambda content: content.update(preprocessing={}),
        lambda content: content["preprocessing"].update(std=[0.0, 0.0, 0.0]),
        lambda content: content["preprocessing"].update(mean=["a", "b", "c"]),
    ],
)
def test_a_manifest_with_wrong_values_is_refused(directory, tmp_path, capsys, edit):
    change(directory, edit)
    assert "manifest" in refused(capsys, 5, directory, tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("text", ["", "{}", '{"parity": [{}]}', '{"parity": 3}'])
def test_a_report_with_wrong_values_is_refused(directory, tmp_path, capsys, text):
    (directory / "report.json").write_text(text)
    change(directory, lambda content: content["files"].pop("report.json"))
    assert "cannot be understood" in refused(capsys, 5, directory, tmp_path / "models")


def test_the_options_in_the_examples_exist(capsys):
    text = (Path(__file__).parents[3] / "examples" / "README.md").read_text(encoding="utf-8")
    for command in ("export", "triton"):
        assert main([command, "--help"]) == 0
        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        lines = re.findall(rf"^tsformer {command} .*$", text, flags=re.MULTILINE)
        assert lines
        assert set(re.findall(r"--[a-z-]+", "".join(lines))) <= known


class TestRecords:
    """What machines recorded decides which engine is served."""

    @pytest.fixture
    def built(self, manifest):
        """Make the manifest of an export whose TensorRT engine was built again, elsewhere."""
        manifest["engine"] = {"flavour": "tensorrt", "version": "10.1", "sha256": "b" * 64}
        manifest["files"]["model.engine"] = {"sha256": "b" * 64}
        return manifest

    def served(self, built, *rows, other=(), report=(ON_CPU,)):
        files = {"tensorrt": "model.engine", "onnxruntime": "model.onnx"}
        found = (Machine("orin", {}, rows, (), files), Machine("xavier", {}, other, (), files))
        machines = Machines(found)
        return plan(built, {"parity": report}, Serving("m"), machines)

    def test_an_engine_proven_on_its_gpu_is_served(self, built):
        assert "m_trt" in self.served(built).left_out
        row = Parity("tensorrt", "cuda:0 a GPU", "fp32", "pass")
        deployment = self.served(built, row)
        assert [model.name for model in deployment.models] == ["m_onnx", "m_trt"]

    def test_an_engine_that_failed_on_a_machine_is_left_out(self, built):
        row = Parity("tensorrt", "cuda:0 a GPU", "fp32", "fail")
        assert self.served(built, row).left_out == {"m_trt": "the engine failed its proof on orin"}

    @pytest.mark.parametrize("swapped", [False, True])
    @pytest.mark.parametrize("apart", [False, True], ids=["one machine", "two machines"])
    def test_a_graph_that_failed_once_is_left_out_whatever_the_order(self, built, apart, swapped):
        """Of two outputs on one machine, and of two machines."""
        rows = [
            Parity("onnxruntime", "cpu", "fp32", verdict, output=name)
            for name, verdict in (("logits", "fail"), ("features", "pass"))
        ]
        rows = rows[::-1] if swapped else rows
        two = {"other": rows[1:]} if apart else {}
        with pytest.raises(TritonError, match="m_onnx: it failed its proof on"):
            self.served(built, *(rows[:1] if apart else rows), **two)

    def test_an_accepted_ill_conditioned_model_is_served_after_a_record(self, built):
        built["verdict"] = "ill-conditioned"
        row = Parity("onnxruntime", "cpu", "fp32", "ill-conditioned")
        assert [model.name for model in self.served(built, row).models] == ["m_onnx"]
        built["verdict"] = "pass"
        with pytest.raises(TritonError, match="m_onnx: it failed its proof on orin"):
            self.served(built, row)

    def test_the_report_of_another_engine_proves_nothing(self, built):
        ran = {**ON_CPU, "runtime": "tensorrt", "device": "cuda:0", "verdict": "pass"}
        assert "m_trt" in self.served(built, report=(ON_CPU, ran)).left_out

    def test_a_graph_proven_on_cuda_is_served_there(self, built):
        row = Parity("onnxruntime", "cuda:0 a GPU", "fp32", "pass")
        (model,) = self.served(built, row).models
        assert model.device == "cuda"
