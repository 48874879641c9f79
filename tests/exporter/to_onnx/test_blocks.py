"""Tracing shared blocks once gives the same graph as tracing each block separately."""

import copy
from collections import Counter
from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from exporter.errors import OnnxError
from exporter.graph.modules import find_module_outputs
from exporter.precision import in_precision
from exporter.rewrite import pieces, rewrite, rewrite_measured
from exporter.spec import DEFAULT_OPSET, BatchProfile
from exporter.to_onnx import blocks
from exporter.to_onnx.blocks import BlockFunction, blocks_called, structure
from exporter.to_onnx.export import export_onnx
from model import FastTimeSformer, SpaceTimeTransformer, TimeSformer, TimeSformerViT
from model.config import MECHANISM_NAMES, SCHEME_NAMES, SpaceTimeConfig

FRAMES, HEIGHT, WIDTH = 3, 32, 48
PAIRS = [(attn, scheme) for attn in MECHANISM_NAMES for scheme in SCHEME_NAMES]
SIZES = {"dim": 16, "dim_head": 8, "depth": 3, "num_classes": 2}  # a rewritten last block differs
ALIKE = {"depth": 2}  # for models whose blocks all have one structure


def make(attn="fastformer", scheme="divided", **changes):
    torch.manual_seed(0)
    options = {"attn_mechanism": attn, "attn_type": scheme, **SIZES, **changes}
    return FastTimeSformer(FRAMES, 3, HEIGHT, WIDTH, **options).eval()


def make_vit(**changes):
    torch.manual_seed(0)
    return TimeSformerViT(FRAMES, HEIGHT, WIDTH, dim=16, depth=3, heads=2, **changes).eval()


def make_timesformer(**changes):
    torch.manual_seed(0)
    size = {"num_frames": FRAMES, "image_size": (HEIGHT, WIDTH), "heads": 2}
    return TimeSformer(**size, **{**SIZES, **ALIKE}, **changes).eval()


def make_space_time():
    torch.manual_seed(0)
    config = SpaceTimeConfig(FRAMES, 3, HEIGHT, WIDTH, 2, dim=16, depth=2, heads=2, ln_pre=True)
    return SpaceTimeTransformer(config).eval()


def kept(*expressions):
    return lambda model: in_precision(model, "fp16", expressions)


CASES = {
    **{attn: (partial(make, attn), rewrite) for attn in MECHANISM_NAMES},
    **{scheme: (partial(make, scheme=scheme), rewrite) for scheme in ("space", "local-global")},
    "as it is": (partial(make, **ALIKE), None),
    "learned positions": (partial(make, rotary_emb=False, **ALIKE), None),
    "published": (partial(make, semantics="upstream"), rewrite),
    "published joint, fp16": (partial(make, scheme="joint", semantics="upstream", **ALIKE), kept()),
    "fp16": (partial(make, "performer", **ALIKE), kept()),
    "fp16, one block kept": (partial(make, "regular"), kept(r"blocks\.2")),
    "vit": (make_vit, rewrite),
    "space time": (make_space_time, rewrite),
    "timesformer": (make_timesformer, None),
    "timesformer, shifted": (partial(make_timesformer, shift_tokens=True), None),
}


def example(model, batch=2, mask=False):
    video = torch.zeros(batch, FRAMES, 3, HEIGHT, WIDTH)
    present = {"mask": torch.ones(batch, FRAMES, dtype=torch.bool)} if mask else {}
    return {"video": video, **present}


def write(path, model, inputs, **options):
    export_onnx(model, inputs, path, opset=DEFAULT_OPSET, **options)
    return onnx.load(path)


def wiring(model):
    """Return for every node, in order: its operator, the origins of its inputs, its attributes."""
    graph = model.graph
    origin = {"": None} | {value.name: value.name for value in graph.input}
    for weight in graph.initializer:
        array = numpy_helper.to_array(weight)
        origin[weight.name] = (array.dtype, array.shape, array.tobytes())
    nodes = []
    for place, node in enumerate(graph.node):
        attributes = sorted(attribute.SerializeToString() for attribute in node.attribute)
        nodes.append((node.op_type, [origin[name] for name in node.input], attributes))
        origin |= {name: (place, index) for index, name in enumerate(node.output)}
    return nodes, [origin[value.name] for value in graph.output]


