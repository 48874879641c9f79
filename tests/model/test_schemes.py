"""Test which tokens a change reaches in one block, for every scheme with every mechanism."""

import itertools

import pytest
import torch

from model import FastTimeSformer, TimeSformerViT
from model.config import MECHANISM_NAMES, SCHEME_NAMES
from model.spacetime import SCHEMES, Gathered, Grid, halves, parities

PATCH, DIM, HEADS = 4, 12, 2
GRIDS = [(4, 4, 4), (3, 5, 3), (1, 2, 3)]

# Written from section 3 of the paper, independently of the code. Two tokens attend to each other
# if their keys are equal. A token t is (frame, row, column); n holds the sizes of the grid.
TOGETHER = {
    "time": lambda t, _: t[1:],
    "frame": lambda t, _: t[0],
    "all": lambda t, _: (),
    "quarter": lambda t, n: (t[1] < (n[1] + 1) // 2, t[2] < (n[2] + 1) // 2),
    "stride two": lambda t, _: (t[0] % 2, t[1] % 2, t[2] % 2),
    "row": lambda t, _: (t[0], t[1]),
    "column": lambda t, _: (t[0], t[2]),
}
STEPS = {
    "space": ["frame"],
    "joint": ["all"],
    "divided": ["time", "frame"],
    "local-global": ["quarter", "stride two"],
    "axial": ["time", "row", "column"],
}


def reached_from(token, scheme, grid):
    """Return for each token whether a change of `token` can reach it in one block."""
    tokens = list(itertools.product(*map(range, grid)))
    reached = {token}
    for step in STEPS[scheme]:
        key = TOGETHER[step]
        keys = {key(t, grid) for t in reached}
        reached |= {t for t in tokens if key(t, grid) in keys}
    return [t in reached for t in tokens]


def build(family, scheme, mechanism, grid):
    frames, height, width = grid[0], grid[1] * PATCH, grid[2] * PATCH
    torch.manual_seed(0)
    if family is FastTimeSformer:
        model = FastTimeSformer(
            frames, 3, height, width, num_classes=3, dim=DIM, dim_head=DIM // HEADS, depth=1,
            patch_size=PATCH, attn_type=scheme, attn_mechanism=mechanism,
        )  # fmt: skip
    else:
        model = TimeSformerViT(
            frames, height, width, num_classes=3, dim=DIM, heads=HEADS, depth=1,
            patch_size=PATCH, scheme=scheme, attn=mechanism,
        )  # fmt: skip
    model = model.eval().double()
    for parameter in model.parameters():  # far from zero, so that every change is visible
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("family", [FastTimeSformer, TimeSformerViT])
@pytest.mark.parametrize("mechanism", MECHANISM_NAMES)
@pytest.mark.parametrize("scheme", SCHEME_NAMES)
@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_a_change_reaches_exactly_the_tokens_that_attend_together(family, mechanism, scheme, grid):
    model = build(family, scheme, mechanism, grid)
    count = grid[0] * grid[1] * grid[2]
    k = grid[0] if scheme == "space" else 1
    cls, x = torch.randn(1, k, DIM).double(), torch.randn(1, count, DIM).double()
    rotary = getattr(model, "rotary", None)
    (block,) = model.blocks
    cls_before, before = block(cls, x, rotary)

    for place, token in enumerate(itertools.product(*map(range, grid))):
        if place % 5 and place != count - 1:
            continue  # test every fifth token and the last one
        changed = x.clone()
        changed[0, place] += torch.randn(DIM).double()
        cls_after, after = block(cls, changed, rotary)

        moved = ((after - before).abs().amax(-1)[0] > 1e-9).tolist()
        assert moved == reached_from(token, scheme, grid), token
        cls_moved = ((cls_after - cls_before).abs().amax(-1)[0] > 1e-9).tolist()
        expected = [frame == token[0] for frame in range(k)] if scheme == "space" else [True]
        assert cls_moved == expected


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
@pytest.mark.parametrize("grid", GRIDS)
def test_ungroup_inverts_group_and_keeps_every_token(scheme, grid):
    tokens = torch.arange(grid[0] * grid[1] * grid[2]).view(1, -1, 1).double()
    for step in SCHEMES[scheme](Grid(*grid)):
        parts = step.group(tokens)

        assert len(parts) == len(step.keys)
        assert sorted(torch.cat([part.flatten() for part in parts]).tolist()) == list(
            range(tokens.numel())
        )
        assert torch.equal(step.ungroup(parts), tokens)


def test_groups_of_one_size_share_a_tensor():
    even = SCHEMES["local-global"](Grid(4, 4, 4))
    odd = SCHEMES["local-global"](Grid(5, 4, 4))

    assert [[tuple(p) for p in step.parts] for step in even] == [[(4, 16)], [(8, 8)]]
    assert [[tuple(p) for p in step.parts] for step in odd] == [[(4, 20)], [(4, 8), (4, 12)]]
    assert all(isinstance(step, Gathered) for step in (*even, *odd))


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_halves_and_parities_contain_each_index_once(size):
    for parts in (halves(size), parities(size)):
        assert sorted(torch.cat(parts).tolist()) == list(range(size))
        assert all(len(part) for part in parts)
    assert halves(size)[0].tolist() == list(range((size + 1) // 2))


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_softmax_attention_depends_only_on_distance(scheme):
    """With rotary positions, adding one angle to all angles does not change the output."""
    model = build(FastTimeSformer, scheme, "regular", (3, 4, 4))
    x = torch.randn(1, 48, DIM).double()
    for step in model.blocks[0].steps:
        attention = model.blocks[0].get_submodule(f"attn_{step.name}").fn
        for part, key in zip(step.group(x), step.keys, strict=True):
            if step is model.blocks[0].steps[-1]:
                part = torch.cat((part[:, :, :1], part), dim=2)  # the class token's place
            rotation = model.rotary[key]
            turned = shift(rotation, 0.7)

            assert torch.allclose(attention(part, rotation), attention(part, turned), atol=1e-10)


def shift(rotation, angle):
    """Add one angle to all angles of a table; `sin` is negated in the first channel of a pair."""
    sign = torch.tensor([-1.0, 1.0]).double().repeat(rotation.sin.shape[-1] // 2)
    cos, sin = rotation.cos, rotation.sin * sign
    c, s = torch.tensor(angle).double().cos(), torch.tensor(angle).double().sin()
    return type(rotation)(cos * c - sin * s, (sin * c + cos * s) * sign)


@pytest.mark.parametrize("family", [FastTimeSformer, TimeSformerViT])
def test_order_of_gathered_tokens_is_a_buffer_outside_the_state_dict(family):
    model = build(family, "local-global", "regular", (3, 5, 3))

    assert "steps.0.order" in dict(model.named_buffers())
    assert not any("steps" in name for name in model.state_dict())
