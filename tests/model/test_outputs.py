"""Test what a model gives beside its logits, against parts of the model itself."""

import pytest
import torch

from model import FastTimeSformer, SpaceTimeTransformer, TimeSformer, TimeSformerViT
from model.config import ConfigError, SpaceTimeConfig
from model.outputs import OUTPUTS

FRAMES, HEIGHT, WIDTH, DIM, DEPTH, CLASSES = 3, 32, 48, 32, 2, 5
PATCHES = 2 * 3  # of a frame, with patches of 16 pixels


def fast(**options):
    values = {"dim": DIM, "depth": DEPTH, "dim_head": 16, "attn_mechanism": "regular", **options}
    torch.manual_seed(0)
    return FastTimeSformer(FRAMES, 3, HEIGHT, WIDTH, CLASSES, **values).eval().double()


def vit(**options):
    torch.manual_seed(0)
    sizes = (FRAMES, HEIGHT, WIDTH, options.pop("num_classes", CLASSES), DIM, DEPTH, 2)
    return TimeSformerViT(*sizes, **options).eval().double()


def lucidrains():
    torch.manual_seed(0)
    sizes = {"num_frames": FRAMES, "image_size": (HEIGHT, WIDTH), "num_classes": CLASSES}
    return TimeSformer(dim=DIM, depth=DEPTH, heads=2, dim_head=16, **sizes).eval().double()


def space_time(**options):
    torch.manual_seed(0)
    sizes = {"dim": DIM, "depth": DEPTH, "heads": 2, **options}
    config = SpaceTimeConfig(FRAMES, 3, HEIGHT, WIDTH, CLASSES, **sizes)
    return SpaceTimeTransformer(config).eval().double()


def clips(count=2):
    return torch.randn(count, FRAMES, 3, HEIGHT, WIDTH, generator=torch.manual_seed(1)).double()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


MODELS = {
    "fast": fast,
    "fast joint": lambda: fast(attn_type="joint"),
    "fast fastformer": lambda: fast(attn_mechanism="fastformer"),
    "fast upstream": lambda: fast(semantics="upstream"),
    "vit": vit,
    "vit joint": lambda: vit(scheme="joint"),
    "lucidrains": lucidrains,
    "space time": space_time,
    "space time ln_pre": lambda: space_time(ln_pre=True),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_parts_of_the_forward(name):
    model, video = MODELS[name](), clips()
    made = model.compute(OUTPUTS[:4], video)
    assert list(made) == ["logits", "features", "tokens", "hidden_states"]
    assert made["features"].shape == (2, DIM)
    assert made["tokens"].shape == (2, 1 + FRAMES * PATCHES, DIM)
    assert made["hidden_states"].shape == (2, 1 + DEPTH, 1 + FRAMES * PATCHES, DIM)
    head = model.head if hasattr(model, "head") else list(model.to_out.children())[-1]
    assert torch.equal(made["logits"], model(video))
    assert torch.equal(head(made["features"]), made["logits"])
    torch.testing.assert_close(made["tokens"][:, 0], made["features"])
    torch.testing.assert_close(model.normalise(made["hidden_states"][:, -1]), made["tokens"])


def test_a_class_token_for_each_frame_gives_tokens_of_each_frame():
    made = vit(scheme="space").compute(("features", "tokens", "attentions"), clips())
    assert made["tokens"].shape == (2, FRAMES, 1 + PATCHES, DIM)
    assert made["features"].shape == (2, DIM)
    assert made["attentions"].shape == (2, DEPTH, FRAMES, 2, 1 + PATCHES, 1 + PATCHES)


@pytest.mark.parametrize("semantics", ["paper", "upstream"])
def test_tokens_of_fast_timesformer_are_in_the_order_of_the_clip(semantics):
    model, video = fast(semantics=semantics), clips()
    first = model.compute(("hidden_states",), video)["hidden_states"][:, 0]
    assert torch.equal(first[:, 1:], model.project_in(video))


def test_tokens_of_the_space_time_transformer_are_in_the_order_of_the_clip():
    model, video = space_time(), clips()
    model.pos_embed.zero_()
    model.time_embed.zero_()
    first = model.compute(("hidden_states",), video)["hidden_states"][:, 0, 1:]
    by_frame = model.patch_embed(video.flatten(0, 1)).unflatten(0, (2, FRAMES)).flatten(3)
    assert torch.equal(first.unflatten(1, (FRAMES, PATCHES)), by_frame.mT)


def test_tokens_of_vit_are_in_the_order_of_the_published_package():
    model, video = vit(), clips()
    model.pos_embed.zero_()
    model.time_embed.zero_()
    first = model.compute(("hidden_states",), video)["hidden_states"][:, 0, 1:]
    by_frame = model.patch_embed(video.flatten(0, 1)).unflatten(0, (2, FRAMES)).flatten(3)
    assert torch.equal(first.unflatten(1, (PATCHES, FRAMES)), by_frame.permute(0, 3, 1, 2))


@pytest.mark.parametrize("scheme", ["joint", "divided", "axial"])
@pytest.mark.parametrize("family", [fast, vit])
def test_attentions_are_softmax_weights(family, scheme):
    name = "scheme" if family is vit else "attn_type"
    weights = family(**{name: scheme}).compute(("attentions",), clips())["attentions"]
    tokens = {"joint": 1 + FRAMES * PATCHES, "divided": 1 + PATCHES, "axial": 1 + 2}[scheme]
    groups = FRAMES * PATCHES // (tokens - 1)
    assert weights.shape == (2, DEPTH, groups, 2, tokens, tokens)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    assert (weights > 0).all()


def test_attentions_of_one_query_give_what_the_block_adds():
    model, video = vit(scheme="joint"), clips(1)
    made = model.compute(("attentions", "hidden_states"), video)
    block = model.blocks[0]
    tokens = block.attn_s.norm(made["hidden_states"][:, 0])
    _, _, value = block.attn_s.fn.split_weights()
    values = (tokens @ value.weight.T + value.bias).unflatten(-1, (2, -1)).transpose(1, 2)
    mixed = (made["attentions"][:, 0, 0] @ values).transpose(1, 2).flatten(2)
    after = made["hidden_states"][:, 0] + block.attn_s.fn.to_out(mixed)
    torch.testing.assert_close(after + block.mlp(after), made["hidden_states"][:, 1])


def test_hooks_are_gone_after_a_run():
    model = vit()
    model.compute(("attentions",), clips())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_mask_reaches_the_outputs():
    model, video = lucidrains(), clips()
    mask = torch.tensor([[True, False, True], [True, True, True]])
    made = model.compute(("logits",), video, mask)["logits"]
    assert torch.equal(made, model(video, mask))
    assert not torch.equal(made[0], model(video)[0])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fast(attn_mechanism="performer"), "regular attention only"),
        (lambda: fast(attn_mechanism="fastformer"), "regular attention only"),
        (lucidrains, "not offered for this family"),
        (space_time, "not offered for this family"),
        (lambda: vit(scheme="local-global"), "groups of one size"),
    ],
)
def test_attentions_that_do_not_exist_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make().compute(("attentions",), clips())


def test_logits_of_a_model_without_classifier_are_refused():
    with pytest.raises(ConfigError, match="no classifier"):
        vit(num_classes=0).compute(("logits",), clips())