def assert_same(one, other):
    """Check that both graphs have the same operators, values and weights, from the same modules."""
    assert wiring(one) == wiring(other)
    modules = [
        {path: len(names) for path, names in find_module_outputs(made.graph).items()}
        for made in (one, other)
    ]
    assert modules[0] == modules[1]
    assert any(path.startswith(("blocks.1.", "layers.1.")) for path in modules[0])
    for made in (one, other):
        assert {node.domain for node in made.graph.node} == {""}
        assert not made.functions
        assert [opset.domain for opset in made.opset_import] == [""]
        assert b"the_block" not in made.SerializeToString()
        assert b"_Alone" not in made.SerializeToString()


@pytest.fixture
def apart(monkeypatch):
    """Give a function: after its call, each block is traced separately."""
    return lambda: monkeypatch.setattr(blocks, "MIN_SHARED_BLOCKS", 1000)


@pytest.fixture
def traced(monkeypatch):
    """The class names of the traced modules, in order."""
    seen, export = [], torch.onnx.export

    def watch(model, *arguments, **options):
        seen.append(type(model).__name__)
        return export(model, *arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", watch)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_graph_equals_that_of_blocks_traced_separately(name, apart, tmp_path):
    make_model, change = CASES[name]
    model = make_model()
    model = change(model) if change else model
    once = write(tmp_path / "once.onnx", model, example(model))
    apart()
    assert_same(once, write(tmp_path / "apart.onnx", model, example(model)))


@pytest.mark.slow
def test_with_a_free_batch_and_a_mask_the_graph_equals_that_of_separate_blocks(apart, tmp_path):
    model, profile = make_timesformer(), BatchProfile(1, 2, 4)
    inputs = example(model, batch=1, mask=True)
    once = write(tmp_path / "once.onnx", model, inputs, dynamic_batch=profile)
    apart()
    each = write(tmp_path / "apart.onnx", model, inputs, dynamic_batch=profile)
    assert_same(once, each)
    assert free_axes(once) == free_axes(each)


def free_axes(model):
    shapes = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    axes = [axis for value in shapes for axis in value.type.tensor_type.shape.dim]
    return Counter(axis.dim_param for axis in axes)


@pytest.mark.slow
def test_blocks_with_attention_in_pieces_share_a_function(monkeypatch, apart, tmp_path):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2**11)
    model, fired, _ = rewrite_measured(make("performer"))
    assert {"cut_attention", "cut_feed_forward"} <= {one.name for one in fired}
    assert len({structure(block) for block in model.blocks[:-1]}) == 1
    once = write(tmp_path / "once.onnx", model, example(model))
    apart()
    assert_same(once, write(tmp_path / "apart.onnx", model, example(model)))


@pytest.mark.slow
@pytest.mark.parametrize("make_model", [make, partial(make_vit, drop_path=0.1)])
def test_blocks_are_traced_once(traced, tmp_path, make_model):
    model = rewrite(make_model())
    write(tmp_path / "model.onnx", model, example(model))
    assert traced == [type(model).__name__, "_Alone"]
    assert not any("forward" in vars(block) for block in model.blocks)


