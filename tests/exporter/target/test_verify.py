"""Test the proof that travels: an export is judged without torch, onnx or its checkpoint."""

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exporter import ExportSpec, cli
from exporter.errors import ManifestError, ParityError, RuntimeFailure, VideoError
from exporter.files.manifest import read_manifest
from exporter.files.reference import REFERENCE, Floor, read_reference, write_reference
from exporter.inputs import kept as kept_module
from exporter.pipeline import export
from exporter.results import overall_verdict
from exporter.runners.cuda import Gpu, GpuStatus
from exporter.runners.open import Opened, absent
from exporter.target import runtimes
from exporter.target import verify as verify_module
from exporter.target.verify import verify
from exporter.target.with_checkpoint import prove_again

WITHOUT = """
import sys
for name in ("torch", "onnx", "onnxscript", "einops", "safetensors"):
    sys.modules[name] = None
from exporter.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_it_runs_without_torch_and_onnx(directory):
    command = [sys.executable, "-c", WITHOUT, "verify", str(directory), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    row, structure = report["parity"]
    assert (row["runtime"], row["verdict"], row["inputs"]) == ("onnxruntime", "pass", 17)
    assert (structure["runtime"], structure["verdict"]) == ("structure", "not-run")
    assert structure["reason"].startswith("it needs onnx, which is not installed")
    assert report["spec"]["video"] == ["bikes.mp4"]
    assert report["graph"]["nodes"] > 50


def test_it_judges_as_the_export_did(exported):
    result = exported()
    here = verify(result.directory).parity
    assert here == result.report.parity
    assert [row.judged for row in here] == ["rounding", "structure"]
    again = prove_again(result.directory).parity  # without the clip
    assert [(row.verdict, row.inputs) for row in again] == [("pass", 16)] * 2


@pytest.mark.parametrize("name", ["report.html", "report.json", "report.md"])
def test_files_that_no_runtime_needs_may_be_missing(directory, name):
    (directory / name).unlink()
    assert [row.verdict for row in verify(directory).parity] == ["pass", "pass"]


def test_without_its_graph_nothing_is_proven(directory):
    (directory / "model.onnx").unlink()
    (row,) = verify(directory).parity
    assert (row.verdict, row.reason) == ("not-run", "model.onnx is not in the directory")


def test_an_export_without_a_reference_says_what_to_do(directory):
    (directory / REFERENCE).unlink()
    with pytest.raises(ManifestError, match=r"has no reference\.npz: .* verify --checkpoint"):
        verify(directory)


def test_a_changed_reference_is_refused(directory):
    kept = read_reference(directory / REFERENCE)
    write_reference(directory / REFERENCE, replace(kept, truth=kept.truth * 1.01))
    with pytest.raises(ManifestError, match="was changed since it was exported"):
        verify(directory)


def test_another_truth_with_its_hash_is_refused_by_its_floor(directory, change_reference):
    change_reference(directory, truth=read_reference(directory / REFERENCE).truth * 1.001)
    with pytest.raises(ManifestError, match="is not the reference of this export: its floor of"):
        verify(directory)


def test_another_truth_with_its_floors_fails_the_proof(directory, change_reference):
    kept, two = read_reference(directory / REFERENCE), np.float32(2)
    floors = {
        form: replace(floor, alone=floor.alone * two, batched=floor.batched * two)
        for form, floor in kept.floors.items()
    }
    change_reference(directory, truth=kept.truth * 2, floors=floors)  # relative errors are kept
    row, structure = verify(directory).parity
    assert (row.verdict, structure.verdict) == ("fail", "pass")
    assert row.rel_l2 == pytest.approx(0.5, rel=1e-3)


def test_a_wider_floor_that_would_allow_more_is_refused(directory, change_reference):
    kept = read_reference(directory / REFERENCE)
    scaled = kept.truth.astype(np.float32) * np.float32(1.0009)
    wide = replace(kept.floors["fp32"], alone=scaled)
    change_reference(directory, floors={"fp32": wide})
    with pytest.raises(ManifestError, match=r"its floor of fp32: got 0\.0009"):
        verify(directory)


@pytest.mark.parametrize(
    ("entry", "change"),
    [
        ("labels", lambda entries: entries.update(labels=["one", "other"])),
        ("task", lambda entries: entries.update(task="multi-label")),
        ("preprocessing", lambda entries: entries["preprocessing"].update(channel_order="bgr")),
        ("preprocessing", lambda entries: entries["preprocessing"].update(mean=[0.01, 0.0, 0.0])),
        ("preprocessing", lambda entries: entries["preprocessing"].pop("std")),
    ],
)
def test_a_manifest_that_reads_clips_or_names_classes_otherwise_is_refused(
    directory, entry, change
):
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    for judge in (verify, prove_again):
        with pytest.raises(ManifestError, match=entry):
            judge(directory)


def test_an_export_whose_reference_does_not_describe_the_model_still_verifies(
    directory, change_reference
):
    change_reference(directory, described={})
    assert {row.verdict for row in verify(directory).parity} == {"pass"}


def test_a_damaged_description_is_refused(directory, change_reference):
    change_reference(directory, described={"labels": None})
    with pytest.raises(ManifestError, match=r"the description of the model in .* is damaged"):
        verify(directory)


def test_other_pixels_of_a_stored_clip_are_refused(directory, change_reference):
    kept = read_reference(directory / REFERENCE)
    change_reference(directory, clips={0: kept.clips[0] + np.float32(1e-3)})
    with pytest.raises(ManifestError, match=r"the input 'bikes\.mp4' has other values here"):
        verify(directory)


def test_other_synthetic_inputs_are_refused(directory, monkeypatch):
    made = kept_module.proof_clips

    def other(*arguments):
        return [(name, note, clip + 1) for name, note, clip in made(*arguments)]

    monkeypatch.setattr(kept_module, "proof_clips", other)
    with pytest.raises(ManifestError, match=r"the input 'normal-0' has other values here.* export"):
        verify(directory)


def test_a_changed_graph_with_its_hash_fails_the_proof(directory, mend):
    graph = onnx.load(directory / "model.onnx")
    (weight,) = (w for w in graph.graph.initializer if w.name == "to_out.fn.bias")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 0.01, weight.name))
    onnx.save(graph, directory / "model.onnx")
    mend(directory, "model.onnx")
    row, structure = verify(directory).parity
    assert (row.verdict, structure.verdict) == ("fail", "fail")
    assert (
        structure.reason
        == "model.onnx has other weights, types or nodes than at export: to_out.fn.bias"
    )


def test_a_graph_with_another_output_is_refused(directory, mend):
    graph = onnx.load(directory / "model.onnx")
    (output,) = graph.graph.output
    for node in graph.graph.node:
        node.output[:] = ["scores" if name == output.name else name for name in node.output]
    output.name = "scores"
    onnx.save(graph, directory / "model.onnx")
    mend(directory, "model.onnx")
    with pytest.raises(ParityError, match=r"onnxruntime gives no 'logits': got \['scores'\]"):
        verify(directory)


def test_an_export_of_clips_alone_needs_one_of_them(directory, change_reference):
    entries = read_reference(directory / REFERENCE).inputs
    unknown = tuple(replace(entry, clip_sha256="0", stored=False) for entry in entries)
    change_reference(directory, inputs=unknown, clips={})
    with pytest.raises(VideoError, match="none of the 17 inputs is at hand; give the clips"):
        verify(directory)


def test_changed_weights_fail_even_where_rounding_decides_the_logits(directory, monkeypatch, mend):
    graph = onnx.load(directory / "model.onnx")
    (weight,) = (w for w in graph.graph.initializer if w.name == "to_out.fn.bias")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 0.01, weight.name))
    onnx.save(graph, directory / "model.onnx")
    mend(directory, "model.onnx")
    monkeypatch.setattr("exporter.proof.structure.ILL_CONDITIONED", 0.0)
    _, structure = verify(directory).parity
    assert structure.verdict == "fail"


def test_a_reference_without_the_structure_proves_nothing(directory, change_reference):
    change_reference(directory, structures={})
    said = r"has no truth of the structure of model\.onnx; export it again, or .* --checkpoint"
    with pytest.raises(ManifestError, match=said):
        verify(directory)
    assert cli.main(["verify", str(directory)]) == 5
    verdicts = [row.verdict for row in prove_again(directory).parity]  # makes it again
    assert verdicts == ["pass", "pass"]


@pytest.mark.parametrize("content", [b"", b"not a graph at all"])
def test_a_graph_that_does_not_load_is_not_proven(directory, mend, monkeypatch, capsys, content):
    (directory / "model.onnx").write_bytes(content)
    mend(directory, "model.onnx")
    for prove in (verify, prove_again):
        with pytest.raises(ParityError, match="not proven here: ONNX Runtime does not load model"):
            prove(directory)
    assert cli.main(["verify", str(directory)]) == 5
    assert capsys.readouterr().err.startswith("tsformer: parity: not proven here: ONNX Runtime")
    monkeypatch.setattr(verify_module, "open_runtimes", lambda *_, **__: Opened())
    with pytest.raises(ParityError, match=r"not proven here: .*"):  # in a precision that none runs
        verify(directory)


def test_a_package_that_is_missing_is_no_verdict(directory, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert cli.main(["verify", str(directory)]) == 4
    assert capsys.readouterr().err.startswith("tsformer: runtime: ONNX Runtime cannot be imported")


def test_a_clip_of_another_export_has_no_truth(directory, real_clips):
    with pytest.raises(VideoError, match=r"carphone.* is not a clip of this export.*--checkpoint"):
        verify(directory, video=(real_clips["carphone"],))
    with pytest.raises(VideoError, match="no such file"):
        verify(directory, video=(directory / "none.mp4",))
    assert verify(directory, video=(real_clips["bikes"],)).parity[0].inputs == 17


def test_an_engine_that_is_not_there_is_a_row(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["engine"] |= {"flavour": "tensorrt_rtx", "status": "built, not executed"}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    report = verify(directory)
    assert [(row.runtime, row.verdict) for row in report.parity] == [
        ("onnxruntime", "pass"),
        ("tensorrt_rtx", "not-run"),
        ("structure", "pass"),
    ]
    assert report.parity[1].reason == "model.engine is not in the directory"
    assert report.engine["status"] == "built, not executed"


@pytest.mark.parametrize(
    ("precision", "usable", "refused"),
    [
        ("fp32", True, True),
        ("fp16", True, True),
        ("int8", False, True),
        ("bf16", False, True),
        ("bf16", True, False),  # ONNX Runtime may have no kernels of bf16
    ],
)
def test_a_gpu_that_onnx_runtime_cannot_use_is_refused(monkeypatch, precision, usable, refused):
    gpu = Gpu("A GPU", 1, "8.6", 24.0, None, "13.0", "13.0") if usable else None
    monkeypatch.setattr(runtimes, "look_for_gpu", lambda: GpuStatus(gpu, seen=True))
    opened = absent("onnxruntime", "cuda", precision, "no cuDNN")
    card = SimpleNamespace(precision=precision, engine_module=None)
    monkeypatch.setattr(runtimes, "_open_graphs", lambda *_all, **_more: opened)
    monkeypatch.setattr(runtimes, "_open_openvino", lambda *_all, **_more: Opened())
    monkeypatch.setattr(runtimes.Card, "of", lambda *_all: card)
    with ExitStack() as resources:
        if not refused:
            assert runtimes.open_runtimes(Path(), {}, resources, for_proof=True) == opened
            return
        with pytest.raises(RuntimeFailure, match="no cuDNN"):
            runtimes.open_runtimes(Path(), {}, resources, for_proof=True)
        assert runtimes.open_runtimes(Path(), {}, resources, for_proof=False) == opened


def test_an_engine_is_judged_where_onnx_runtime_is_missing(directory, monkeypatch):
    def missing():
        raise RuntimeFailure("no ONNX Runtime here") from ImportError()

    monkeypatch.setattr(runtimes, "available_devices", missing)
    with pytest.raises(RuntimeFailure, match="no ONNX Runtime here"):
        verify(directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["engine"] |= {"flavour": "tensorrt_rtx", "status": "built, not executed"}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    rows = verify(directory).parity
    assert [row.reason for row in rows] == [
        "no ONNX Runtime here",
        "model.engine is not in the directory",
        "",  # the structure needs no ONNX Runtime
    ]
    assert overall_verdict(rows) == "not-run"


@pytest.fixture(scope="module")
def made(tiny, real_clips, tmp_path_factory):
    """Make an int8 export whose reference knows its clip by a hash only."""
    spec = ExportSpec(**tiny, precision="int8", video=(real_clips["bikes"],), no_store_clips=True)
    return export(spec, tmp_path_factory.mktemp("hashes") / "made").directory


@pytest.mark.slow
class TestWithoutClips:
    def test_the_clip_is_judged_when_it_is_given_again(self, made, real_clips, tmp_path):
        copy = shutil.copy(real_clips["bikes"], tmp_path / "renamed.mp4")
        report = verify(made, video=(copy,))
        assert report.parity[0].inputs == 17
        assert report.spec["clips_not_given"] == []

    def test_without_it_the_report_says_so(self, made):
        report = verify(made)
        assert report.parity[0].inputs == 16
        assert report.parity[0].verdict == "pass"
        assert report.spec["clips_not_given"] == ["bikes.mp4"]

    def test_the_reference_holds_no_pixels(self, made):
        assert read_reference(made / REFERENCE).clips == {}
        assert (made / REFERENCE).stat().st_size < 10_000

    def test_pixels_that_decode_differently_are_refused(self, made, real_clips, monkeypatch):
        read = kept_module.read_for

        def other(*arguments):
            clip = read(*arguments)
            return replace(clip, array=clip.array + np.float32(1e-6))

        monkeypatch.setattr(kept_module, "read_for", other)
        with pytest.raises(VideoError, match=r"bikes\.mp4 has other pixels here"):
            verify(made, video=(real_clips["bikes"],))

    def test_a_form_without_a_floor_is_not_run(self, made, tmp_path, change_reference):
        copy = shutil.copytree(made, tmp_path / "copy")
        kept = read_reference(copy / REFERENCE)
        assert set(kept.floors) == {"fp32", "int8-onnxruntime"}  # no engine was asked for
        change_reference(copy, floors={"fp32": kept.floors["fp32"]})
        row, structure = verify(copy).parity
        assert (row.verdict, structure.verdict) == ("not-run", "pass")
        assert "no floor for int8-onnxruntime" in row.reason
        assert read_manifest(copy)["floors"].keys() == kept.floors.keys()


def test_sizes_of_the_contract(tmp_path, real_clips):
    """One clip of 5 x 224 x 224 and 16 synthetic inputs: under 4 MB, and under 100 kB unstored."""
    from exporter.files.reference import KeptReference
    from exporter.inputs.clips import gather_inputs
    from exporter.inputs.kept import describe_inputs
    from model.config import ClipConfig
    from model.preprocessing import Preprocessing

    config = ClipConfig(5, 3, 224, 224, 400)
    videos = (real_clips["bigbuckbunny"],)
    inputs = gather_inputs(videos, config, Preprocessing((0.45,) * 3, (0.225,) * 3))
    noise = np.random.default_rng(0).standard_normal((17, 400))
    floor = Floor(*noise[None].repeat(2, 0).astype("f"), tuple(range(17)))
    floors = dict.fromkeys(("fp32", "fp16"), floor)
    for store, limit in ((True, 4_000_000), (False, 100_000)):
        entries, clips = describe_inputs(inputs, videos, store=store)
        write_reference(tmp_path / REFERENCE, KeptReference(entries, noise, floors, None, clips))
        assert (tmp_path / REFERENCE).stat().st_size < limit
