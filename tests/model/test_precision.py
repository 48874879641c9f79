"""Test lower precision: the converted modules, their outputs, and that nothing overflows."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from model import ConfigError, FastTimeSformer, PerformerAttention, TimeSformer, TimeSformerViT
from model.attention import MECHANISMS
from model.block import PatchEmbedding
from model.config import MECHANISM_NAMES, SCHEME_NAMES
from model.precision import (
    LOWER,
    RoundedConv2d,
    RoundedLinear,
    as_type_of,
    at_least_float32,
    lower_precision,
    matching_paths,
    rounded_modules,
)
from model.upstream import UPSTREAM_MECHANISMS

pytestmark = pytest.mark.usefixtures("no_grad")

FRAMES, HEIGHT, WIDTH = 3, 32, 48
CONTRAST = 10.0  # factor on clips of unit variance


def small(attn="fastformer", scheme="divided", *, depth=1, seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"dim": 32, "dim_head": 16, "depth": depth}
    names = {"attn_mechanism": attn, "attn_type": scheme}
    return FastTimeSformer(FRAMES, 3, HEIGHT, WIDTH, 5, **{**sizes, **names, **options}).eval()


def of_family(family):
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_classes": 5, "dim": 32, "depth": 2, "heads": 2}
    if family == "timesformer_pytorch":
        size = (HEIGHT, WIDTH)
        return TimeSformer(num_frames=FRAMES, image_size=size, dim_head=16, **sizes).eval()
    return TimeSformerViT(FRAMES, HEIGHT, WIDTH, **sizes).eval()


def clips(count=2, contrast=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return contrast * torch.randn(count, FRAMES, 3, HEIGHT, WIDTH, generator=generator)


def kinds(model):
    """Return the dtype of every floating-point parameter and buffer, by its name."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t.dtype for name, t in tensors.items() if t.is_floating_point()}


def rel_l2(got, truth):
    return ((got.double() - truth).norm() / truth.norm()).item()


# --- which modules


def test_rounded_modules_are_patches_attention_and_feed_forward():
    block = ("attn_t.fn", "attn_s.fn", "fc_t", "mlp.fn")
    expected = {"project_in", *(f"blocks.{i}.{name}" for i in range(2) for name in block)}
    assert set(rounded_modules(small(depth=2))) == expected


@pytest.mark.parametrize("family", ["timesformer_pytorch", "facebookresearch"])
def test_every_family_rounds_its_attention_feed_forward_and_patches(family):
    model = of_family(family)
    rounded = rounded_modules(model)
    outside = {
        path
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
        and not any(path == r or path.startswith(f"{r}.") for r in rounded)
    }
    heads = {path for path in outside if model.get_submodule(path).out_features == 5}
    assert outside == heads
    assert len(heads) == 1
    assert not any(isinstance(module, nn.LayerNorm) for module in rounded.values())
    assert not [m for r in rounded.values() for m in r.modules() if isinstance(m, nn.LayerNorm)]


@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_only_rounded_modules_get_the_lower_dtype(attn, dtype):
    model = small(attn)
    assert lower_precision(model, dtype) == []
    rounded = tuple(f"{path}." for path in rounded_modules(model))
    for name, kind in kinds(model).items():
        assert kind == (dtype if name.startswith(rounded) else torch.float32), name
    for outside in (
        "cls_token",
        "to_out.norm.weight",
        "to_out.fn.weight",
        "blocks.0.mlp.norm.bias",
    ):
        assert kinds(model)[outside] == torch.float32
    if attn == "performer":
        assert kinds(model)["blocks.0.attn_t.fn.projection_matrix"] == dtype


@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("family", ["timesformer_pytorch", "facebookresearch"])
def test_positions_norms_and_head_of_every_family_stay_float32(family, dtype):
    model = of_family(family)
    lower_precision(model, dtype)
    rounded = tuple(f"{path}." for path in rounded_modules(model))
    outside = {kind for name, kind in kinds(model).items() if not name.startswith(rounded)}
    assert outside == {torch.float32}
    assert model(clips()).dtype == torch.float32


