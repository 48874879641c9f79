"""Change one token, and test that exactly the expected tokens change."""

import pytest
import torch
from torch import Tensor

from model import FastTimeSformer
from model.attention import MECHANISMS
from model.config import UPSTREAM_SCHEMES
from model.spacetime import SCHEMES, Grid

GRID = Grid(frames=3, height=2, width=4)
PLACES = [
    (f, h, w) for f in range(GRID.frames) for h in range(GRID.height) for w in range(GRID.width)
]
DIM, PATCH = 16, 4
# A token changed if its change is above CHANGED; it did not change if below SAME.
CHANGED, SAME = 1e-8, 1e-12
CLS = "class token"
PROBES = [(0, 0, 0), (1, 0, 2), (2, 1, 3)]


def make(mechanism: str, attn_type: str, semantics: str = "paper", frames: int = GRID.frames):
    torch.manual_seed(0)
    return (
        FastTimeSformer(
            frames, 1, GRID.height * PATCH, GRID.width * PATCH, 2, dim=DIM, patch_size=PATCH,
            depth=1, dim_head=8, attn_mechanism=mechanism, attn_type=attn_type,
            semantics=semantics,
        )
        .double()
        .eval()
    )  # fmt: skip


def silence(linear: torch.nn.Linear) -> None:
    linear.weight.zero_()
    linear.bias.zero_()


def moved(before: Tensor, after: Tensor) -> list[bool]:
    """Return whether each token `(n, d)` changed; a change between the limits is an error."""
    change = (after - before).abs().amax(-1)
    assert ((change > CHANGED) | (change < SAME)).all(), change
    return (change > CHANGED).tolist()


@torch.no_grad()
def reach(model: FastTimeSformer, token: object) -> set:
    """Return the places of the tokens that a change of one token reaches in the first block."""
    generator = torch.Generator().manual_seed(1)
    cls = torch.randn(2, 1, DIM, dtype=torch.float64, generator=generator)
    x = torch.randn(2, len(PLACES), DIM, dtype=torch.float64, generator=generator)
    changed_cls, changed_x = cls.clone(), x.clone()
    target = changed_cls[0, 0] if token == CLS else changed_x[0, PLACES.index(token)]
    target += torch.randn(DIM, dtype=torch.float64, generator=generator)
    (cls, x), (changed_cls, changed_x) = (
        model.blocks[0](*tokens, model.rotary) for tokens in ((cls, x), (changed_cls, changed_x))
    )
    assert torch.equal(x[1], changed_x[1])  # the other sample of the batch
    assert torch.equal(cls[1], changed_cls[1])
    reached = {
        place
        for place, yes in zip(PLACES, moved(x[0], changed_x[0]), strict=True)
        if yes
    }  # fmt: skip
    return reached | ({CLS} if moved(cls[0], changed_cls[0])[0] else set())


@pytest.mark.parametrize("mechanism", MECHANISMS)
class TestReach:
    @pytest.mark.parametrize("attn_type", UPSTREAM_SCHEMES)
    @pytest.mark.parametrize("token", [CLS, *PROBES])
    def test_reach_of_a_block_is_every_token(self, mechanism, attn_type, token):
        assert reach(make(mechanism, attn_type), token) == {CLS, *PLACES}

    @torch.no_grad()
    @pytest.mark.parametrize("token", PROBES)
    def test_reach_of_the_time_step_is_the_same_patch_in_every_frame(self, mechanism, token):
        model = make(mechanism, "divided")
        silence(model.blocks[0].attn_s.fn.to_out)
        _, h, w = token
        assert reach(model, token) == {(f, h, w) for f in range(GRID.frames)}

    @torch.no_grad()
    def test_reach_of_the_class_token_in_the_time_step_is_itself(self, mechanism):
        model = make(mechanism, "divided")
        silence(model.blocks[0].attn_s.fn.to_out)
        assert reach(model, CLS) == {CLS}

    @torch.no_grad()
    @pytest.mark.parametrize("token", PROBES)
    def test_reach_of_the_space_step_is_the_frame_and_the_class_token(self, mechanism, token):
        model = make(mechanism, "divided")
        silence(model.blocks[0].fc_t)
        f, _, _ = token
        frame = {(f, h, w) for h in range(GRID.height) for w in range(GRID.width)}
        assert reach(model, token) == frame | {CLS}

    @torch.no_grad()
    def test_reach_of_the_class_token_in_the_space_step_is_every_token(self, mechanism):
        model = make(mechanism, "divided")
        silence(model.blocks[0].fc_t)
        assert reach(model, CLS) == {CLS, *PLACES}

    @torch.no_grad()
    @pytest.mark.parametrize("attn_type", UPSTREAM_SCHEMES)
    @pytest.mark.parametrize("token", [CLS, *PROBES])
    def test_reach_of_the_feed_forward_is_the_token_itself(self, mechanism, attn_type, token):
        model = make(mechanism, attn_type)
        silence(model.blocks[0].attn_s.fn.to_out)
        if attn_type == "divided":
            silence(model.blocks[0].fc_t)
        assert reach(model, token) == {token}


