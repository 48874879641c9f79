"""Every scheme with every mechanism, and every family, through the whole command."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import TimesformerConfig, TimesformerForVideoClassification

from exporter.cli import main
from model import (
    FastTimeSformer,
    SpaceTimeTransformer,
    TimeSformer,
    TimeSformerViT,
    save_checkpoint,
)
from model.checkpoint import FAMILIES
from model.config import FAMILY_NAMES, MECHANISM_NAMES, SCHEME_NAMES, SpaceTimeConfig

QUICK = ["--bench-seconds", "0", "--quiet"]
pytestmark = pytest.mark.usefixtures("undrawn")


def report_of(directory):
    return json.loads((directory / "report.json").read_text(encoding="utf-8"))


def test_every_family_name_has_a_reader():
    assert set(FAMILY_NAMES) == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISM_NAMES)
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_every_scheme_with_every_mechanism_is_proven_and_built(tmp_path, scheme, mechanism):
    out = tmp_path / "x"
    command = ["export", "--scheme", scheme, "--attn", mechanism, "--res", "64", "--depth", "1"]
    sizes = ["--dim", "32", "--dim-head", "16"]

    assert main([*command, *sizes, *QUICK, "-o", str(out)]) == 0

    report = report_of(out)
    assert report["parity"][0]["verdict"] == "pass"
    assert (out / "model.engine").read_bytes()[:4] == b"vtrt"
    assert not {"Einsum", "If", "Loop"} & set(report["graph"]["ops"])
    assert (report["spec"]["scheme"], report["spec"]["attn"]) == (scheme, mechanism)


def make(family):
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "dim": 32, "depth": 1, "patch_size": 8}
    match family:
        case "fast_timesformer":
            return FastTimeSformer(3, 3, 16, 24, dim_head=16, **sizes)
        case "timesformer_pytorch":
            return TimeSformer(num_frames=3, image_size=(16, 24), heads=2, dim_head=16, **sizes)
        case "frozen_in_time":
            return SpaceTimeTransformer(SpaceTimeConfig(3, 3, 16, 24, heads=2, **sizes))
        case _:
            return TimeSformerViT(3, 16, 24, heads=2, **sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["fast_timesformer", "timesformer_pytorch", "facebookresearch", "frozen_in_time"]
)
def test_our_own_checkpoint_of_every_family_is_exported_and_verified(tmp_path, family):
    model, path, out = make(family), tmp_path / "own.safetensors", tmp_path / "x"
    save_checkpoint(model, path)

    assert main(["export", "--checkpoint", str(path), *QUICK, "-o", str(out)]) == 0
    assert report_of(out)["parity"][0]["verdict"] == "pass"
    assert main(["verify", str(out), "--json"]) == 0


@pytest.mark.slow
def test_a_published_state_dict_is_detected_exported_and_verified(tmp_path):
    model, path, out = make("timesformer_pytorch"), tmp_path / "p.safetensors", tmp_path / "x"
    save_file(model.state_dict(), path)  # without our metadata, as the published package does
    command = ["export", "--checkpoint", str(path), "--frames", "3", "--res", "16x24", "--mask"]

    assert main([*command, *QUICK, "--engine", "none", "-o", str(out)]) == 0

    report = report_of(out)
    assert [entry["name"] for entry in report["graph"]["inputs"]] == ["video", "mask"]
    assert report["graph"]["inputs"][1]["dtype"] == "bool"
    assert main(["verify", str(out), "--json"]) == 0


REFERENCE = Path(__file__).parents[2] / "data" / "reference"


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    sorted(REFERENCE.glob("facebookresearch/*/case.json")),
    ids=lambda path: path.parent.name,
)
def test_a_checkpoint_of_facebookresearch_is_proven_and_built(tmp_path, case):
    config = json.dumps(json.loads(case.read_text())["config"])
    command = ["export", "--checkpoint", str(case.with_name("checkpoint.pth")), "--config", config]

    assert main([*command, *QUICK, "-o", str(tmp_path / "x")]) == 0

    assert report_of(tmp_path / "x")["parity"][0]["verdict"] == "pass"
    assert (tmp_path / "x" / "model.engine").read_bytes()[:4] == b"vtrt"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "output"),
    [("head", "logits"), ("dual_fewer_frames", "features"), ("lavila_classifier", "logits")],
)
def test_a_checkpoint_of_frozen_in_time_or_lavila_is_proven_and_built(tmp_path, kind, output):
    case = REFERENCE / "frozen_in_time" / kind / "case.json"
    config = json.dumps(json.loads(case.read_text())["config"])
    command = ["export", "--checkpoint", str(case.with_name("checkpoint.pth")), "--config", config]

    assert main([*command, *QUICK, "-o", str(tmp_path / "x")]) == 0

    report = report_of(tmp_path / "x")
    rows = {row["runtime"]: row for row in report["parity"]}
    assert rows["onnxruntime"]["verdict"] == rows["structure"]["verdict"] == "pass"
    assert [entry["name"] for entry in report["graph"]["outputs"]] == [output]
    assert {one["name"] for one in report["graph"]["rewrites"]} == {"fold_norm", "bias_apart"}
    assert (tmp_path / "x" / "model.engine").read_bytes()[:4] == b"vtrt"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["divided_space_time", "joint_space_time", "space_only"])
def test_a_directory_of_hugging_face_is_proven_and_built(tmp_path, kind):
    sizes = {"image_size": 32, "patch_size": 16, "num_frames": 2, "num_hidden_layers": 1}
    width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    torch.manual_seed(0)
    theirs = TimesformerForVideoClassification(
        TimesformerConfig(**sizes, **width, num_labels=3, attention_type=kind)
    )
    theirs.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 32}})
    )

    command = ["export", "--checkpoint", str(tmp_path / "hf")]
    assert main([*command, *QUICK, "-o", str(tmp_path / "x")]) == 0

    report = report_of(tmp_path / "x")
    assert report["parity"][0]["verdict"] == "pass"
    assert (tmp_path / "x" / "model.engine").read_bytes()[:4] == b"vtrt"
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    assert manifest["preprocessing"]["mean"] == [0.5] * 3
    assert manifest["labels"] == [theirs.config.id2label[i] for i in range(3)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mask"], "frame mask"),
        (["--model", "timesformer_pytorch", "--attn", "performer"], "regular"),
        (["--model", "timesformer_pytorch", "--scheme", "axial"], "divided"),
        (["--model", "frozen_in_time", "--scheme", "joint"], "divided"),
        (["--model", "frozen_in_time", "--attn", "performer"], "regular"),
        (["--model", "TimeSformer-XL"], "did you mean"),
        (["--model", "facebookresearch", "--dim-head", "32"], "dim_head"),
        (["--semantics", "upstream", "--scheme", "axial"], "upstream"),
    ],
)
def test_an_option_that_a_family_does_not_have_is_refused(
    tmp_path, monkeypatch, capsys, options, words
):
    monkeypatch.chdir(tmp_path)

    assert main(["export", "--res", "32", "--depth", "1", *options]) == 2

    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["TimeSformer", "TimeSformer-HR", "TimeSformer-L"])
def test_presets_have_the_sizes_of_the_paper(name):
    from exporter.load import load_model
    from exporter.spec import ExportSpec

    model = load_model(ExportSpec(model=name, depth=1, dim=24, heads=2))
    expected = {"TimeSformer": (8, 224), "TimeSformer-HR": (16, 448), "TimeSformer-L": (96, 224)}

    assert (model.config.frames, model.config.height) == expected[name]
    assert model.config.num_classes == 400
    assert {field.name for field in fields(model.config)} >= {"scheme", "attn"}
