"""OpenVINO on the CPU; a precision that this CPU lacks is refused, which is proven here too."""

import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporter.errors import RuntimeFailure, UsageError
from exporter.predict import Predictor
from exporter.runners import open as opening
from exporter.runners import openvino as openvino_file
from exporter.runners.open import OPENVINO_GRAPH_RUN, is_openvino_wanted, load_openvino
from exporter.runners.openvino import WITH_BF16, OpenVinoRunner, precisions, product_types

WIDTH = 64
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((WIDTH, WIDTH)).astype(np.float32)
CLIPS = RNG.standard_normal((3, 8, WIDTH)).astype(np.float32)
HAS_BF16 = "bf16" in precisions()


def write(path, nodes, weights, inputs):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    return path


@pytest.fixture(scope="session")
def graph(tmp_path_factory):
    """A float32 product `(b, 8, 64) -> (b, 8, 64)` with a free batch."""
    return write(
        tmp_path_factory.mktemp("openvino") / "model.onnx",
        [helper.make_node("MatMul", ["video", "w"], ["logits"])],
        {"w": WEIGHT},
        [("video", TensorProto.FLOAT, ["b", 8, WIDTH])],
    )


@pytest.fixture(scope="session")
def int8_graph(tmp_path_factory):
    """The same product in int8, as the quantiser of ONNX Runtime writes it."""
    weights = {
        "levels": np.round(WEIGHT * 20).clip(-63, 63).astype(np.int8),
        "w_scale": np.array(0.05, np.float32),
        "w_zero": np.array(0, np.int8),
        "x_scale": np.array(0.04, np.float32),
        "x_zero": np.array(128, np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["video", "x_scale", "x_zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "x_zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["levels", "w_scale", "w_zero"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
    ]
    place = tmp_path_factory.mktemp("openvino") / "int8.onnx"
    return write(place, nodes, weights, [("video", TensorProto.FLOAT, [3, 8, WIDTH])])


def error_of(logits):
    truth = CLIPS.astype(np.float64) @ WEIGHT
    return np.linalg.norm(logits - truth[: len(logits)]) / np.linalg.norm(truth[: len(logits)])


def compiled(runner):
    return runner._request.get_compiled_model()


def test_float32_is_computed_in_float32(graph):
    with OpenVinoRunner(graph) as runner:
        logits = runner.run({"video": CLIPS})["logits"]
        assert product_types(compiled(runner)) == {"f32"}
        assert (runner.name, runner.device, runner.precision) == ("openvino", "cpu", "fp32")
    assert logits.dtype == np.float32
    assert error_of(logits) < 1e-6  # bf16 has an error above 1e-3


@pytest.mark.skipif(HAS_BF16, reason="this CPU has bf16")
def test_a_precision_that_the_cpu_lacks_is_refused(graph):
    with pytest.raises(RuntimeFailure, match="has no bf16 on this CPU, and would use float32"):
        OpenVinoRunner(graph, "bf16")


@pytest.mark.skipif(HAS_BF16, reason="this CPU has bf16")
def test_a_hint_that_is_not_followed_is_found_in_the_kernels(graph, monkeypatch):
    """If OpenVINO promised bf16 and computed in float32, the kernels would tell."""
    monkeypatch.setattr(openvino_file, "precisions", lambda: ("fp32", "bf16"))
    with pytest.raises(RuntimeFailure, match="products in f32, expected bf16"):
        OpenVinoRunner(graph, "bf16")


@pytest.mark.skipif(not HAS_BF16, reason="OpenVINO has no bf16 on this CPU")
def test_bf16_is_computed_in_bf16(graph):
    with OpenVinoRunner(graph, "bf16") as runner:
        assert "bf16" in product_types(compiled(runner))
        assert 1e-4 < error_of(runner.run({"video": CLIPS})["logits"]) < 1.6e-2


def test_int8_is_computed_in_int8(int8_graph):
    with OpenVinoRunner(int8_graph, "int8") as runner:
        assert product_types(compiled(runner)) & {"u8", "i8"}
        assert 1e-3 < error_of(runner.run({"video": CLIPS})["logits"]) < 0.1


def test_a_float32_graph_is_not_taken_for_int8(graph):
    with pytest.raises(RuntimeFailure, match="products in f32, expected int8"):
        OpenVinoRunner(graph, "int8")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_modules_in_float32_are_refused_below_float32(graph, precision):
    with pytest.raises(RuntimeFailure, match="whole graph in"):
        OpenVinoRunner(graph, precision, keep_fp32=("head",))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_free_batch_takes_any_size(graph, batch):
    with OpenVinoRunner(graph) as runner:
        assert dict(runner.input_shapes) == {"video": (None, 8, WIDTH)}
        logits = runner.run({"video": CLIPS[:batch]})["logits"]
    assert logits.shape == (batch, 8, WIDTH)
    assert error_of(logits) < 1e-6


def test_outputs_do_not_change_with_the_next_run(graph):
    with OpenVinoRunner(graph) as runner:
        first = runner.run({"video": CLIPS})["logits"]
        kept = first.copy()
        runner.run({"video": -CLIPS})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("cached", [False, True])
def test_outputs_have_the_names_of_the_graph(tmp_path, cached):
    nodes = [
        helper.make_node("MatMul", ["video", "w"], ["a"]),
        helper.make_node("Identity", ["a"], ["logits"]),
    ]
    inputs = [("video", TensorProto.FLOAT, [3, 8, WIDTH])]
    path = write(tmp_path / "m.onnx", nodes, {"w": WEIGHT}, inputs)
    for _ in range(1 + cached):
        with OpenVinoRunner(path, cache=tmp_path if cached else None) as runner:
            assert list(runner.run({"video": CLIPS})) == ["logits"]


def test_a_mask_is_taken_as_booleans(tmp_path):
    nodes = [helper.make_node("Where", ["mask", "video", "zero"], ["logits"])]
    inputs = [("video", TensorProto.FLOAT, [1, 4]), ("mask", TensorProto.BOOL, [1, 4])]
    path = write(tmp_path / "m.onnx", nodes, {"zero": np.zeros(1, np.float32)}, inputs)
    video, mask = np.ones((1, 4), np.float32), np.array([[True, False, True, False]])
    # It has no product, so there is no type of one.
    with pytest.raises(RuntimeFailure, match="products in no type"):
        OpenVinoRunner(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_file, "_check_kernels", lambda *_: None)
        with OpenVinoRunner(path) as runner:
            np.testing.assert_array_equal(
                runner.run({"video": video, "mask": mask})["logits"], mask.astype(np.float32)
            )
            with pytest.raises(RuntimeFailure, match="wrong dtype of 'mask'"):
                runner.run({"video": video, "mask": mask.astype(np.float32)})


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ({"clip": CLIPS}, "wrong inputs"),
        ({"video": CLIPS[:, :4]}, "wrong shape of 'video'"),
        ({"video": CLIPS.astype(np.float64)}, "wrong dtype of 'video'"),
    ],
)
def test_wrong_inputs_are_refused(graph, inputs, what):
    with OpenVinoRunner(graph) as runner, pytest.raises(RuntimeFailure, match=what):
        runner.run(inputs)


def test_threads_are_those_that_were_asked_for(graph):
    with OpenVinoRunner(graph, threads=2) as runner:
        assert compiled(runner).get_property("INFERENCE_NUM_THREADS") == 2
        runner.use_threads(1)
        assert compiled(runner).get_property("INFERENCE_NUM_THREADS") == runner.threads == 1
        assert error_of(runner.run({"video": CLIPS})["logits"]) < 1e-6


def test_a_cached_model_is_loaded_the_next_time(graph, tmp_path):
    for cached in (False, True):
        with OpenVinoRunner(graph, cache=tmp_path) as runner:
            assert compiled(runner).get_property("LOADED_FROM_CACHE") is cached
            assert error_of(runner.run({"video": CLIPS})["logits"]) < 1e-6


def test_a_damaged_cache_is_not_trusted(graph, tmp_path):
    OpenVinoRunner(graph, cache=tmp_path).close()
    (blob,) = tmp_path.glob("*.blob")
    blob.write_bytes(blob.read_bytes()[: blob.stat().st_size // 2])
    with OpenVinoRunner(graph, cache=tmp_path) as runner:
        assert error_of(runner.run({"video": CLIPS})["logits"]) < 1e-6


def test_a_closed_runner_says_so(graph):
    runner = OpenVinoRunner(graph)
    runner.close()
    with pytest.raises(RuntimeFailure, match="closed"):
        runner.run({"video": CLIPS})


def test_a_damaged_graph_is_a_short_message(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    with pytest.raises(RuntimeFailure, match=r"does not load model\.onnx: ") as caught:
        OpenVinoRunner(path)
    assert "Exception from" not in str(caught.value)


def test_without_openvino_the_message_says_how_to_install_it(graph, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RuntimeFailure, match="pip install 'tsformer"):
        OpenVinoRunner(graph)


class TestOpening:
    @pytest.fixture
    def resources(self):
        with ExitStack() as stack:
            yield stack

    def test_int8_is_opened_with_and_without_bf16(self, int8_graph, resources):
        opened = load_openvino(int8_graph, "int8", resources, threads=1)
        names = [row.name for row in opened.runners] + [row.runtime for row in opened.absences]
        assert names == ["openvino", WITH_BF16]
        assert len(opened.runners) == (2 if HAS_BF16 else 1)

    @pytest.mark.skipif(HAS_BF16, reason="this CPU has bf16")
    @pytest.mark.parametrize("named", [True, False])
    def test_a_lacking_precision_is_a_row_where_openvino_is_named(self, graph, resources, named):
        opened = load_openvino(graph, "bf16", resources, threads=1, named=named)
        assert opened.runners == ()
        reasons = [row.reason for row in opened.absences]
        assert len(reasons) == named
        assert all("has no bf16 on this CPU" in reason for reason in reasons)

    def test_a_graph_for_bf16_is_proven_in_float32(self, graph, resources):
        opened = load_openvino(graph, "bf16", resources, threads=1, prove=True)
        first = opened.runners[0]
        assert (first.name, first.precision) == (OPENVINO_GRAPH_RUN, "fp32")
        assert error_of(first.run({"video": CLIPS})["logits"]) < 1e-6

    def test_modules_in_float32_are_a_row_that_says_why_not(self, resources):
        (row,) = load_openvino(None, "bf16", resources, threads=1, keep_fp32=("head",)).absences
        assert "--keep-fp32 names modules" in row.reason

    def test_an_export_without_a_graph_for_it_says_what_to_do(self, resources, monkeypatch):
        monkeypatch.setattr(openvino_file, "precisions", lambda: ("fp32", "bf16"))
        (row,) = load_openvino(None, "bf16", resources, threads=1).absences
        assert "export it again with --for openvino" in row.reason

    def test_a_float32_graph_that_does_not_load_is_an_error(self, tmp_path, resources):
        path = tmp_path / "model.onnx"
        path.write_bytes(b"")
        with pytest.raises(RuntimeFailure, match="does not load"):
            load_openvino(path, "fp32", resources, threads=1)
        (row, *_) = load_openvino(path, "int8", resources, threads=1).absences
        assert (row.runtime, row.verdict) == ("openvino", "not-run")

    @pytest.mark.parametrize(
        ("installed", "runtimes", "precision", "kept", "wanted"),
        [
            (True, (), "fp32", (), True),
            (True, (), "bf16", (), False),
            (True, (), "int8", ("head",), True),
            (True, ("onnxruntime",), "fp32", (), False),
            (True, ("openvino",), "bf16", (), True),
            (False, (), "fp32", (), False),
            (False, ("openvino",), "fp32", (), True),
        ],
    )
    def test_an_export_is_for_openvino_where_it_is_named_or_works(
        self, monkeypatch, openvino_by_default, installed, runtimes, precision, kept, wanted
    ):
        monkeypatch.setattr(opening, "is_installed", lambda: installed)
        monkeypatch.setattr(openvino_file, "precisions", lambda: ("fp32", "int8"))
        assert is_openvino_wanted(runtimes, precision, kept) is wanted


class TestPredict:
    def test_openvino_gives_the_scores_of_onnx_runtime(self, exported, real_clips):
        directory = exported().directory
        scores = []
        for device in ("cpu", "openvino"):
            with Predictor(directory, device=device) as predictor:
                (found,) = predictor.predict([real_clips["bikes"]])
                assert predictor.runner.name == {"cpu": "onnxruntime"}.get(device, device)
            scores.append({entry.index: entry.score for entry in found.classes})
        assert scores[0] == pytest.approx(scores[1], rel=1e-5)

    def test_bf16_between_products_is_for_int8(self, exported):
        with pytest.raises(UsageError, match="openvino-bf16 is for int8"):
            Predictor(exported().directory, device="openvino-bf16")

    def test_a_cache_is_for_openvino(self, exported, tmp_path):
        with pytest.raises(UsageError, match="--cache is for --device openvino"):
            Predictor(exported().directory, cache=tmp_path)
        with Predictor(exported().directory, device="openvino", cache=tmp_path):
            assert [path.suffix for path in Path(tmp_path).iterdir()] == [".blob"]
