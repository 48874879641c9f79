"""Test the model card: what it says comes from the manifest and the report, and its Python runs."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from exporter import ExportSpec, export_module
from exporter.cli import main
from exporter.errors import ManifestError
from exporter.files.manifest import read_manifest
from exporter.report import sci
from exporter.results import Parity
from exporter.target.model_card import MARK, MODEL_CARD, write_model_card
from exporter.target.record import keep

HOSTILE = ("<img src=x onerror=alert(1)>", "a | b", "`code` [link](http://x) *bold*", "two\nlines")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def directory(exported, tmp_path):
    """Make a copy of an export that a test may change."""
    return shutil.copytree(exported().directory, tmp_path / "made")


def change(directory, **entries):
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, value in entries.items():
        manifest[name] = {**manifest[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(manifest))


def card_of(directory, repository=None):
    assert write_model_card(directory, repository)
    return (directory / MODEL_CARD).read_text(encoding="utf-8")


def run_python(card):
    """Run the Python of a card; return what it prints."""
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    printed = []
    exec(code, {"print": printed.append})
    return printed, code


class TestWhatItSays:
    def test_an_export_has_a_card_with_each_verdict_error_and_tolerance(self, exported):
        result = exported()
        card = (result.directory / MODEL_CARD).read_text(encoding="utf-8")
        judged = [row for row in result.report.parity if row.runtime != "eager"]
        assert {row.runtime for row in judged} >= {"onnxruntime", "structure"}
        for row in judged:
            line = next(line for line in card.splitlines() if line.startswith(f"| {row.runtime} "))
            assert f"| ✓ Pass | {sci(row.rel_l2)} | {sci(row.tolerance)} | {row.inputs} |" in line
        assert "# fast_timesformer: 3 frames of 32 x 48, fp32" in card
        assert "**Pass**: Proven in onnxruntime" in card
        assert "| `video` | input | float32 | 1 x 3 x 3 x 32 x 48 |" in card
        assert "| `logits` | output | float32 | 1 x 2 |" in card
        assert "softmax of the logits" in card
        manifest = read_manifest(result.directory)
        for sentence in manifest["preprocessing"]["described"]:
            assert sentence.split("(")[0].strip() in card
        assert "mean \\[0.0, 0.0, 0.0\\], std \\[1.0, 1.0, 1.0\\]" in card

    def test_its_front_matter_tells_the_hub_the_task_and_the_base_model(self, directory):
        yaml = pytest.importorskip("yaml")
        change(directory, spec={"checkpoint": f"me/x@{COMMIT}", "checkpoint_commit": COMMIT})
        front = yaml.safe_load(card_of(directory).split("---\n")[1])
        assert front == {
            "base_model": "me/x",
            "pipeline_tag": "video-classification",
            "tags": ["onnx", "tsformer"],
        }
        change(directory, task="regression")
        assert "pipeline_tag" not in yaml.safe_load(card_of(directory).split("---\n")[1])

    def test_names_of_classes_are_inert(self, directory):
        labels = HOSTILE[:2]
        change(directory, labels=labels)
        card = card_of(directory)
        assert "| 0 | &lt;img src=x onerror=alert(1)&gt; |" in card
        assert "| 1 | a \\| b |" in card
        assert "<img" not in card
        change(directory, labels=HOSTILE[2:])
        card = card_of(directory)
        assert "| 0 | \\`code\\` \\[link\\](http://x) \\*bold\\* |" in card
        assert "| 1 | two lines |" in card

    def test_many_classes_are_cut_and_the_manifest_is_named(self, directory):
        names = [f"class {i}" for i in range(60)]
        change(directory, labels=names, model={"config": {**config(directory), "num_classes": 60}})
        card = card_of(directory)
        assert "| 49 | class 49 |" in card
        assert "class 50" not in card
        assert "The names of all 60 classes are in `manifest.json`" in card

    def test_what_a_machine_recorded_is_a_row(self, directory):
        report = json.loads((directory / "report.json").read_text())
        row = next(row for row in report["parity"] if row["runtime"] == "onnxruntime")
        changed = {"per_input": (), "verdict": "fail", "rel_l2": 0.5, "device": "arm"}
        found = Parity(**{**row, **changed})
        keep(directory, "orin", {"cpu": "x"}, [found])
        assert "| onnxruntime (arm, fp32) | ✗ Fail | 0.50 |" in card_of(directory)

    def test_rows_of_an_engine_that_was_replaced_are_left_out(self, directory):
        path = directory / "report.json"
        report = json.loads(path.read_text())
        row = {**report["parity"][0], "runtime": "tensorrt", "device": "cuda:0"}
        path.write_text(json.dumps({**report, "parity": [*report["parity"], row]}))
        assert "| tensorrt (cuda:0" in card_of(directory)
        change(directory, engine={"sha256": "b" * 64})
        assert "| tensorrt (cuda:0" not in card_of(directory)


def config(directory):
    return read_manifest(directory, unchanged=False)["model"]["config"]


class TestItsPython:
    def test_it_classifies_a_clip(self, directory, real_clips, monkeypatch):
        card = card_of(directory).replace('"DIRECTORY"', json.dumps(str(directory)))
        (printed,), code = run_python(card.replace("clip.mp4", str(real_clips["bikes"])))
        assert len(printed.classes) == 2
        assert len(code.splitlines()) == 3

    def test_on_the_hub_it_downloads_its_repository(self, directory, real_clips, monkeypatch):
        import huggingface_hub

        asked = []
        fetch = lambda name: asked.append(name) or str(directory)  # noqa: E731
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
        card = card_of(directory, "me/x").replace("clip.mp4", str(real_clips["bikes"]))
        assert len(run_python(card)[0][0].classes) == 2
        assert asked == ["me/x"]
        assert "pip install 'tsformer[runtime,hub]'" in card

    @pytest.mark.slow
    def test_it_runs_a_module_of_the_user(self, tmp_path):
        spec = ExportSpec(engine="none", bench_seconds=0.0, runtimes=("onnxruntime",))
        given = {"x": np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)}
        torch.manual_seed(0)
        made = export_module(nn.Linear(3, 2), given, tmp_path / "x", spec).directory
        card = (made / MODEL_CARD).read_text(encoding="utf-8")
        (printed,), _ = run_python(card.replace('"DIRECTORY"', json.dumps(str(made))))
        assert printed[0].shape == (1, 2)
        assert "pipeline_tag" not in card


class TestPush:
    @pytest.fixture
    def uploaded(self, monkeypatch):
        """Take the card at the time of an upload in place of the upload."""
        found = []

        def upload(directory, *_arguments, **_options):
            found.append((directory / MODEL_CARD).read_text(encoding="utf-8"))
            return "https://hub/me/x/commit/0"

        monkeypatch.setattr("exporter.files.hub.push", upload)
        return found

    def test_an_older_export_without_a_card_gets_one(self, directory, uploaded):
        (directory / MODEL_CARD).unlink()
        assert main(["push", str(directory), "me/x"]) == 0
        assert main(["push", str(directory), "me/x", "--revision", "v2"]) == 0
        assert 'snapshot_download("me/x")' in uploaded[0]
        assert 'snapshot_download("me/x", revision="v2")' in uploaded[1]

    @pytest.mark.skipif(os.name != "posix", reason="needs links")
    def test_a_file_that_is_a_link_is_not_changed(self, directory, tmp_path):
        """As in the cache of the hub, where other commits have links to the same file."""
        blob, card = tmp_path / "blob", directory / MODEL_CARD
        card.rename(blob)
        card.symlink_to(blob)
        before = blob.read_text(encoding="utf-8")
        assert write_model_card(directory, "me/x")
        assert blob.read_text(encoding="utf-8") == before
        assert 'snapshot_download("me/x")' in card.read_text(encoding="utf-8")

    def test_a_text_of_the_user_stays(self, directory, uploaded, capsys):
        path = directory / MODEL_CARD
        own = path.read_text(encoding="utf-8").replace(MARK, "My own words.")
        path.write_text(own, encoding="utf-8")
        assert main(["push", str(directory), "me/x"]) == 0
        assert uploaded == [own]
        assert "is your own text" in capsys.readouterr().err

    def test_a_card_that_people_changed_does_not_break_the_export(self, directory):
        with (directory / MODEL_CARD).open("a") as file:
            file.write("license: mit")
        assert main(["verify", str(directory)]) == 0

    @pytest.mark.parametrize(
        "text", ['{"parity": [{}]}', pytest.param("[" * 100_000, id="nested deeply")]
    )
    def test_a_report_that_cannot_be_understood_is_an_error(self, directory, text):
        (directory / "report.json").write_text(text)
        with pytest.raises(ManifestError, match="cannot be understood"):
            write_model_card(directory)
