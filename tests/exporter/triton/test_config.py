"""Test that every config.pbtxt parses with the server's schema and contains the plan."""

import json

import pytest

from exporter.files.manifest import read_manifest
from exporter.triton.plan import Serving, plan
from model.preprocessing import Preprocessing

ROW = {"verdict": "pass", "reason": ""}
ON_GPU = [
    {"runtime": "onnxruntime", "device": "cpu", **ROW},
    {"runtime": "onnxruntime", "device": "cuda", **ROW},
    {"runtime": "tensorrt", "device": "cuda", **ROW},
]


@pytest.fixture(scope="module")
def parse(triton_venv, parsed_by, tmp_path_factory):
    """Parse the configurations of a deployment; return them by the model's name."""

    def parsed(deployment):
        folder = tmp_path_factory.mktemp("configs")
        paths = [folder / model.name for model in deployment.models]
        for path, model in zip(paths, deployment.models, strict=True):
            path.write_text(model.config)
        return {config["name"]: config for config in parsed_by(triton_venv, paths)}

    return parsed


def facts(directory):
    report = json.loads((directory / "report.json").read_text())
    return read_manifest(directory), report


@pytest.mark.slow
def test_configs_of_an_ensemble_with_a_dynamic_batch(exports, parse):
    manifest, report = facts(exports["motion"])
    serving = Serving("m", queue_delay=700, instances=3, ensemble=True)
    configs = parse(plan(manifest, report, serving))

    onnx = configs["m_onnx"]
    parameters = onnx.pop("parameters")
    told = json.loads(parameters["tsformer"]["string_value"])
    assert told["task"] == "single-label"
    assert Preprocessing.from_dict(told["preprocessing"]) == Preprocessing.from_dict(
        manifest["preprocessing"]
    )
    assert told["preprocessing"]["mean"] == [0.35] * 3
    assert told["preprocessing"]["std"] == [0.2] * 3
    warm_up = {"data_type": "TYPE_FP32", "dims": ["5", "3", "64", "64"], "zero_data": True}
    video = {"name": "video", "data_type": "TYPE_FP32", "dims": ["5", "3", "64", "64"]}
    logits = {
        "name": "logits",
        "data_type": "TYPE_FP32",
        "dims": ["8"],
        "label_filename": "labels.txt",
    }
    assert onnx == {
        "name": "m_onnx",
        "backend": "onnxruntime",
        "max_batch_size": 8,
        "input": [video],
        "output": [logits],
        "instance_group": [{"kind": "KIND_CPU", "count": 3}],
        "dynamic_batching": {
            "preferred_batch_size": [4, 8],
            "max_queue_delay_microseconds": "700",
        },
        "model_warmup": [
            {"name": f"batch-{size}", "batch_size": size, "inputs": {"video": warm_up}}
            for size in (1, 4, 8)
        ],
    }
    frames = {"name": "frames", "data_type": "TYPE_UINT8", "dims": ["5", "64", "64", "3"]}
    assert configs["m_preprocess"] == {
        "name": "m_preprocess",
        "backend": "python",
        "max_batch_size": 8,
        "input": [frames],
        "output": [video],
        "instance_group": [{"kind": "KIND_CPU", "count": 3}],
    }
    first = {"input_map": {"frames": "frames"}, "output_map": {"video": "video"}}
    second = {"input_map": {"video": "video"}, "output_map": {"logits": "logits"}}
    assert configs["m"] == {
        "name": "m",
        "platform": "ensemble",
        "max_batch_size": 8,
        "input": [frames],
        "output": [logits],
        "ensemble_scheduling": {
            "step": [
                {"model_name": "m_preprocess", "model_version": "-1", **first},
                {"model_name": "m_onnx", "model_version": "-1", **second},
            ]
        },
    }


@pytest.mark.slow
def test_configs_on_a_gpu_with_a_fixed_batch_and_a_mask(exports, parse):
    manifest, _ = facts(exports["masked"])
    manifest["engine"] = {"flavour": "tensorrt", "version": "10.9"}
    manifest["files"]["model.engine"] = {}
    configs = parse(plan(manifest, {"parity": ON_GPU}, Serving("m", ensemble=True)))

    for name, backend in (("m_onnx", "onnxruntime"), ("m_trt", "tensorrt")):
        config = configs[name]
        assert config["backend"] == backend
        assert "max_batch_size" not in config  # protobuf omits a value of 0
        assert "dynamic_batching" not in config
        assert [entry["dims"] for entry in config["input"]] == [
            ["2", "3", "3", "32", "48"],
            ["2", "3"],
        ]
        assert [entry["data_type"] for entry in config["input"]] == ["TYPE_FP32", "TYPE_BOOL"]
        assert config["output"][0]["dims"] == ["2", "2"]
        assert config["instance_group"] == [{"kind": "KIND_GPU", "count": 1}]
        assert [entry["batch_size"] for entry in config["model_warmup"]] == [1]
        assert set(config["model_warmup"][0]["inputs"]) == {"video", "mask"}
    exact = {"name": "cuda", "parameters": {"use_tf32": "0"}}
    accelerators = {"gpu_execution_accelerator": [exact]}
    assert configs["m_onnx"]["optimization"] == {"execution_accelerators": accelerators}
    assert "optimization" not in configs["m_trt"]
    assert [entry["name"] for entry in configs["m"]["input"]] == ["frames", "mask"]
    last = configs["m"]["ensemble_scheduling"]["step"][-1]
    assert last["model_name"] == "m_trt"
    assert last["input_map"] == {"video": "video", "mask": "mask"}