@torch.no_grad()
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_class_token_update_is_the_mean_over_the_frames(mechanism):
    """In the space step, its update is the average of its updates from each single frame."""
    model, single = make(mechanism, "divided"), make(mechanism, "divided", frames=1)
    single.load_state_dict(model.state_dict())
    for each in (model, single):
        silence(each.blocks[0].fc_t)
        silence(each.blocks[0].mlp.fn.net[3])
    generator = torch.Generator().manual_seed(2)
    cls = torch.randn(1, 1, DIM, dtype=torch.float64, generator=generator)
    x = torch.randn(1, len(PLACES), DIM, dtype=torch.float64, generator=generator)
    together, _ = model.blocks[0](cls, x, model.rotary)
    frames = x.unflatten(1, (GRID.frames, -1)).unbind(1)
    alone = [single.blocks[0](cls, frame, single.rotary)[0] for frame in frames]
    torch.testing.assert_close(together, torch.stack(alone).mean(0), rtol=0, atol=1e-12)


class TestStep:
    @pytest.mark.parametrize(
        ("scheme", "number", "expected"),
        [
            ("divided", 0, [[(f, h, w) for f in range(3)] for h in range(2) for w in range(4)]),
            ("divided", 1, [[(f, h, w) for h in range(2) for w in range(4)] for f in range(3)]),
            ("joint", 0, [PLACES]),
        ],
        ids=["time", "space", "joint"],
    )
    def test_groups_are_in_raster_order(self, scheme, number, expected):
        step = SCHEMES[scheme](GRID)[number]
        (groups,) = step.group(torch.arange(len(PLACES)).reshape(1, -1, 1))
        found = groups[0, :, :, 0].tolist()
        assert [[PLACES[token] for token in group] for group in found] == expected


def numbered_patches(model: FastTimeSformer) -> Tensor:
    """Return the raster numbers of the patches, in the order of the input of the blocks."""
    grid = model.config
    tokens = grid.frames * GRID.height * GRID.width
    video = torch.arange(tokens, dtype=torch.float64)
    video = video.reshape(1, grid.frames, 1, GRID.height, GRID.width)
    video = video.repeat_interleave(PATCH, -1).repeat_interleave(PATCH, -2)
    with torch.no_grad():
        silence(model.project_in)
        model.project_in.weight[0].fill_(1 / PATCH**2)  # channel 0 is the mean of the patch
        return model.embed(video)[1][0, :, 0].round().long()


class TestUpstream:
    """The published package reads raster order as patch-by-patch order (FACTS of the issue)."""

    def test_paper_semantics_keep_the_raster_order(self):
        assert numbered_patches(make("regular", "divided")).tolist() == list(range(len(PLACES)))

    @torch.no_grad()
    @pytest.mark.parametrize("mechanism", MECHANISMS)
    @pytest.mark.parametrize("frames", [2, 3, 5])
    def test_upstream_time_groups_are_consecutive_patches(self, mechanism, frames):
        model = make(mechanism, "divided", "upstream", frames)
        order = numbered_patches(model)
        assert sorted(order.tolist()) == list(range(len(order)))
        step = model.blocks[0].steps[0]
        groups = step.group(order.reshape(1, -1, 1))[0][0, :, :, 0]
        consecutive = torch.arange(len(order)).reshape(-1, frames)
        assert torch.equal(groups, consecutive)

    @torch.no_grad()
    @pytest.mark.parametrize("mechanism", MECHANISMS)
    @pytest.mark.parametrize("token", PROBES)
    def test_upstream_patch_reaches_its_neighbours_instead_of_other_frames(self, mechanism, token):
        model = make(mechanism, "divided", "upstream")
        order = numbered_patches(make(mechanism, "divided", "upstream")).tolist()
        silence(model.blocks[0].attn_s.fn.to_out)
        number = PLACES.index(token)
        reached = reach(model, PLACES[order.index(number)])
        first = number // GRID.frames * GRID.frames
        assert {order[PLACES.index(place)] for place in reached} == set(
            range(first, first + GRID.frames)
        )
