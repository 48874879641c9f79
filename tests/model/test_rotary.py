"""Compare rotary tables with a formula in plain numbers, also after casts, copies and loads."""

import copy
import math

import pytest
import torch

from model import FastTimeSformer
from model.rotary import FrameRotary, ImageRotary, Rotation, rotate

FRAMES, HEIGHT, WIDTH, PATCH = 4, 3, 5, 4  # positions -1, 0, 1 and -1, -.5, ..., 1 are exact
EXACT = 1e-14  # float64 tables; a table computed in float32 has errors of 1e-8
MAX_FREQ = 10.0


def make(attn_type: str = "divided", dim_head: int = 8, **changed: object) -> FastTimeSformer:
    sizes = (FRAMES, 3, HEIGHT * PATCH, WIDTH * PATCH, 2)
    dim = 2 * dim_head
    return FastTimeSformer(
        *sizes, dim=dim, dim_head=dim_head, patch_size=PATCH, depth=1, attn_type=attn_type,
        attn_mechanism="regular", **changed,
    )  # fmt: skip


def position(index: int, count: int) -> float:
    return -1.0 if count == 1 else -1.0 + 2.0 * index / (count - 1)


def expected_angle(model: FastTimeSformer, token: tuple[int, int, int] | None, step: str, e: int):
    """Compute the angle of channel e of a token (f, h, w) in a step, as in the papers."""
    if token is None:  # the class token
        return 0.0
    frame, down, across = token
    scales = model.image_rot_emb.scales.tolist()
    place = [position(down, HEIGHT) * s * math.pi for s in scales]
    place += [position(across, WIDTH) * s * math.pi for s in scales]
    in_time = frame * model.frame_rot_emb.inv_freqs.tolist()[e // 2]
    in_place = place[e // 2] if e // 2 < len(place) else 0.0
    return {"time": in_time, "space": in_place, "both": in_time + in_place}[step]


def tokens_of(kind: str) -> list[tuple[int, int, int] | None]:
    frames = range(1) if kind == "space" else range(FRAMES)
    if kind == "time":
        return [(frame, 0, 0) for frame in frames]
    return [None] + [(f, h, w) for f in frames for h in range(HEIGHT) for w in range(WIDTH)]


def expected_rotation(model: FastTimeSformer, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    heads, dim_head = model.config.num_heads, model.config.dim_head
    angles = [
        [expected_angle(model, token, kind, e) for _ in range(heads) for e in range(dim_head)]
        for token in tokens_of(kind)
    ]
    cos = [[math.cos(angle) for angle in row] for row in angles]
    sin = [[math.sin(angle) * (-1) ** (c + 1) for c, angle in enumerate(row)] for row in angles]
    return torch.tensor(cos, dtype=torch.float64), torch.tensor(sin, dtype=torch.float64)


STEPS = [("divided", "t", "time"), ("divided", "s", "space"), ("joint", "s", "both")]


def assert_tables(model: FastTimeSformer, step: str, kind: str, tolerance: float) -> None:
    for got, expected in zip(model.rotary[step], expected_rotation(model, kind), strict=True):
        assert got.shape == expected.shape
        assert (got.double() - expected).abs().max().item() <= tolerance


def turn(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate tokens `(n, e)` by angles `(n, e)` with the code under test."""
    sin = angles.sin()
    sin[:, 0::2] *= -1
    identity = torch.eye(x.shape[-1], dtype=x.dtype)
    return rotate(x, x, Rotation(angles.cos(), sin), identity, None)


def angles_of(kind: str, dim_head: int = 8, *, half_split: bool = False) -> torch.Tensor:
    """Return angles `(f, h, w, e)` of time, of space, or their sum."""
    frame = FrameRotary(dim_head, half_split=half_split).angles(FRAMES)[:, None, None, :]
    image = ImageRotary(dim_head).angles(HEIGHT, WIDTH)[None]
    shape = (FRAMES, HEIGHT, WIDTH, dim_head)
    return {"time": frame, "space": image, "both": frame + image}[kind].expand(shape)


class TestRotation:
    @pytest.mark.parametrize("kind", ["time", "space", "both"])
    def test_rotation_keeps_the_length_of_every_pair(self, kind):
        torch.manual_seed(0)
        angles = angles_of(kind).flatten(0, 2)
        x = torch.randn(angles.shape, dtype=torch.float64)
        before, after = (t.unflatten(-1, (-1, 2)).norm(dim=-1) for t in (x, turn(x, angles)))
        torch.testing.assert_close(after, before, rtol=0, atol=1e-13)

    @pytest.mark.parametrize("kind", ["time", "space", "both"])
    def test_products_of_rotated_tokens_depend_only_on_distance(self, kind):
        torch.manual_seed(1)
        angles = angles_of(kind).flatten(0, 2)
        query, key = torch.randn(2, angles.shape[-1], dtype=torch.float64)
        products = turn(query.expand_as(angles), angles) @ turn(key.expand_as(angles), angles).T
        by_distance: dict[tuple[int, ...], list[float]] = {}
        places = [(f, h, w) for f in range(FRAMES) for h in range(HEIGHT) for w in range(WIDTH)]
        for i, place in enumerate(places):
            for j, other in enumerate(places):
                distance = tuple(a - b for a, b in zip(place, other, strict=True))
                by_distance.setdefault(distance, []).append(products[i, j].item())
        assert max(max(same) - min(same) for same in by_distance.values()) < 1e-12
        values = [same[0] for same in by_distance.values()]
        assert max(values) - min(values) > 0.1  # products at different distances differ

    def test_half_split_angles_change_the_length_of_tokens(self):
        angles = angles_of("time", half_split=True)[:, 0, 0]
        x = torch.ones(angles.shape, dtype=torch.float64)
        change = (turn(x, angles).norm(dim=-1) / x.norm(dim=-1) - 1).abs()
        assert change[0].item() < 1e-14  # the angles of frame 0 are zero
        assert change[1:].min().item() > 1e-2

    def test_rotation_of_a_biased_projection_includes_the_bias(self):
        torch.manual_seed(2)
        x, weight, bias = torch.randn(5, 6), torch.randn(8, 6), torch.randn(8)
        x, weight, bias = x.double(), weight.double(), bias.double()
        angles = angles_of("time", 8)[:, 0, 0][[0, 1, 2, 3, 1]]
        sin = angles.sin()
        sin[:, 0::2] *= -1
        projected = x @ weight.T + bias
        got = rotate(projected, x, Rotation(angles.cos(), sin), weight, bias)
        torch.testing.assert_close(got, turn(projected, angles), rtol=0, atol=1e-13)

    def test_rotation_is_counter_clockwise(self):
        quarter = torch.full((1, 2), math.pi / 2, dtype=torch.float64)
        turned = turn(torch.tensor([[1.0, 0.0]], dtype=torch.float64), quarter)
        torch.testing.assert_close(turned, torch.tensor([[0.0, 1.0]]).double(), rtol=0, atol=1e-15)


class TestFrequencies:
    def test_time_frequencies_equal_the_roformer_frequencies(self):
        got = FrameRotary(16).inv_freqs
        expected = torch.tensor([10000 ** (-2 * j / 16) for j in range(8)], dtype=torch.float64)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)

    def test_space_frequencies_go_from_one_to_half_the_maximum(self):
        got = ImageRotary(20, max_freq=MAX_FREQ).scales
        expected = torch.tensor([(MAX_FREQ / 2) ** (j / 4) for j in range(5)], dtype=torch.float64)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("cast", ["double", "float", "half", "bfloat16"])
    def test_frequencies_stay_float32_and_unchanged_under_a_cast(self, cast):
        model = make()
        before = [model.frame_rot_emb.inv_freqs.clone(), model.image_rot_emb.scales.clone()]
        getattr(model, cast)()
        after = [model.frame_rot_emb.inv_freqs, model.image_rot_emb.scales]
        assert [tensor.dtype for tensor in after] == [torch.float32] * 2
        assert all(map(torch.equal, before, after))

    @pytest.mark.parametrize("dim_head", [2, 6, 10])
    def test_channels_beyond_a_multiple_of_four_are_not_rotated_in_space(self, dim_head):
        angles = angles_of("space", dim_head)[0]  # h w e
        turned = dim_head // 4 * 4
        assert turned < dim_head
        assert torch.equal(angles[..., turned:], torch.zeros(HEIGHT, WIDTH, dim_head - turned))
        assert turned == 0 or (angles[0, 0, :turned] != 0).all()
        x = torch.randn(HEIGHT * WIDTH, dim_head, dtype=torch.float64)
        after = turn(x, angles.flatten(0, 1))
        assert torch.equal(after[:, turned:], x[:, turned:])

    def test_position_of_a_single_row_is_minus_one(self):
        angles = ImageRotary(4).angles(1, 1)
        assert torch.equal(angles, torch.full((1, 1, 4), -math.pi, dtype=torch.float64))


CASTS = {
    "double": lambda model: model.double(),
    "float, then double": lambda model: model.float().double(),
    "half, then double": lambda model: model.half().double(),
    "bfloat16, then double": lambda model: model.bfloat16().double(),
    "double, deepcopy": lambda model: copy.deepcopy(model.double()),
    "deepcopy, double": lambda model: copy.deepcopy(model).double(),
    "to": lambda model: model.to("cpu", torch.float64),
}
ROUNDING = {"float": 2**-24, "half": 2**-11, "bfloat16": 2**-8}


@pytest.mark.parametrize(("attn_type", "step", "kind"), STEPS)
class TestTables:
    @pytest.mark.parametrize("cast", CASTS)
    def test_float64_tables_are_exact_after_any_cast(self, attn_type, step, kind, cast):
        model = CASTS[cast](make(attn_type))
        assert model.rotary[step].cos.dtype == torch.float64
        assert_tables(model, step, kind, EXACT)

    @pytest.mark.parametrize("cast", ROUNDING)
    def test_tables_are_rounded_to_nearest(self, attn_type, step, kind, cast):
        model = getattr(make(attn_type), cast)()
        assert_tables(model, step, kind, ROUNDING[cast])
        double = getattr(make(attn_type).double(), cast)()
        for got, expected in zip(model.rotary[step], double.rotary[step], strict=True):
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected)

    @pytest.mark.parametrize("dim_head", [2, 6, 10])
    def test_tables_are_exact_for_dim_head_not_a_multiple_of_four(
        self, attn_type, step, kind, dim_head
    ):
        assert_tables(make(attn_type, dim_head).double(), step, kind, EXACT)

    def test_tables_follow_loaded_frequencies(self, attn_type, step, kind):
        trained, model = make(attn_type), make(attn_type).double()
        trained.frame_rot_emb.inv_freqs.mul_(1.25)
        trained.image_rot_emb.scales.mul_(0.75)
        model.load_state_dict(trained.state_dict())
        assert torch.equal(model.frame_rot_emb.inv_freqs, trained.frame_rot_emb.inv_freqs)
        before = make(attn_type).double().rotary[step].cos
        assert (model.rotary[step].cos - before).abs().max() > 0.1
        assert_tables(model, step, kind, EXACT)

    def test_tables_of_a_copy_follow_the_frequencies_of_the_copy(self, attn_type, step, kind):
        model = make(attn_type).double()
        twin = copy.deepcopy(model)
        changed = model.state_dict()
        changed["frame_rot_emb.inv_freqs"] = changed["frame_rot_emb.inv_freqs"] * 1.25
        changed["image_rot_emb.scales"] = changed["image_rot_emb.scales"] * 0.75
        twin.load_state_dict(changed)
        assert_tables(model, step, kind, EXACT)
        assert_tables(twin, step, kind, EXACT)
        assert (model.rotary[step].cos - twin.rotary[step].cos).abs().max() > 0.1


def test_tables_are_not_in_the_state_dict():
    model = make()
    names = set(model.state_dict()) | {name for name, _ in model.named_parameters()}
    assert {name for name in names if "rot" in name} == {
        "frame_rot_emb.inv_freqs",
        "image_rot_emb.scales",
    }