@pytest.mark.slow
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_the_graph_computes_the_logits_of_the_model(attn, tmp_path):
    model = make(attn)
    write(tmp_path / "model.onnx", model, example(model))
    video = torch.randn(2, FRAMES, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (logits,) = session.run(None, {"video": video.numpy()})
    with torch.no_grad():
        truth = model.double()(video.double()).numpy()
        model.blocks[0], model.blocks[1] = model.blocks[1], model.blocks[0]
        swapped = model(video.double()).numpy()
    assert np.linalg.norm(logits - truth) < 1e-5 * np.linalg.norm(truth)
    # The blocks differ: the test would notice if the graph confused them.
    assert np.linalg.norm(swapped - truth) > 1e-3 * np.linalg.norm(truth)


@pytest.mark.slow
def test_tied_weights_in_every_block_give_the_graph_of_separate_blocks(apart, tmp_path):
    model = make(**ALIKE)
    for block in model.blocks:
        tie(block)
    once = write(tmp_path / "once.onnx", model, example(model))
    apart()
    assert_same(once, write(tmp_path / "apart.onnx", model, example(model)))


@pytest.mark.slow
def test_a_block_with_a_replaced_forward_keeps_it(traced, tmp_path):
    model = make(**ALIKE)
    for block in model.blocks:
        block.forward = pass_on
    write(tmp_path / "model.onnx", model, example(model))
    assert traced == ["FastTimeSformer"]
    assert all(block.forward is pass_on for block in model.blocks)


def pass_on(cls, x, _rotary):
    return cls + x[:, :1], x


@pytest.mark.slow
def test_a_block_of_a_unique_structure_is_traced_in_the_model(traced, tmp_path):
    model = make(depth=1)
    write(tmp_path / "model.onnx", model, example(model))
    assert traced == ["FastTimeSformer"]


@pytest.mark.slow
def test_each_structure_is_traced_as_a_separate_function(traced, tmp_path):
    model = in_precision(make("regular", depth=4), "fp16", [r"blocks\.[01]"])
    write(tmp_path / "model.onnx", model, example(model))
    assert traced == ["FastTimeSformer", "_Alone", "_Alone"]


def test_blocks_get_their_forward_back_after_an_error():
    model = make()
    with pytest.raises(KeyboardInterrupt), blocks_called(model):
        assert all("forward" in vars(block) for block in model.blocks)
        raise KeyboardInterrupt
    assert not any("forward" in vars(block) for block in model.blocks)


def test_blocks_of_one_structure_with_different_inputs_are_refused():
    model = make()
    function = BlockFunction("Block", model.blocks[0])
    cls, x = torch.zeros(1, 1, 16), torch.zeros(1, 18, 16)
    function.call(model.blocks[0], "blocks.0", cls, x, model.rotary)
    for more in ((x[:, 1:], model.rotary), (x.half(), model.rotary), (x, None), (x, None, {})):
        with pytest.raises(ValueError, match=r"blocks\.1 takes"):
            function.call(model.blocks[1], "blocks.1", cls, *more)


@pytest.mark.slow
def test_blocks_whose_output_shapes_differ_from_their_input_shapes_are_refused(tmp_path):
    model = make(**ALIKE)
    for block in model.blocks:
        block.feed_forward = drop_the_last
    with pytest.raises(OnnxError, match="ValueError: blocks take"):
        write(tmp_path / "model.onnx", model, example(model))


def drop_the_last(cls, x):
    return cls, x[:, :-1]


@pytest.mark.slow
def test_a_weight_that_is_not_an_input_of_the_function_is_refused(monkeypatch, tmp_path):
    known = blocks._weights

    def forget_one(module):
        weights = known(module)
        if isinstance(module, blocks._Alone):
            del weights["the_block.attn_t.fn.to_qkv.weight"]
        return weights

    monkeypatch.setattr(blocks, "_weights", forget_one)
    model = make(**ALIKE)
    with pytest.raises(OnnxError, match=r"to_qkv\.weight would be the same for all blocks"):
        write(tmp_path / "model.onnx", model, example(model))


@pytest.mark.slow
@pytest.mark.parametrize(("attn", "scheme"), PAIRS)
def test_rewritten_blocks_have_the_same_structure(attn, scheme, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 2**8)
    *early, _ = rewrite(make(attn, scheme)).blocks
    assert len(set(map(structure, early))) == 1


# --- structure


def test_blocks_that_differ_only_in_weights_have_the_same_structure():
    model = make()
    assert len({structure(block) for block in model.blocks}) == 1
    model.blocks[1].mlp.norm.weight.data += 1
    assert structure(model.blocks[0]) == structure(model.blocks[1])


def change_number(block):
    block.attn_t.fn.scale *= 2


def change_type(block):
    block.mlp.half()


def change_class(block):
    block.mlp.norm.__class__ = type("Other", (nn.LayerNorm,), {})


def change_epsilon(block):
    block.mlp.norm.eps = 1e-6


def change_shape(block):
    block.mlp.fn.net[3].bias = None


def add_hook(block):
    block.mlp.register_forward_hook(lambda *call: 2 * call[2])


def add_tensor(block):
    block.table = (torch.ones(2),)


def add_module(block):
    block.other = (nn.Linear(2, 2),)


def tie(block):
    block.attn_s.norm.weight = block.attn_t.norm.weight


def copy_step(block):
    block.steps = (copy.deepcopy(block.steps[0]), block.steps[1])


def train(block):
    block.mlp.train()


@pytest.mark.parametrize(
    "change",
    [
        change_number,
        change_type,
        change_class,
        change_epsilon,
        change_shape,
        add_hook,
        add_tensor,
        add_module,
        tie,
        copy_step,
        train,
    ],
    ids=lambda change: change.__name__,
)
def test_a_changed_block_has_another_structure(change):
    block, *_, other = make("regular").blocks
    assert structure(block) == structure(other)
    change(other)
    assert structure(block) != structure(other)