# --- patterns of modules to keep


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("blocks.1", {"blocks.1"}),
        (r"blocks\.1", {"blocks.1"}),
        ("blocks.10", {"blocks.10"}),
        ("blocks.1.mlp", {"blocks.1.mlp.fn"}),
        ("blocks.1.mlp.fn", {"blocks.1.mlp.fn"}),
        ("project_in", {"project_in"}),
        (r"blocks\.\d+\.attn_t", {f"blocks.{i}.attn_t.fn" for i in range(11)}),
        (r"blocks\.1\d?", {"blocks.1", "blocks.10"}),
        (".*", {"project_in", "blocks"}),
    ],
)
def test_a_pattern_keeps_exactly_the_modules_with_a_full_match(pattern, kept):
    model = small(depth=11)
    paths = lower_precision(model, torch.float16, [pattern])
    under = [p for p in rounded_modules(model) if any(f"{p}.".startswith(f"{k}.") for k in kept)]
    assert paths == sorted(under)
    stays = tuple(f"{path}." for path in under)
    turned = tuple(f"{path}." for path in rounded_modules(model) if path not in under)
    for name, kind in kinds(model).items():
        if name.startswith(stays):
            assert kind == torch.float32, name
        if turned and name.startswith(turned):
            assert kind == torch.float16, name


def test_several_patterns_keep_every_module_that_one_of_them_matches():
    model = small(depth=2)
    kept = lower_precision(model, torch.float16, ["project_in", "blocks.1.mlp", "blocks.1.mlp.fn"])
    assert kept == ["blocks.1.mlp.fn", "project_in"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("blocks.0.mpl", "the nearest is 'blocks.0.mlp'"),
        ("block.0", "the nearest is 'blocks.0'"),
        ("project_on", "the nearest is 'project_in'"),
        ("blocks.0.attn_t.norm", "matches no module"),  # it exists, but is always float32
        ("to_out", "matches no module"),
        ("locks.0", "matches no module"),  # only a part of a name
        ("blocks.0.", "matches no module"),
        ("", "matches no module"),
        ("(", "not a regular expression"),
        ("blocks.[", "not a regular expression"),
    ],
)
def test_an_invalid_pattern_is_refused_before_any_module_is_converted(pattern, words):
    model = small()
    with pytest.raises(ConfigError, match=r".+") as caught:
        lower_precision(model, torch.float16, ["blocks.0.mlp", pattern])
    assert words in str(caught.value)
    assert repr(pattern) in str(caught.value)
    assert set(kinds(model).values()) == {torch.float32}


def test_an_empty_list_of_patterns_matches_no_module():
    assert list(matching_paths(small(), [])) == []


def test_a_model_with_all_modules_kept_equals_the_float32_model():
    model, whole = small(), small()
    lower_precision(model, torch.float16, [".*"])
    torch.testing.assert_close(model(clips()), whole(clips()), rtol=0, atol=0)


# --- outputs and dtypes


@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_logits_are_float32_and_near_the_float64_logits(attn, dtype):
    model = small(attn)
    truth = small(attn).double()(clips().double())
    lower_precision(model, dtype)
    logits = model(clips())
    assert logits.dtype == torch.float32
    # A smaller error means that the dtype was not used. A larger error means a defect.
    epsilon = torch.finfo(dtype).eps
    assert epsilon / 100 < rel_l2(logits, truth) < 30 * epsilon


def test_one_kept_module_computes_in_float32():
    model = small()
    lower_precision(model, torch.float16, ["blocks.0.mlp"])
    seen = {}
    for path in ("blocks.0.mlp.fn", "blocks.0.attn_s.fn"):

        def note(_module: object, _inputs: object, output: torch.Tensor, path: str = path) -> None:
            seen[path] = output.dtype

        model.get_submodule(path).register_forward_hook(note)
    model(clips())
    assert seen == {"blocks.0.mlp.fn": torch.float32, "blocks.0.attn_s.fn": torch.float16}


@pytest.mark.parametrize("dtype", [*LOWER, torch.float32, torch.float64])
def test_rounded_layers_take_any_dtype_and_return_their_own_dtype(dtype):
    linear, conv = RoundedLinear(4, 3).to(dtype), RoundedConv2d(2, 3, 2).to(dtype)
    for given in (*LOWER, torch.float32, torch.float64):
        assert linear(torch.randn(2, 4).to(given)).dtype == dtype
        assert conv(torch.randn(1, 2, 4, 4).to(given)).dtype == dtype


@pytest.mark.parametrize("embed", [PatchEmbedding(4, 16, 8), RoundedConv2d(4, 8, 16, 16)])
def test_patches_of_frames_with_the_channels_last_are_right_in_bf16(embed):
    """PyTorch's own convolution is wrong by 100 % here on a CPU with avx512_bf16."""
    decoded = torch.randn(2, 3, 16, 16, 4, generator=torch.Generator().manual_seed(0))
    frames = decoded.movedim(-1, 2)  # b f c h w
    frames = frames if isinstance(embed, PatchEmbedding) else frames.flatten(0, 1)
    truth = deepcopy(embed).double()(frames.double())
    assert rel_l2(embed.to(torch.bfloat16)(frames).float(), truth) < 0.01


