"""Test `build`: engine and manifest change together, and a half state is found and healed."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from exporter import cli
from exporter.errors import EngineError, ManifestError, OutputError, ParityError, UsageError
from exporter.files.lock import Lock
from exporter.files.machines import read_machines
from exporter.files.manifest import read_manifest
from exporter.predict import Card
from exporter.results import Parity
from exporter.runners.cuda import NO_GPU, Gpu, GpuStatus
from exporter.target import build as build_module
from exporter.target.build import build
from exporter.target.verify import verify
from exporter.to_engine.build import EngineInfo
from exporter.to_engine.flavours import FlavourChoice, probe

WITHOUT = """
import sys
for name in ("torch", "onnx", "onnxscript", "einops"):
    sys.modules[name] = None
from exporter.cli import main
sys.exit(main(sys.argv[1:]))
"""
GPU = GpuStatus(Gpu("a GPU", 1, "8.6", 8.0, None, "13.0", "13.0"), seen=True)


@pytest.fixture
def builder(monkeypatch):
    """Build in place of TensorRT; give the arguments of every build."""
    calls = []

    def build_engine(graph, path, **how):
        calls.append({"graph": graph.name, **how})
        content = f"engine {len(calls)} of {graph.name}".encode()
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        facts = {"inputs": (), "outputs": (), "layers": 3, "seconds": 1.0, "warnings": ()}
        return EngineInfo(
            how["flavour"],
            "1.7",
            bytes=len(content),
            sha256=digest,
            targets=how["targets"],
            peak_memory_mb=None,
            **facts,
        )

    def choose(engine, *, gpu):
        return FlavourChoice("tensorrt" if engine == "tensorrt" else "rtx", "because")

    monkeypatch.setattr(build_module, "build_engine", build_engine)
    monkeypatch.setattr(build_module, "choose_flavour", choose)
    return calls


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_engine_manifest_and_facts_change_together(directory, builder):
    before = names(directory)
    made = build(directory, targets=("sm86",))
    assert builder[0]["targets"] == ("sm86",)
    assert builder[0]["checked"]
    assert names(directory) == sorted([*before, "model.engine"])
    manifest = read_manifest(directory, needs=("model.engine",))
    assert manifest["engine"]["sha256"] == manifest["files"]["model.engine"]["sha256"]
    assert manifest["engine"] == json.loads(json.dumps(made.engine))
    assert manifest["engine"]["flavour"] == "tensorrt_rtx"
    assert manifest["engine"]["graph"] == "model.onnx"
    assert Card.read(directory).engine_module == "tensorrt_rtx"
    assert verify(directory).engine["status"] == "built, not executed"


def test_the_graph_for_the_engine_is_taken_where_there_is_one(directory, builder):
    shutil.copy(directory / "model.onnx", directory / "model.tensorrt.onnx")
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"]["model.tensorrt.onnx"] = manifest["files"]["model.onnx"]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert build(directory).graph == "model.tensorrt.onnx"
    (directory / "model.tensorrt.onnx").write_bytes(b"another")
    with pytest.raises(ManifestError, match=r"model\.tensorrt\.onnx was changed"):
        build(directory, force=True)
    (directory / "model.tensorrt.onnx").unlink()
    with pytest.raises(ManifestError, match=r"lacks model\.tensorrt\.onnx"):
        build(directory, force=True)


def test_a_whole_engine_is_replaced_only_with_force(directory, builder):
    build(directory)
    before = (directory / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match=r"is there already; replace it with --force"):
        build(directory)
    assert (directory / "manifest.json").read_bytes() == before
    build(directory, force=True, engine="tensorrt")
    assert read_manifest(directory)["engine"]["flavour"] == "tensorrt"


def test_an_end_between_the_two_files_is_noticed_and_healed(directory, builder, monkeypatch):
    build(directory)
    write = build_module.write_whole

    def stop(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "write_whole", stop)
    with pytest.raises(KeyboardInterrupt):
        build(directory, force=True)
    with pytest.raises(ManifestError, match=r"model\.engine was changed.* tsformer build"):
        verify(directory)
    monkeypatch.setattr(build_module, "write_whole", write)
    build(directory)  # without force: the engine is not whole
    read_manifest(directory, needs=("model.engine",))


def test_a_failed_build_leaves_everything_as_it_was(directory, monkeypatch):
    def fail(*_, **__):
        raise EngineError("no memory")

    monkeypatch.setattr(build_module, "choose_flavour", lambda *_, **__: FlavourChoice("rtx", ""))
    monkeypatch.setattr(build_module, "build_engine", fail)
    (directory / ".build.killed").mkdir()  # of a build that was killed
    before = (directory / "manifest.json").read_bytes()
    with pytest.raises(EngineError, match="no memory"):
        build(directory)
    assert (directory / "manifest.json").read_bytes() == before
    assert not any(name.startswith(".build") for name in names(directory))
    assert "model.engine" not in names(directory)


def test_two_builds_do_not_work_on_one_export(directory, builder):
    with Lock(directory) as lock:
        lock.exclusive()
        with pytest.raises(OutputError, match="another build works on"):
            build(directory)
    build(directory)


def test_a_machine_that_can_build_nothing_is_an_error(directory, monkeypatch):
    def none(*_, **__):
        return FlavourChoice(None, "rtx is not installed")

    monkeypatch.setattr(build_module, "choose_flavour", none)
    with pytest.raises(EngineError, match="no engine can be built here: rtx is not installed"):
        build(directory)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "none"}, "--engine none builds nothing"),
        ({"engine": "fastest"}, "engine"),
        ({"engine": "tensorrt", "targets": ("sm86",)}, "--target does not go with"),
        ({"targets": ("sm75",)}, "--target sm75 cannot be built"),
        ({"targets": ("sm12",)}, "engine target"),
    ],
)
def test_options_that_build_nothing_are_usage_errors(directory, builder, options, said):
    with pytest.raises(UsageError, match=said):
        build(directory, **options)
    assert builder == []


def test_without_a_gpu_the_command_says_that_nothing_was_executed(
    directory, builder, capsys, without_gpu
):
    assert cli.main(["build", str(directory)]) == 0
    out, err = capsys.readouterr()
    assert "built, not executed" in out
    assert NO_GPU in out
    assert "Built from model.onnx: the export has no model.tensorrt.onnx, which --for" in out
    assert err == ""
    assert cli.main(["build", str(directory), "--force", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["parity"] == []
    assert said["not_judged"].startswith(NO_GPU)


class TestOnAGpu:
    @pytest.fixture
    def judged(self, monkeypatch, directory):
        """`judged(verdict)`: execute the engine in place of a GPU, with that verdict."""
        from exporter.runners import cuda
        from exporter.target import verify as verify_module

        def set_verdict(verdict):
            def judge(directory, **_):
                row = Parity("tensorrt_rtx", "cuda:0 a GPU", "fp32", verdict, rel_l2=1e-7, inputs=8)
                report = verify(directory)
                return type(report)(**{**vars(report), "parity": (row,)})

            monkeypatch.setattr(cuda, "look_for_gpu", lambda: GPU)
            monkeypatch.setattr(verify_module, "verify", judge)

        return set_verdict

    def test_the_engine_is_judged_and_recorded(self, directory, builder, judged, capsys):
        judged("pass")
        assert cli.main(["build", str(directory)]) == 0
        assert "Proven in tensorrt_rtx" in capsys.readouterr().out
        card = Card.read(directory)
        assert card.doubt == ""
        assert len(read_machines(directory, read_manifest(directory)).judged("model.engine")) == 1
        build(directory, force=True)  # another engine: the record is not about it
        assert Card.read(directory).doubt == "the engine was never proven"

    def test_an_engine_that_fails_is_exit_5_and_is_warned_of(
        self, directory, builder, judged, capsys
    ):
        judged("fail")
        assert cli.main(["build", str(directory)]) == 5
        assert capsys.readouterr().err.startswith("tsformer: parity: fail")
        assert "the engine failed its proof on" in Card.read(directory).doubt

    @pytest.mark.skipif(os.name != "posix", reason="needs pipes")
    def test_a_pipe_beside_the_graph_is_refused_before_the_build(self, directory, builder):
        os.mkfifo(directory / "weights")
        with pytest.raises(ManifestError, match="weights is a pipe or a device, not a file"):
            build(directory)
        assert not builder

    @pytest.mark.skipif(os.name != "posix", reason="needs links")
    @pytest.mark.parametrize("place", ["w.bin", "far/w.bin"])
    def test_weights_behind_a_link_out_of_the_export_are_refused_before_the_build(
        self, directory, builder, mend, tmp_path, place, capsys
    ):
        link = directory / Path(place).parts[0]
        model = onnx.load(directory / "model.onnx")
        onnx.save(model, directory / "model.onnx", save_as_external_data=True, location="w.bin")
        for weight in model.graph.initializer:
            for entry in weight.external_data:
                entry.value = place if entry.key == "location" else entry.value
        (directory / "model.onnx").write_bytes(model.SerializeToString())
        mend(directory, "model.onnx")
        (tmp_path / "outside").mkdir()
        (directory / "w.bin").rename(tmp_path / "outside/w.bin")
        link.symlink_to(tmp_path / "outside" if link.name == "far" else tmp_path / "outside/w.bin")
        assert cli.main(["build", str(directory)]) == 5
        said = capsys.readouterr().err
        assert f"model.onnx has weights in {link}, a link that leaves the export" in said
        assert said.count("\n") == 1
        assert not builder

    @pytest.mark.skipif(os.name != "posix", reason="needs links")
    def test_an_export_of_links_is_built(self, directory, builder, tmp_path):
        """As in the cache of the Hugging Face hub."""
        directory.rename(tmp_path / "blobs")
        directory.mkdir()
        for path in (tmp_path / "blobs").iterdir():
            (directory / path.name).symlink_to(path)
        assert build(directory).graph == "model.onnx"

    def test_an_engine_that_cannot_be_executed_is_an_error(self, directory, builder, monkeypatch):
        from exporter.target import runtimes

        build(directory)
        monkeypatch.setattr(runtimes, "look_for_gpu", lambda: GPU)
        with pytest.raises(ParityError, match="build it for this GPU: tsformer build"):
            verify(directory)


@pytest.mark.slow
@pytest.mark.skipif(probe("rtx").version is None, reason="TensorRT-RTX is not installed")
def test_tensorrt_rtx_builds_without_torch_and_onnx(directory):
    arguments = ["build", str(directory), "--engine", "rtx", "--target", "sm86", "--json"]
    command = [sys.executable, "-c", WITHOUT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["engine"]["targets"] == ["sm86"]
    assert read_manifest(directory, needs=("model.engine",))["engine"]["version"]
    assert (directory / "model.engine").read_bytes()[:4] == b"vtrt"
