"""Test the example client without a server: its answer over several views is that of `predict`.

A stand-in of `tritonclient` runs the graph of the written repository in this process, and ranks
its logits as Triton's classification extension does. `test_server.py` asks a real server.
"""

import json
import runpy
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from exporter.predict import Predictor
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from exporter.triton.deploy import deploy
from exporter.triton.plan import Serving

CLIENT = Path(__file__).parents[3] / "examples" / "client.py"
ROUNDED = 1e-6  # Triton writes logits with six decimals


@pytest.fixture(scope="module")
def noise(tmp_path_factory, write_clip):
    """Write a lossless clip of noise, dark on its left: each crop and each time looks different."""
    draw = np.random.default_rng(0).integers(0, 256, (12, 6, 24, 3))
    blocks = draw * np.linspace(0, 1, 24)[:, None] ** 2
    images = np.kron(blocks, np.ones((1, 8, 8, 1))).astype(np.uint8)
    return write_clip(tmp_path_factory.mktemp("clips") / "noise.mkv", images)


@pytest.fixture
def directory(exported, tmp_path):
    """Make a copy of an export that a test may change."""
    return shutil.copytree(exported("regular").directory, tmp_path / "made")


def describe(directory, views, **entries):
    """Change what the manifest says of views, task and labels."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text()) | entries
    clips, crops, average = views
    manifest["preprocessing"]["views"] = {"clips": clips, "crops": crops, "average": average}
    manifest["preprocessing"]["sampling"] = {"kind": "dense", "rate": 1}
    path.write_text(json.dumps(manifest))


class Server:
    """One model of a repository, asked by the names that the HTTP client has."""

    def __init__(self, model, place, runner):
        self.model, self.runner, self.asked = model, runner, 0
        labels = place / "labels.txt"
        self.labels = labels.read_text().splitlines() if labels.exists() else []

    def get_model_config(self, name):
        assert name == self.model.name
        tensors = {
            kind: [{"name": each.name, "dims": list(map(str, each.dims))} for each in found]
            for kind, found in (("input", self.model.inputs), ("output", self.model.outputs))
        }
        return {**tensors, "parameters": {"tsformer": {"string_value": self.model.facts}}}

    def infer(self, name, inputs, outputs):
        assert name == self.model.name
        self.asked += 1
        made = self.runner.run({each.name: each.array for each in inputs})
        (wanted,) = outputs
        return types.SimpleNamespace(as_numpy=lambda which: self._ranked(made[which], wanted))

    def _ranked(self, logits, wanted):
        rows = [np.argsort(-row, kind="stable")[: wanted.class_count] for row in logits]
        texts = [
            [":".join([f"{row[i]:.6f}", str(i), *self.labels[i : i + 1]]).encode() for i in places]
            for row, places in zip(logits, rows, strict=True)
        ]
        return np.array(texts, object)


class Tensor:
    def __init__(self, name, shape, kind):
        self.name, self.shape = name, shape
        assert kind == "FP32"

    def set_data_from_numpy(self, array):
        assert (array.shape, array.dtype) == (tuple(self.shape), np.float32)
        self.array = array


@pytest.fixture
def ask(directory, tmp_path, monkeypatch, capsys):
    """Run the client against the repository of the export; return its rows and its requests."""

    def run(clip):
        repository = tmp_path / "models"
        model = deploy(directory, repository, Serving("made"), force=True).models[0]
        place = repository / model.name
        http = types.ModuleType("tritonclient.http")
        http.InferenceServerClient = lambda url: server
        http.InferInput = Tensor
        http.InferRequestedOutput = lambda name, class_count: types.SimpleNamespace(
            name=name, class_count=class_count
        )
        package = types.ModuleType("tritonclient")
        package.http = http
        monkeypatch.setitem(sys.modules, "tritonclient", package)
        monkeypatch.setitem(sys.modules, "tritonclient.http", http)
        monkeypatch.setattr(sys, "argv", ["client.py", model.name, str(clip)])
        with OnnxRuntimeRunner(place / "1" / "model.onnx", threads=1) as runner:
            server = Server(model, place, runner)
            runpy.run_path(str(CLIENT))
        rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
        return [(label, float(score)) for score, label in rows], server.asked

    return run


def by_predict(directory, clip):
    with Predictor(directory, threads=1) as predictor:
        (found,) = predictor.predict([clip])
    return [(entry.label, entry.score) for entry in found.classes]


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("views", [(1, 1), (1, 3), (2, 3)], ids=str)
def test_several_views_give_the_answer_of_predict(directory, noise, ask, views, average):
    describe(directory, (*views, average), labels=["a: b", "<c> d"])
    found, requests = ask(noise)
    expected = by_predict(directory, noise)
    assert requests == views[0] * views[1]
    assert [label for label, _ in found] == [label for label, _ in expected]
    scores = [score for _, score in found]
    assert scores == pytest.approx([score for _, score in expected], abs=ROUNDED)
    assert sum(scores) == pytest.approx(1, abs=ROUNDED)


def test_the_views_and_their_average_decide_the_answer(directory, noise, ask):
    scores = []
    for views in ((1, 1, "logits"), (2, 3, "logits"), (2, 3, "probabilities")):
        describe(directory, views)
        scores.append(dict(ask(noise)[0])["0"])
    assert min(abs(a - b) for a, b in zip(scores, [*scores[1:], scores[0]], strict=True)) > (
        10 * ROUNDED
    )


@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_independent_labels_and_values_are_those_of_predict(directory, noise, ask, task):
    describe(directory, (2, 3, "logits"), task=task)
    found, expected = ask(noise)[0], by_predict(directory, noise)
    assert [label for label, _ in found] == [label for label, _ in expected]
    assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=ROUNDED)


def test_classes_of_one_name_stay_apart(directory, noise, ask):
    describe(directory, (1, 3, "logits"), labels=["same", "same"])
    found, expected = ask(noise)[0], by_predict(directory, noise)
    assert [label for label, _ in found] == ["same", "same"]
    assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=ROUNDED)