def test_at_least_float32_casts_lower_precision_only():
    for dtype in LOWER:
        assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        x = torch.ones(2, dtype=dtype)
        assert at_least_float32(x) is x
        assert as_type_of(x, x) is x


class Islands(TorchDispatchMode):
    """Record the dtype of the operators that overflow or lose digits in lower precision."""

    WATCHED = ("_softmax", "native_layer_norm", "exp", "log", "amax", "sum")

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WATCHED:
            self.seen.setdefault(name, set()).add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_operators_that_overflow_compute_in_float32(attn, dtype):
    model = small(attn)
    lower_precision(model, dtype)
    with Islands() as islands:
        model(clips())
    expected = {
        "regular": {"_softmax"},
        "performer": {"_softmax", "exp", "log", "amax", "sum"},
        "fastformer": {"_softmax", "sum"},
    }[attn]
    assert set(islands.seen) >= {"native_layer_norm", *expected}
    assert all(found == {torch.float32} for found in islands.seen.values()), islands.seen


# --- nothing overflows


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("tokens", [1, 7, 65, 300])  # fewer and more tokens than dim_head
@pytest.mark.parametrize("name", MECHANISMS)
def test_output_of_a_single_attention_is_finite_in_lower_precision(name, tokens, dtype):
    for seed in range(3):
        # Fastformer multiplies three projections: at 4.0 even its outputs overflow float16.
        for scale in (0.1, 1.0, 2.0):
            torch.manual_seed(seed)
            attention = MECHANISMS[name](64).eval()
            for parameter in attention.parameters():
                parameter.mul_(scale)
            x = CONTRAST * torch.randn(2, tokens, 64)
            got = attention.to(dtype)(x.to(dtype))
            assert got.dtype == dtype
            assert got.shape == x.shape
            assert got.isfinite().all(), (seed, scale)


def test_published_call_of_a_performer_is_finite_in_half_precision():
    x = torch.randn(1, 10, 64)
    got = PerformerAttention(64).half()(x.half())
    assert got.dtype == torch.float16
    assert got.isfinite().all()


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("tokens", [5, 100])
@pytest.mark.parametrize("name", MECHANISMS)
def test_output_of_a_single_attention_in_half_precision_is_near_float64(name, tokens, heads):
    torch.manual_seed(0)
    attention = MECHANISMS[name](64, 64 // heads, heads).eval()
    x = torch.randn(2, tokens, 64).half()
    truth = MECHANISMS[name](64, 64 // heads, heads).eval().double()
    truth.load_state_dict(attention.state_dict())
    assert rel_l2(attention.half()(x), truth(x.double())) < 10 * torch.finfo(torch.float16).eps


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_logits_of_a_whole_model_are_finite_in_half_precision(attn, scheme, scale):
    for seed in range(3):
        model = small(attn, scheme, depth=2, seed=seed)
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(scale)
        truth = model(clips(contrast=CONTRAST, seed=seed))
        lower_precision(model, torch.float16)
        logits = model(clips(contrast=CONTRAST, seed=seed))
        assert logits.isfinite().all(), seed
        assert rel_l2(logits, truth.double()) < 0.1, seed


@pytest.mark.parametrize("name", UPSTREAM_MECHANISMS)
def test_logits_of_the_published_mechanisms_are_finite_in_half_precision(name):
    model = small(name, semantics="upstream")
    lower_precision(model, torch.float16)
    assert model(clips(contrast=CONTRAST)).isfinite().all()


def test_performer_output_is_finite_for_keys_of_large_norm():
    """Here `|k|^2 / 2` exceeds the range of float16, and its `exp` exceeds the range of float32."""
    torch.manual_seed(0)
    attention = PerformerAttention(64).eval()
    attention.to_qkv.weight[64:128].mul_(20)
    x = CONTRAST * torch.randn(1, 20, 64)
    k = nn.functional.linear(x, attention.to_qkv.weight[64:128]) / math.sqrt(8)
    assert (k.square().sum(-1) / 2).max() > torch.finfo(torch.float16).max
    assert attention.half()(x.half()).isfinite().all()


@pytest.mark.parametrize("dtype", LOWER)
@pytest.mark.parametrize("attn", MECHANISM_NAMES)
def test_logits_of_a_clip_are_independent_of_its_batch_in_lower_precision(attn, dtype):
    model = small(attn)
    lower_precision(model, dtype)
    video = clips(3)
    video[1] *= CONTRAST
    together = model(video)
    for i in range(3):
        alone = model(video[i : i + 1]).double()
        assert rel_l2(together[i : i + 1], alone) < torch.finfo(dtype).eps
