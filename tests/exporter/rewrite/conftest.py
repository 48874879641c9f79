"""Small models with random weights, norms and biases, and fixtures that test rewrites on them."""

from collections import Counter

import onnx
import pytest
import torch
from torch import nn

from exporter.rewrite import REWRITES
from exporter.spec import DEFAULT_OPSET
from exporter.to_onnx.export import export_onnx
from model import FastTimeSformer, SpaceTimeTransformer, TimeSformer, TimeSformerViT
from model.config import SpaceTimeConfig
from model.projections import HeadProjections

FRAMES, HEIGHT, WIDTH, PATCH = 3, 24, 40, 8  # 3 x 3 x 5 patches


def randomise(model, seed=1):
    """Make all parameters random, so that none is 0 or 1; add biases to query, key and value."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, HeadProjections):
            module.to_qkv.bias = nn.Parameter(torch.zeros(len(module.to_qkv.weight)))
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def make():
    """`make(attn, scheme, ...)`: a FastTimeSformer of width 12, less than the 15 patches."""

    @torch.no_grad()
    def build(attn="regular", scheme="divided", *, family="fast_timesformer", **options):
        torch.manual_seed(0)
        sizes = {"dim": 12, "patch_size": PATCH, "depth": 2, "num_classes": 5, **options}
        if family == "timesformer_pytorch":
            size = {"num_frames": FRAMES, "image_size": (HEIGHT, WIDTH), "dim_head": 6, "heads": 2}
            return randomise(TimeSformer(**size, **sizes))
        if family == "frozen_in_time":
            config = SpaceTimeConfig(FRAMES, 3, HEIGHT, WIDTH, heads=2, **sizes)
            return randomise(SpaceTimeTransformer(config))
        if family == "timesformer_vit":
            sizes |= {"scheme": scheme, "attn": attn, "heads": 2}
            return randomise(TimeSformerViT(FRAMES, HEIGHT, WIDTH, **sizes))
        sizes = {"dim_head": 6, "attn_mechanism": attn, "attn_type": scheme, **sizes}
        return randomise(FastTimeSformer(FRAMES, 3, HEIGHT, WIDTH, **sizes))

    return build


@pytest.fixture(scope="session")
def clips():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, FRAMES, 3, HEIGHT, WIDTH, generator=generator)


@pytest.fixture(scope="session")
def rel_l2():
    def distance(got, truth):
        return ((got.double() - truth.double()).norm() / truth.double().norm()).item()

    return distance


@pytest.fixture
def parity(clips, rel_l2):
    """`parity(name, model)`: number of places that fired, and the float64 error."""

    def prove(name, model):
        model = model.double()
        truth = model(clips.double())
        fired = REWRITES[name](model)
        error = rel_l2(model(clips.double()), truth)
        model.blocks[0].mlp.norm.weight.mul_(1.001)  # the error must grow with a wrong weight
        assert rel_l2(model(clips.double()), truth) > 1e-6
        return fired, error

    return prove


@pytest.fixture
def untouched(clips):
    """`untouched(name, model)`: require that the rewrite does not fire and changes nothing."""

    def check(name, model):
        before = [(path, type(module)) for path, module in model.named_modules()]
        state = {key: value.clone() for key, value in model.state_dict().items()}
        logits = model(clips)
        assert REWRITES[name](model) == 0
        assert [(path, type(module)) for path, module in model.named_modules()] == before
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert torch.equal(model(clips), logits)

    return check


@pytest.fixture(scope="session")
def operators(tmp_path_factory):
    """`operators(model)`: count the nodes of its graph by type; `example` is its input."""
    path = tmp_path_factory.mktemp("graphs") / "model.onnx"

    @torch.no_grad()
    def export(model, example=None):
        example = torch.zeros(1, FRAMES, 3, HEIGHT, WIDTH) if example is None else example
        export_onnx(model, {"video": example}, path, opset=DEFAULT_OPSET)
        nodes = onnx.load(path).graph.node
        return Counter(node.op_type for node in nodes)

    return export


@pytest.fixture(scope="session")
def plain_operators(make, operators):
    """`plain_operators(attn)`: count the nodes of an original model of one block."""
    counted = {}

    def get(attn):
        if attn not in counted:
            counted[attn] = operators(make(attn, depth=1))
        return counted[attn]

    return get
