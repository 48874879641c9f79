"""Test exports in a real Triton server: logits, batches, errors and clients."""

from pathlib import Path

import numpy as np
import pytest

from exporter.inputs.video import normalise, read_clip
from exporter.predict import softmax
from exporter.runners.onnxruntime import OnnxRuntimeRunner
from model.preprocessing import Preprocessing
from model.sampling import Sampling

pytestmark = pytest.mark.slow

REQUESTS, CONCURRENCY = 200, 8
SIZE = {"frames": 5, "height": 64, "width": 64}
HOW = Preprocessing(  # of the demo model
    (0.35,) * 3, (0.2,) * 3, sampling=Sampling("dense", rate=1, fps=15.0)
)
ROOT = Path(__file__).parents[3]


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def of_the_file(directory, inputs):
    """Run the ONNX file directly, request by request, and return the logits."""
    count = len(next(iter(inputs.values())))
    with OnnxRuntimeRunner(directory / "model.onnx", threads=2) as runner:
        return np.stack(
            [runner.run({n: a[i] for n, a in inputs.items()})["logits"] for i in range(count)]
        )


def far(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_under_load_batches_form_and_logits_equal_those_of_the_file(
    server, exports, tmp_path, protocol
):
    inputs = {"video": noise(16, 1, 5, 3, 64, 64)}  # 16 requests of one clip, sent in a loop
    told, logits = server.load(
        protocol, "motion_onnx", inputs, tmp_path, requests=REQUESTS, concurrency=CONCURRENCY
    )
    assert told["errors"] == []
    assert told["inference_count"] == REQUESTS
    assert told["inference_count"] / told["execution_count"] > 1.5
    expected = of_the_file(exports["motion"], inputs)
    assert far(logits, expected[np.arange(REQUESTS) % 16]) < 1e-6
    assert (
        far(logits[:-1], expected[np.arange(1, REQUESTS) % 16]) > 1e-3
    )  # the logits of different clips differ


def test_a_request_may_contain_several_clips(server, exports, tmp_path):
    inputs = {"video": noise(1, 3, 5, 3, 64, 64)}
    _, logits = server.load("http", "motion_onnx", inputs, tmp_path)
    assert logits.shape == (1, 3, 8)
    assert far(logits, of_the_file(exports["motion"], inputs)) < 1e-6


def test_a_masked_model_of_a_fixed_batch_takes_both_inputs(server, exports, tmp_path):
    masks = np.array([[[1, 1, 1], [1, 0, 1]], [[0, 1, 1], [1, 1, 0]]], bool)
    inputs = {"video": noise(2, 2, 3, 3, 32, 48), "mask": masks}
    told, logits = server.load("grpc", "masked_onnx", inputs, tmp_path, requests=2)
    assert told["errors"] == []
    assert far(logits, of_the_file(exports["masked"], inputs)) < 1e-6
    unmasked = inputs | {"mask": np.ones_like(masks)}
    assert far(logits, of_the_file(exports["masked"], unmasked)) > 1e-3


def test_the_ensemble_takes_frames_as_pixels(server, exports, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 1, 5, 64, 64, 3), np.uint8)
    told, logits = server.load("http", "motion", {"frames": frames}, tmp_path, requests=4)
    assert told["errors"] == []
    video = normalise(np.moveaxis(frames, -1, -3) / np.float32(255), HOW)
    assert far(logits, of_the_file(exports["motion"], {"video": video})) < 1e-6


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(
    ("array", "words"),
    [
        (noise(1, 1, 4, 3, 64, 64), ("unexpected shape", "video", "[-1,5,3,64,64]")),
        (noise(1, 1, 5, 3, 64), ("unexpected shape", "video")),
        (noise(1, 9, 5, 3, 64, 64), ("batch-size must be <= 8",)),
        (noise(1, 1, 5, 3, 64, 64).astype(np.float64), ("FP64", "FP32")),
    ],
    ids=["frames", "rank", "batch", "dtype"],
)
def test_a_wrong_input_is_an_error_and_the_server_keeps_running(
    server, exports, tmp_path, protocol, array, words
):
    told, logits = server.load(protocol, "motion_onnx", {"video": array}, tmp_path)
    assert logits is None
    assert all(word in told["errors"][0] for word in words), told["errors"]
    right = {"video": noise(1, 1, 5, 3, 64, 64)}
    told, logits = server.load(protocol, "motion_onnx", right, tmp_path)
    assert told["errors"] == []
    assert far(logits, of_the_file(exports["motion"], right)) < 1e-6


def test_the_example_client_prints_the_best_classes(server, exports, real_clips):
    clip = real_clips["bikes"]
    told = server.ask(
        ROOT / "examples" / "client.py", "motion_onnx", clip, f"127.0.0.1:{server.http}"
    )
    rows = [line.split(maxsplit=1) for line in told.splitlines()]
    array = read_clip(clip, preprocessing=HOW, **SIZE).array
    logits = of_the_file(exports["motion"], {"video": array[np.newaxis]})[0, 0]
    labels = np.array(
        [f"{way} {speed}" for way in ("left", "right", "up", "down") for speed in ("slow", "fast")]
    )
    best = np.argsort(logits)[::-1][:5]
    assert [label for _, label in rows] == list(labels[best])
    scores = softmax(logits)[best]
    assert [float(score) for score, _ in rows] == pytest.approx(scores, abs=2e-6)


def test_exactly_the_models_of_the_repository_are_ready(server, repository):
    assert server.index() == {
        "motion_onnx": "READY",
        "motion_preprocess": "READY",
        "motion": "READY",
        "masked_onnx": "READY",
    }
    assert {path.name for path in repository.iterdir()} == set(server.index())
